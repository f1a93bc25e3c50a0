"""Every estimator of D(m, s) = E[X | X + s z = m] against a mixture's closed form.

Tolerances are five standard errors or more, with fixed seeds: false alarms below 1e-6.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.dynamics.denoisers import (
    gaussian_mixture_denoiser,
    importance,
    langevin,
    plug_in,
    slow_fast,
)

WEIGHTS = jnp.array([0.3, 0.7])
MEANS = jnp.array([[-1.0, 0.5], [1.5, 0.0]])
SCALES = jnp.array([0.8, 0.5])
M = jnp.array([0.3, -0.2])


def logdensity(x):
    squares = jnp.sum((x - MEANS) ** 2, axis=-1) / SCALES**2
    return jax.nn.logsumexp(jnp.log(WEIGHTS) - 0.5 * squares - 2 * jnp.log(SCALES))


def estimates(denoiser, s, num_draws, num_calls=1):
    """Independent estimates, each the last of `num_calls` along a constant path."""

    def one(key):
        def call(i, carry):
            _, state, count = carry
            key_i = jax.random.fold_in(key, i)
            return denoiser.step(key_i, state, M, jnp.asarray(s), count)

        start = (M, denoiser.init(M), jnp.asarray(0))
        estimate, _, count = jax.lax.fori_loop(0, num_calls, call, start)
        return estimate, count

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_draws))


def exact(s):
    oracle = gaussian_mixture_denoiser(WEIGHTS, MEANS, SCALES)
    return oracle.step(jax.random.key(0), (), M, jnp.asarray(s), 0)[0]


def test_mixture_denoiser_is_the_mean_on_a_grid():
    s = 0.7
    axis = jnp.linspace(-6, 6, 601)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    tilted = jax.vmap(logdensity)(grid) - 0.5 * jnp.sum((grid - M) ** 2, -1) / s**2
    np.testing.assert_allclose(jax.nn.softmax(tilted) @ grid, exact(s), atol=1e-3)


SMALL_STEP = {"num_steps": 40, "width": jnp.full(2, 0.5), "step_size": 0.1}


@pytest.mark.parametrize(
    ("denoiser", "s", "num_calls", "tolerance"),
    [
        (slow_fast(logdensity, **SMALL_STEP), 0.7, 20, 0.03),
        (langevin(logdensity, warm=True, **SMALL_STEP), 0.7, 20, 0.03),
        (langevin(logdensity, **SMALL_STEP | {"num_steps": 300}), 0.7, 1, 0.03),
        (importance(logdensity, num_draws=400), 0.7, 1, 0.02),
        (plug_in(logdensity), 0.05, 1, 1e-3),
    ],
    ids=["slow_fast", "langevin warm", "langevin restarted", "importance", "plug_in"],
)
def test_estimator_agrees_with_the_closed_form(denoiser, s, num_calls, tolerance):
    mean = estimates(denoiser, s, 2000, num_calls)[0].mean(0)
    np.testing.assert_allclose(mean, exact(s), atol=tolerance)


def test_slow_fast_has_no_variance_on_a_gaussian_of_its_width():
    width = jnp.array([0.3, 2.0])
    center = jnp.array([1.0, -1.0])
    for s in (0.05, 1.0, 5.0):
        denoiser = slow_fast(
            lambda x: -0.5 * jnp.sum(((x - center) / width) ** 2),
            num_steps=3,
            width=width,
            reach=jnp.inf,
        )
        draws, _ = estimates(denoiser, s, 50)
        expected = (width**2 * M + s**2 * center) / (width**2 + s**2)
        np.testing.assert_allclose(draws, jnp.tile(expected, (50, 1)), atol=1e-5)


def test_importance_bias_halves_with_twice_the_draws():
    # the bias is 0.11 at 10 draws; three decimals of it are noise
    def bias(num_draws):
        denoiser = importance(logdensity, num_draws=num_draws)
        mean = estimates(denoiser, 2.0, 200_000)[0].mean(0)
        return np.linalg.norm(mean - exact(2.0))

    assert 1.6 < bias(20) / bias(40) < 2.5


def test_evaluations_are_counted():
    assert estimates(slow_fast(logdensity, **SMALL_STEP), 0.7, 2, 3)[1][0] == 120
    assert estimates(importance(logdensity, num_draws=7), 0.7, 2, 3)[1][0] == 21
    assert estimates(plug_in(logdensity), 0.7, 2, 3)[1][0] == 3


def test_fast_chain_survives_a_region_without_density():
    def half(x):
        return jnp.where(x[0] > 0.0, -0.5 * jnp.sum(x**2), jnp.nan)

    draws, _ = estimates(slow_fast(half, **SMALL_STEP), 0.7, 100, 5)
    assert np.isfinite(draws).all()
