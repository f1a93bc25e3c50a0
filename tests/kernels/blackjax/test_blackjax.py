"""BlackJAX's kernels behind the adapter: the right law, tuned, and counted.

Tolerances are four to five standard errors at the effective sample sizes measured when
the tests were written, so that a false alarm at another seed is rarer than one in a
thousand.
"""

from dataclasses import fields
from functools import cache, partial
from typing import Any, NamedTuple

import blackjax as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree import errors
from nutfree.hosts import chain
from nutfree.kernels import blackjax
from nutfree.target import Minibatch, Prior, Target

SPECS = {spec.name.removeprefix("blackjax."): spec for spec in blackjax.SPECS}
SD = jnp.array([1.0, 3.0, 0.2, 1.0])
MEAN = jnp.array([0.0, 5.0, 1.0, -2.0])
PRIOR = Prior(
    lambda key: {"x": 10 * jax.random.normal(key, (4,))},
    lambda p: jnp.sum(jax.scipy.stats.norm.logpdf(p["x"], 0.0, 10.0)),
)
GAUSSIAN = Target(
    lambda p: -0.5 * jnp.sum(((p["x"] - MEAN) / SD) ** 2),
    position={"x": jnp.ones(4)},
    prior=PRIOR,
)


class Run(NamedTuple):
    """Draws and infos after warm-up, the parameters, and what the pilot cost."""

    draws: dict
    info: Any
    params: dict
    pilot: jax.Array


def sample(name, target, position, num_warmup, num_samples, **options) -> Run:
    algorithm = chain.algorithm(SPECS[name], options)

    @jax.jit
    def run(key):
        pilot_key, init_key, key = jax.random.split(key, 3)
        begun = chain.begin(
            algorithm, target, pilot_key, init_key, position, num_warmup
        )

        def step(before, key):
            after, info = chain.advance(algorithm, target, key, before, num_warmup)
            return after, (after.kernel_state.position, info)

        keys = jax.random.split(key, num_warmup + num_samples)
        end, made = jax.lax.scan(step, begun, keys)
        draws, info = jax.tree.map(lambda leaf: leaf[num_warmup:], made)
        return Run(
            draws, info, end.adapt_state.params, begun.adapt_state.num_grad_evals
        )

    return run(jax.random.key(0))


@cache
def gaussian_run(name) -> Run:
    return sample(name, GAUSSIAN, GAUSSIAN.position, 600, CHAINS[name])


CHAINS = {
    "nuts": 1500,
    "hmc": 3000,
    "mala": 6000,
    "barker": 8000,
    "ghmc": 8000,
    "rmh": 20000,
    "mclmc": 6000,
    "adjusted_mclmc": 3000,
    "elliptical_slice": 20000,
    "tempered_smc": 1000,
}


SLOW = set(CHAINS) - {"mala"}
each_chain = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CHAINS],
)


@each_chain
def test_gaussian_of_unequal_scales(name):
    run = gaussian_run(name)
    x = np.asarray(run.draws["x"])
    ess = np.maximum(np.asarray(reference.ess(x[None])), 1.0)
    assert np.all(ess > 100), ess
    error = np.abs(x.mean(axis=0) - MEAN) / SD
    assert np.all(error < 5 / np.sqrt(ess)), (error, ess)
    assert np.all(np.abs(x.std(axis=0) / SD - 1) < 5 / np.sqrt(2 * ess) + 0.02)
    assert not np.any(run.info.is_divergent)
    check_gradients(name, GAUSSIAN, run)


def check_gradients(name, target, run, **options):
    """Every transition spends what the spec says."""
    spec = SPECS[name]
    stated = spec.gradients
    if callable(stated):
        stated = stated(spec.checked(options), run.params, target)
    counted = "num_grad_evals" if spec.uses_gradient else "num_density_evals"
    if stated is not None:
        np.testing.assert_allclose(getattr(run.info, counted), stated, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "aim"),
    [
        ("nuts", 0.8),
        ("mala", 0.574),
        pytest.param("barker", 0.574, marks=pytest.mark.slow),
        pytest.param("ghmc", 0.95, marks=pytest.mark.slow),
    ],
)
def test_acceptance_is_what_warm_up_aims_at(name, aim):
    run = gaussian_run(name)
    assert abs(float(run.info.acceptance_rate.mean()) - aim) < 0.12
    covariance = np.asarray(run.params["inverse_mass_matrix"])
    variances = np.diag(covariance) if covariance.ndim == 2 else covariance
    assert np.all(np.abs(np.log(variances / SD**2)) < 1.0)


def test_a_fixed_step_size_is_kept():
    _, _, params, _ = sample("hmc", GAUSSIAN, GAUSSIAN.position, 50, 10, step_size=0.3)
    assert float(params["step_size"]) == pytest.approx(0.3)


def test_dense_mass_learns_a_correlation():
    precision = jnp.linalg.inv(jnp.array([[1.0, 0.95], [0.95, 1.0]]))
    target = Target(lambda x: -0.5 * x @ precision @ x)
    _, info, params, _ = sample("nuts", target, jnp.ones(2), 600, 500, dense_mass=True)
    learned = np.asarray(params["inverse_mass_matrix"])
    assert learned[0, 1] / np.sqrt(learned[0, 0] * learned[1, 1]) > 0.85
    assert float(info.num_grad_evals.mean()) < 8


def test_elliptical_slice_refuses_a_prior_that_is_not_gaussian():
    laplace = Prior(
        lambda key: jax.random.laplace(key, (2,)),
        lambda x: jnp.sum(jax.scipy.stats.laplace.logpdf(x)),
    )
    student = Prior(
        lambda key: jax.random.t(key, 5.0, (2,)),
        lambda x: jnp.sum(jax.scipy.stats.t.logpdf(x, 5.0)),
    )
    for prior in (laplace, student):
        target = Target(lambda x: -jnp.sum(x**2), prior=prior)
        with pytest.raises(errors.MissingCapability, match="Gaussian prior"):
            SPECS["elliptical_slice"].warmup().init(
                jax.random.key(0), jnp.zeros(2), target, 0
            )


def test_elliptical_slice_finds_a_correlated_prior():
    covariance = jnp.array([[2.0, 0.8], [0.8, 1.0]])
    mean = jnp.array([1.0, -3.0])
    precision = jnp.linalg.inv(covariance)
    prior = Prior(
        lambda key: jax.random.multivariate_normal(key, mean, covariance),
        lambda x: -0.5 * (x - mean) @ precision @ (x - mean),
    )
    # a likelihood that says nothing leaves the prior
    target = Target(prior.logdensity, prior=prior)
    draws, _, params, _ = sample("elliptical_slice", target, jnp.zeros(2), 10, 20000)
    np.testing.assert_allclose(params["prior_covariance"], covariance, rtol=1e-3)
    np.testing.assert_allclose(params["prior_mean"], mean, rtol=1e-3)
    np.testing.assert_allclose(np.cov(np.asarray(draws).T), covariance, atol=0.15)


@pytest.mark.parametrize("name", ["mclmc", "adjusted_mclmc"])
def test_microcanonical_kernels_need_two_dimensions(name):
    with pytest.raises(errors.MissingCapability, match="at least two"):
        SPECS[name].init(jnp.zeros(1), jnp.sum)


@pytest.fixture(scope="module")
def regression():
    """Target, exact mean and exact deviations of a conjugate linear regression."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3)) * np.array([1.0, 3.0, 0.3])
    y = x @ np.array([0.5, -0.3, 1.0]) + rng.normal(size=2000)
    covariance = np.linalg.inv(x.T @ x + np.eye(3) / 100)
    mean = covariance @ (x.T @ y)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    def terms(beta, rows):
        return -0.005 * jnp.sum(beta**2), -0.5 * (y[rows] - x[rows] @ beta) ** 2

    full = partial(Minibatch(2000, terms).logdensity, indices=jnp.arange(2000))
    target = Target(full, minibatch=Minibatch(2000, terms))
    return target, mean, np.sqrt(np.diag(covariance))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgld", "sghmc", "sgnht"])
def test_stochastic_gradients_reach_the_posterior(name, regression):
    target, mean, sd = regression
    run = sample(name, target, jnp.ones(3), 1000, 10000, batch_size=1000)
    # 200 effective draws, and the heat that the step size allows
    draws = np.asarray(run.draws)
    assert np.all(np.abs(draws.mean(axis=0) - mean) / sd < 0.35)
    assert np.all(np.abs(draws.std(axis=0) / sd - 1) < 0.25)
    check_gradients(name, target, run, batch_size=1000)
    assert float(run.pilot) == 0.5 * (1000 + 16 * 5)


def stationary_bias(name, params, num_chains, num_steps, **options):
    """Relative error of a Gaussian's variances, and its standard error.

    Many chains start from N(0, I) and forget it in the first half of their steps; the
    variance is that of their last two coordinates in the second half.
    """

    def terms(x, rows):
        return jnp.zeros(()), jnp.full(rows.shape, -0.25 * jnp.sum(x**2))

    target = Target(lambda x: -0.5 * jnp.sum(x**2), minibatch=Minibatch(2, terms))
    spec = SPECS[name]
    chosen = spec.checked(options)
    kernel = spec.build_kernel(chosen)

    @jax.jit
    @jax.vmap
    def variance(key):
        start_key, init_key, key = jax.random.split(key, 3)
        start = jax.random.normal(start_key, (4,))
        state = spec.init(start, target, init_key, chosen)

        def step(carry, i):
            state, total = carry
            state, _ = kernel(jax.random.fold_in(key, i), state, target, **params)
            square = jnp.mean(state.position[2:] ** 2)
            return (state, total + jnp.where(2 * i < num_steps, 0.0, square)), None

        (_, total), _ = jax.lax.scan(step, (state, 0.0), jnp.arange(num_steps))
        return total / (num_steps // 2)

    found = np.asarray(variance(jax.random.split(jax.random.key(0), num_chains)), float)
    return found.mean() - 1, found.std() / np.sqrt(num_chains)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option", "values", "others", "num_chains", "num_steps"),
    [
        ("sgld", "step_size", (0.4, 0.2), {}, 10_000, 200),
        ("sgnht", "step_size", (0.2, 0.1), {}, 10_000, 400),
        pytest.param(
            "sghmc",
            "num_integration_steps",
            (5, 10),
            {"step_size": 0.04},
            10_000,
            1000,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bias_is_of_its_stated_order(
    name, option, values, others, num_chains, num_steps
):
    """The tolerance is a third of the ratio, four of its standard errors or more."""
    tuned = {f.name for f in fields(SPECS[name].options) if f.metadata["tuned"]}
    biases, errors = [], []
    for value in values:
        params, options = dict(others), {}
        (params if option in tuned else options)[option] = value
        found = stationary_bias(name, params, num_chains, num_steps, **options)
        biases.append(found[0])
        errors.append(abs(found[1] / found[0]))
    assert np.linalg.norm(errors) < 0.08
    expected = (values[0] / values[1]) ** SPECS[name].bias_order[option]
    assert biases[0] / biases[1] == pytest.approx(expected, rel=0.33)


@pytest.mark.slow
def test_mclmc_bias_falls_at_least_with_the_square_of_the_step():
    """Its integrator has a small term of order two, and one of order four that is as
    large at a step of one sd: the ratio is 6.4 here, with a standard error of 0.5."""
    others = {"L": 2.0, "inverse_mass_matrix": jnp.array([1.0, 1.0, 9.0, 9.0])}
    coarse, fine = (
        stationary_bias("mclmc", {"step_size": h, **others}, 10_000, 2000)[0]
        for h in (1.0, 0.5)
    )
    assert SPECS["mclmc"].bias_order == {"step_size": 2}
    assert coarse / fine > 4


@pytest.mark.slow
def test_sghmc_gains_a_variance_that_no_step_size_takes_away():
    """As BlackJAX has it, see the module: L / (L - 1) for trajectories of L steps.

    False alarms below 1e-5 by five standard errors, and a bias of order h beside it.
    """
    bias, error = stationary_bias("sghmc", {"step_size": 0.04}, 2000, 300)
    assert abs(bias - 1 / 9) < 5 * error + 0.01
    assert error < 0.01


def test_tempered_smc_weighs_modes_and_evidence():
    def loglikelihood(x):
        wide = jnp.log(0.3) - 0.5 * jnp.sum((x + 5) ** 2)
        narrow = jnp.log(0.7) - 2 * jnp.sum((x - 5) ** 2) + jnp.log(4)
        return jnp.logaddexp(wide, narrow)

    prior = Prior(
        lambda key: jax.random.uniform(key, (2,), minval=-20, maxval=20),
        lambda x: jnp.where(jnp.all(jnp.abs(x) < 20), -2 * jnp.log(40.0), -jnp.inf),
    )
    target = Target(lambda x: loglikelihood(x) + prior.logdensity(x), prior=prior)
    draws, info, _, _ = sample("tempered_smc", target, jnp.zeros(2), 0, 1000)
    right = np.asarray(draws)[:, 0] > 0
    # resampling round after round leaves an error of about 0.03
    assert abs(right.mean() - 0.7) < 0.12
    # evidence 2 pi / 40^2
    truth = np.log(2 * np.pi / 1600)
    assert abs(float(info.log_evidence[0]) - truth) < 0.3
    assert not np.any(info.is_divergent)


def test_tempered_smc_says_when_temperatures_ran_out():
    _, info, _, _ = sample(
        "tempered_smc", GAUSSIAN, GAUSSIAN.position, 0, 5, max_num_temperatures=2
    )
    assert np.all(info.is_divergent)
