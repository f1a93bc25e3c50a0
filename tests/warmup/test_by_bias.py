"""The step that a stated inflation of variances allows, and the inflation it has."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nutfree as nf
from nutfree import registry
from nutfree.numerics.langevin import predicted_inflation, step_for_inflation

ula = registry.get("ula")
DIM, NUM_CHAINS, NUM_STEPS = 20, 10_000, 20


@pytest.mark.parametrize(("noise", "curvature"), [(0.0, 1.0), (30.0, 1.0), (2.0, 9.0)])
def test_step_size_gives_the_inflation_asked_for(noise, curvature):
    step_size = step_for_inflation(0.05, noise, curvature)
    inflation = predicted_inflation(step_size, noise, curvature)
    np.testing.assert_allclose(inflation, 0.05, rtol=1e-4)


def test_an_unstable_step_predicts_infinite_inflation():
    assert predicted_inflation(4.0, 0.0, 1.0) == jnp.inf


def covariance_of(correlation):
    """Scales from 0.1 to 10, neighbours correlated as in an autoregression."""
    places = np.arange(DIM)
    scales = np.geomspace(0.1, 10, DIM)
    correlations = correlation ** np.abs(places[:, None] - places)
    return scales[:, None] * correlations * scales


@partial(jax.jit, static_argnames="options")
def tuned_chains(precision, starts, options):
    """What warm-up finds, and the ends of chains from `starts`."""

    def logdensity(x):
        return -0.5 * x @ precision @ x

    warmup, kernel = ula.warmup(options), ula.build_kernel(options)
    params = warmup.init(jax.random.key(0), jnp.ones(DIM), logdensity, 1).params

    def one(key, x):
        def step(state, key):
            return kernel(key, state, logdensity, **params)

        state, info = ula.init(x, logdensity), jax.random.split(key, NUM_STEPS)
        state, info = jax.lax.scan(step, state, info)
        return state.position, info.predicted_inflation[0]

    keys = jax.random.split(jax.random.key(1), NUM_CHAINS)
    return params, jax.vmap(one)(keys, starts)


@pytest.mark.slow
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_the_inflation_on_a_gaussian_is_the_one_predicted(dense, correlation):
    covariance = covariance_of(correlation)
    draws = np.random.default_rng(0).normal(size=(NUM_CHAINS, DIM))
    starts = draws @ np.linalg.cholesky(covariance).T
    options = ula.options(max_inflation=0.25, dense_mass=dense)
    params, (ends, predicted) = tuned_chains(
        jnp.asarray(np.linalg.inv(covariance)), jnp.asarray(starts), options
    )
    np.testing.assert_allclose(predicted, 0.25, rtol=1e-3)
    # in the coordinates that the preconditioner scales to one, along the axes of the
    # precision there, a variance v goes to (1 - h L/2)^2 v + h in a step
    found = np.asarray(params["inverse_mass_matrix"], float)
    root = np.linalg.cholesky(found) if dense else np.diag(np.sqrt(found))
    values, axes = np.linalg.eigh(root.T @ np.linalg.inv(covariance) @ root)
    h = float(params["step_size"])
    kept = (1 - 0.5 * h * values) ** 2
    limit = 1 / (values * (1 - 0.25 * h * values))
    expected = limit + kept**NUM_STEPS * (1 / values - limit)
    got = np.var(np.linalg.solve(root, np.asarray(ends, float).T).T @ axes, axis=0)
    # relative Monte-Carlo errors of 0.014 each, four and a half: 5e-4 false alarms
    np.testing.assert_allclose(got, expected, rtol=0.064)
    # the worst axis has come to its end
    worst = got[-1] * values[-1]
    assert worst == pytest.approx(1 + float(predicted[0]), rel=0.064)
    if dense:
        # every axis is the worst: four and a half errors of 0.014 / sqrt(20)
        assert np.mean(got * values) == pytest.approx(1.25, rel=0.014)
        np.testing.assert_allclose(found, covariance, rtol=0.02, atol=0.02)


def test_without_warmup_a_chain_begins_where_the_user_has_put_it():
    warmup = ula.warmup()
    start = {"a": jnp.asarray(2.0), "b": jnp.ones(2)}

    def logdensity(x):
        return -0.5 * (x["a"] ** 2 + jnp.sum(x["b"] ** 2))

    init = partial(warmup.init, jax.random.key(0), start, logdensity)
    adapt = jax.jit(lambda: init(0))()
    np.testing.assert_array_equal(adapt.position["b"], start["b"])
    moved = jax.jit(lambda: init(1))()
    assert jnp.all(moved.position["b"] != start["b"])
    # the step is 4 * 0.05 / 1.05
    np.testing.assert_allclose(adapt.params["step_size"], 0.1905, rtol=1e-3)


@jax.custom_vjp
def _square(x):
    return x**2


_square.defvjp(lambda x: (x**2, x), lambda x, bar: (2 * x * bar,))


def test_a_density_with_a_reverse_mode_rule_alone_has_a_curvature():
    found = nf.ula.warmup(
        lambda x: -0.5 * jnp.sum(_square(x) / 4), jax.random.key(0), jnp.ones(2), 1
    )
    covariance = found.parameters["inverse_mass_matrix"]
    np.testing.assert_allclose(covariance, 4 * jnp.eye(2), rtol=1e-3, atol=1e-4)
