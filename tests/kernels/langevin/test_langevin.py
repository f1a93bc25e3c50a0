"""ULA and MALA: the law of the discretised chain on a Gaussian, and its bias."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nutfree as nf

VARIANCES = jnp.asarray([1.0, 4.0, 0.25])


def gaussian(x):
    return -0.5 * jnp.sum(x**2 / VARIANCES)


@cache
def program(api, num_chains, num_steps):
    """Last positions of many chains that started from the Gaussian itself."""

    def last(key, params):
        start_key, key = jax.random.split(key)
        algorithm = api(gaussian, **params)
        state = algorithm.init(jnp.sqrt(VARIANCES) * jax.random.normal(start_key, (3,)))

        def step(state, key):
            return algorithm.step(key, state)[0], None

        keys = jax.random.split(key, num_steps)
        return jax.lax.scan(step, state, keys)[0].position

    return jax.jit(jax.vmap(last, (0, None)))


def draws(api, num_chains, num_steps, **params):
    params = jax.tree.map(jnp.asarray, params)
    keys = jax.random.split(jax.random.key(0), num_chains)
    return np.asarray(program(api, num_chains, num_steps)(keys, params))


def stationary_variance(step_size, preconditioner):
    """Of x' = (1 - h c / 2 s^2) x + sqrt(h c) xi, coordinate by coordinate."""
    contraction = 1 - 0.5 * step_size * preconditioner / VARIANCES
    return np.asarray(step_size * preconditioner / (1 - contraction**2))


@pytest.mark.parametrize("preconditioner", [jnp.asarray(0.25), VARIANCES])
def test_ula_has_the_variance_of_its_discretised_chain(preconditioner):
    """Tolerance of five standard errors, sqrt(2/n) = 0.032: false alarms below 1e-5."""
    x = draws(nf.ula, 2000, 100, step_size=0.8, inverse_mass_matrix=preconditioner)
    expected = stationary_variance(0.8, preconditioner)
    np.testing.assert_allclose(x.var(0), expected, rtol=0.16)
    np.testing.assert_allclose(x.mean(0) / np.sqrt(expected), 0.0, atol=0.12)
    correlation = np.corrcoef(x.T) - np.eye(3)
    np.testing.assert_allclose(correlation, 0.0, atol=0.12)


@pytest.mark.slow
def test_ula_bias_halves_with_the_step_size():
    """Bias h/4 of the variance; 30,000 chains have a standard error of 0.005."""
    inflation = []
    for step_size in (0.8, 0.4):
        params = {"step_size": step_size, "inverse_mass_matrix": VARIANCES}
        x = draws(nf.ula, 30_000, 30, **params)
        inflation.append(np.mean(x.var(0) / VARIANCES) - 1)
    assert inflation[0] == pytest.approx(1 / (1 - 0.2) - 1, abs=0.03)
    assert inflation[0] / inflation[1] == pytest.approx(2.25, rel=0.2)


def test_mala_has_no_bias_at_the_step_where_ula_has_a_quarter():
    x = draws(nf.mala, 20_000, 30, step_size=0.8, inverse_mass_matrix=VARIANCES)
    np.testing.assert_allclose(x.var(0) / VARIANCES, 1.0, atol=0.05)


def test_malas_warmup_reaches_its_acceptance_rate_and_the_scales():
    """Scales to a factor of two; the rate to 0.1."""
    found = nf.mala.warmup(gaussian, jax.random.key(0), jnp.zeros(3), num_steps=1000)
    algorithm = nf.mala(gaussian, **found.parameters)

    def step(state, key):
        return algorithm.step(key, state)

    keys = jax.random.split(jax.random.key(1), 2000)
    _, info = jax.lax.scan(step, found.state, keys)
    assert float(jnp.mean(info.acceptance_rate)) == pytest.approx(0.574, abs=0.1)
    ratio = jnp.diag(found.parameters["inverse_mass_matrix"]) / VARIANCES
    assert np.all((ratio > 0.5) & (ratio < 2))
