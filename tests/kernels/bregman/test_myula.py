"""MYULA: the law of its discretisation, its bias, and a Bayesian lasso."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints

from nutfree.kernels.bregman import myula
from nutfree.numerics.proximal import LaplaceTerm
from nutfree.target import Split, Target

VARIANCES = jnp.array([1.0, 4.0])


def real_target(smooth, term=None) -> Target:
    """-log density = -smooth(x) + g(x) of one real-supported site."""

    def terms(values):
        return smooth(values["x"]), {} if term is None else {"x": term}

    def logdensity(z):
        return smooth(z["x"]) - (0.0 if term is None else term.value(z["x"]))

    split = Split(
        terms, {"x": constraints.real_vector}, dict, dict, lambda z: jnp.asarray(0.0)
    )
    return Target(logdensity, split=split)


def draws(target, start, num_chains, num_steps, **params):
    """The last draw of many chains, `(num_chains, d)`."""
    kernel = partial(myula.build_kernel(), num_steps=1)

    def chain(key):
        state = myula.init({"x": start}, target)

        def step(state, key):
            return kernel(key, state, target, **params)[0], None

        state, _ = jax.lax.scan(step, state, jax.random.split(key, num_steps))
        return state.position["x"]

    keys = jax.random.split(jax.random.key(0), num_chains)
    return np.asarray(jax.jit(jax.vmap(chain))(keys))


def gaussian(x):
    return -0.5 * jnp.sum((x - 1.0) ** 2 / VARIANCES)


@pytest.mark.parametrize("gamma", [0.1, 0.4])
def test_gaussian_law_is_that_of_the_discretised_chain(gamma):
    """Variance s^2 / (1 - gamma / 2), so the bias halves with gamma.

    20,000 independent draws; 4.5 sd bounds fail once in 100,000.
    """
    x = draws(
        real_target(gaussian),
        jnp.ones(2),
        20_000,
        60,
        step_size=gamma,
        inverse_mass_matrix=VARIANCES,
    )
    sd = np.sqrt(np.asarray(VARIANCES) / (1 - gamma / 2))
    np.testing.assert_allclose((x.mean(0) - 1) / sd, 0, atol=4.5 / 20_000**0.5)
    np.testing.assert_allclose(x.var(0) / sd**2, 1, atol=4.5 * (2 / 20_000) ** 0.5)
    assert abs(np.corrcoef(x.T)[0, 1]) < 4.5 / 20_000**0.5


def test_smoothed_laplace_is_gaussian_within_its_envelope():
    """Where |x| < lambda / b the drift is that of a Gaussian of variance lambda."""
    target = real_target(lambda x: jnp.asarray(0.0), LaplaceTerm(0.0, 0.01))
    x = draws(target, jnp.zeros(1), 20_000, 60, step_size=0.05, smoothing=2.0)
    assert np.abs(x).max() < 0.1 / 0.01
    expected = 0.1 / (1 - 0.05 / 0.1 / 2)
    np.testing.assert_allclose(x.var() / expected, 1, atol=4.5 * (2 / 20_000) ** 0.5)


def test_laplace_bias_falls_with_the_step():
    """E|x| = b; 20,000 draws know it to 0.7 %, so both bounds hold at 4 sd."""
    target = real_target(lambda x: jnp.asarray(0.0), LaplaceTerm(0.0, 1.0))
    errors = [
        abs(np.abs(draws(target, jnp.ones(1), 20_000, steps, step_size=g)).mean() - 1)
        for g, steps in ((0.8, 40), (0.05, 200))
    ]
    assert errors[0] > 0.1
    assert errors[1] < 0.04


def test_no_smoothing_of_a_target_without_a_non_smooth_part_is_ula():
    target = real_target(gaussian)
    state = myula.init({"x": jnp.zeros(2)}, target)
    key = jax.random.key(1)
    a, _ = myula.build_kernel()(key, state, target, 0.1, 3, smoothing=1.0)
    b, _ = myula.build_kernel()(key, state, target, 0.1, 3, smoothing=100.0)
    np.testing.assert_array_equal(a.position["x"], b.position["x"])


def test_a_nan_is_marked_and_never_stored():
    target = real_target(lambda x: jnp.where(jnp.sum(x) > 0, jnp.nan, -jnp.sum(x**2)))
    state = myula.init({"x": -1e-3 * jnp.ones(2)}, target)
    kernel = jax.jit(
        lambda key, state: myula.build_kernel()(key, state, target, step_size=0.5)
    )
    divergences = 0
    for key in jax.random.split(jax.random.key(0), 20):
        state, info = kernel(key, state)
        divergences += int(info.is_divergent)
        assert jnp.all(jnp.isfinite(state.position["x"]))
    assert divergences > 0


def test_pilot_alone_tunes_scales_that_differ_by_a_hundred():
    """Warm-up of no steps: step and variances come from the counted pilot."""
    scales = jnp.array([0.03, 0.3, 3.0])
    target = real_target(lambda x: -0.5 * jnp.sum((x / scales) ** 2))
    warmup = myula.warmup()
    adapt = jax.jit(
        lambda key: warmup.init(key, {"x": jnp.ones(3)}, target, num_steps=0)
    )(jax.random.key(0))
    params = warmup.final(adapt)
    ratio = jnp.sqrt(jnp.diag(params["inverse_mass_matrix"])) / scales
    assert jnp.all((ratio > 0.7) & (ratio < 1.4))
    assert 0.005 < params["step_size"] <= 0.1
    assert not params["adjusted"]
    assert adapt.num_grad_evals > 400


def test_dense_preconditioner_makes_a_correlated_gaussian_mix():
    """With C the covariance the law is the diagonal one's, in the coordinates of C:
    variance 1 / (1 - gamma / 2) along each. 4.5 sd bounds at 20,000 draws."""
    covariance = jnp.array([[1.0, 0.95], [0.95, 1.0]])
    precision = jnp.linalg.inv(covariance)
    target = real_target(lambda x: -0.5 * x @ precision @ x)
    x = draws(
        target,
        jnp.zeros(2),
        20_000,
        30,
        step_size=0.4,
        inverse_mass_matrix=covariance,
    )
    white = np.linalg.solve(np.linalg.cholesky(covariance), x.T)
    expected = np.eye(2) / (1 - 0.4 / 2)
    np.testing.assert_allclose(np.cov(white), expected, atol=4.5 * 1.25 * 0.01)


def test_steps_of_a_transition_are_counted_and_follow_the_step_size():
    target = real_target(gaussian)
    state = myula.init({"x": jnp.zeros(2)}, target)
    kernel = jax.jit(partial(myula.build_kernel(), logdensity_fn=target))
    key = jax.random.key(0)
    for options, expected in (
        ({"step_size": 0.1}, 20),
        ({"step_size": 0.1, "relaxation": 3.0}, 60),
        ({"step_size": 0.1, "num_steps": 7}, 7),
        ({"step_size": 1e-6}, 500),
    ):
        _, info = kernel(key, state, **options)
        assert info.num_steps == info.num_grad_evals == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["myula", "rbmumla"])
def test_bayesian_lasso_agrees_with_nuts(name):
    """Means within 0.12 sd and sds within 10 % of 4 x 4,000 NUTS draws.

    Effective draws are some 2,000 or more, 0.03 sd of error; both bounds are more than
    3 sd of that.
    """
    from numpyro.infer import MCMC, NUTS

    import models
    from nutfree.hosts.numpyro import kernel

    zoo = models.load("lasso_diabetes")
    data = zoo.data()

    def run(kernel, num_samples, thinning):
        mcmc = MCMC(
            kernel,
            num_warmup=1000,
            num_samples=num_samples,
            num_chains=4,
            thinning=thinning,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jax.random.key(0), **data)
        return mcmc.get_samples()

    reference = run(NUTS(zoo.model, target_accept_prob=0.95), 4000, 1)
    ours = run(kernel(name, model=zoo.model), 1000, 1)
    for site in ("beta", "sigma"):
        sd = reference[site].std(0)
        shift = (ours[site].mean(0) - reference[site].mean(0)) / sd
        np.testing.assert_allclose(shift, 0, atol=0.12)
        np.testing.assert_allclose(ours[site].std(0) / sd, 1, atol=0.1)
