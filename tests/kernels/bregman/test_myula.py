"""MYULA: the law of its discretisation, its bias, and a Bayesian lasso."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.kernels.bregman import myula
from nutfree.numerics.proximal import LaplaceTerm
from tests.kernels.bregman.chains import VARIANCES, ends, gaussian, real_target

NUM_CHAINS = 20_000


def draws(target_of, start, num_steps, *of_target, **params):
    """The last draw of many chains from one place, `(NUM_CHAINS, d)`."""
    run = ends(myula.init, KERNEL, target_of)
    starts = jnp.broadcast_to(start, (NUM_CHAINS, start.size))
    state, _ = run(starts, num_steps, *of_target, **params)
    return np.asarray(state.position["x"])


KERNEL = myula.build_kernel()


def gaussian_target():
    return real_target(gaussian)


def laplace_target(scale):
    return real_target(lambda x: jnp.asarray(0.0), LaplaceTerm(0.0, scale))


@pytest.mark.parametrize("gamma", [0.1, 0.4])
def test_gaussian_law_is_that_of_the_discretised_chain(gamma):
    """Variance s^2 / (1 - gamma / 2), so the bias halves with gamma.

    20,000 independent draws; 4.5 sd bounds fail once in 100,000.
    """
    x = draws(
        gaussian_target,
        jnp.ones(2),
        60,
        step_size=gamma,
        inverse_mass_matrix=VARIANCES,
    )
    sd = np.sqrt(np.asarray(VARIANCES) / (1 - gamma / 2))
    np.testing.assert_allclose((x.mean(0) - 1) / sd, 0, atol=4.5 / NUM_CHAINS**0.5)
    np.testing.assert_allclose(x.var(0) / sd**2, 1, atol=4.5 * (2 / NUM_CHAINS) ** 0.5)
    assert abs(np.corrcoef(x.T)[0, 1]) < 4.5 / NUM_CHAINS**0.5


def test_smoothed_laplace_is_gaussian_within_its_envelope():
    """Where |x| < lambda / b the drift is that of a Gaussian of variance lambda."""
    x = draws(laplace_target, jnp.zeros(1), 60, 0.01, step_size=0.05, smoothing=2.0)
    assert np.abs(x).max() < 0.1 / 0.01
    expected = 0.1 / (1 - 0.05 / 0.1 / 2)
    np.testing.assert_allclose(
        x.var() / expected, 1, atol=4.5 * (2 / NUM_CHAINS) ** 0.5
    )


def test_laplace_bias_has_its_stated_order_in_the_step():
    """E|x| = b (1 + gamma / 2) at lambda = 2 gamma, by quadrature of the chain's law.

    20,000 draws know it to 0.7 % and 0.9 %: 4.5 sd bounds fail once in 100,000.
    """
    errors = []
    for gamma, steps in ((0.2, 60), (0.8, 30)):
        params = {"step_size": gamma, "smoothing": 2.0}
        x = draws(laplace_target, jnp.ones(1), steps, 1.0, **params)
        errors.append(np.abs(x).mean() - 1)
    assert errors[0] == pytest.approx(0.1, abs=0.035)
    assert errors[1] == pytest.approx(0.39, abs=0.045)
    order = np.log2(errors[1] / errors[0]) / 2
    assert order == pytest.approx(myula.SPEC.bias_order["step_size"], abs=0.3)


def test_no_smoothing_of_a_target_without_a_non_smooth_part_is_ula():
    target = real_target(gaussian)
    state = myula.init({"x": jnp.zeros(2)}, target)
    kernel = jax.jit(partial(KERNEL, logdensity_fn=target, step_size=0.1, num_steps=3))
    a, b = (kernel(jax.random.key(1), state, smoothing=s)[0] for s in (1.0, 100.0))
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
        lambda: target,
        jnp.zeros(2),
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
        params = {"num_steps": 0, "relaxation": 1.0, **options}
        assert myula.SPEC.gradients(None, params, target) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["myula", "rbmumla"])
def test_bayesian_lasso_agrees_with_nuts(name):
    """Means within 0.12 sd and sds within 10 % of 4 x 4,000 NUTS draws.

    Effective draws are some 2,000 or more, 0.03 sd of error; both bounds are more than
    3 sd of that.
    """
    from numpyro.infer import MCMC, NUTS

    import models
    from nutfree.hosts.kernel import kernel

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
