"""Every estimator of D(m, s) = E[X | X + s z = m] against a mixture's closed form.

Tolerances are five standard errors or more, with fixed seeds: false alarms below 1e-6.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.numerics.skrock import reach as skrock_reach
from nutfree.paths.denoisers import (
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

        asked = call(0, (None, denoiser.init(M), jnp.asarray(0)))[0]
        none = jax.tree.map(jnp.zeros_like, asked)
        start = (none, denoiser.init(M), jnp.asarray(0))
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


def test_student_t_estimates_are_the_integrals_over_a_grid():
    s, nu = 0.7, 3.0
    axis = jnp.linspace(-6, 6, 601)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    squares = jnp.sum((grid - M) ** 2, -1) / s**2
    tilted = jax.vmap(logdensity)(grid) - 0.5 * (nu + 2) * jnp.log1p(squares / nu)
    weights = jax.nn.softmax(tilted)
    # the score of the law of m, as in the paper
    pull = ((nu + 2) / (nu + squares))[:, None] * (grid - M)
    denoiser = slow_fast(logdensity, degrees_of_freedom=nu, **SMALL_STEP)
    found = jax.tree.map(lambda x: x.mean(0), estimates(denoiser, s, 2000, 20)[0])
    np.testing.assert_allclose(found.pulled, M + weights @ pull, atol=0.03)
    np.testing.assert_allclose(found.mean, weights @ grid, atol=0.03)
    np.testing.assert_allclose(found.spread, weights @ (nu + squares) / nu, rtol=0.05)


def test_student_t_with_many_degrees_of_freedom_is_gaussian():
    denoiser = slow_fast(logdensity, degrees_of_freedom=1e6, **SMALL_STEP)
    found = jax.tree.map(lambda x: x.mean(0), estimates(denoiser, 0.7, 2000, 20)[0])
    np.testing.assert_allclose(found.pulled, exact(0.7), atol=0.03)
    np.testing.assert_allclose(found.spread, 1.0, atol=1e-3)


def test_sk_rock_agrees_with_the_closed_form_and_counts_its_stages():
    options = SMALL_STEP | {"step_size": 0.5, "num_stages": 4}
    found, count = estimates(slow_fast(logdensity, **options), 0.7, 2000, 5)
    np.testing.assert_allclose(found.mean(0), exact(0.7), atol=0.03)
    assert count[0] == 5 * 40 * (4 + 1)


def test_sk_rock_needs_fewer_gradients_on_a_stiff_fast_process():
    # sds from 1 to 0.03, and a step that the narrowest sets; the chain starts at m
    sd = jnp.logspace(0, -1.5, 2)
    target = sd**2 * M / (sd**2 + 1.0)

    def error(num_steps, num_stages, step_size):
        denoiser = slow_fast(
            lambda x: -0.5 * jnp.sum((x / sd) ** 2),
            num_steps=num_steps,
            width=jnp.full(2, sd[1]),
            step_size=step_size,
            num_stages=num_stages,
        )
        found, count = estimates(denoiser, 1.0, 300)
        return float(jnp.sqrt(jnp.mean((found - target) ** 2))), int(count[0])

    # half of what is stable, for both
    plain, plain_cost = error(1024, 0, 2.0)
    stabilised, cost = error(21, 5, skrock_reach(5))
    assert cost * 8 < plain_cost
    assert stabilised < 1.1 * plain
