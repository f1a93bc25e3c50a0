"""Every estimator of D(m, s) = E[X | X + s z = m] against a mixture's closed form.

Tolerances are five standard errors or more, with fixed seeds: false alarms below 1e-6.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.modes.mixture import modes_of
from nutfree.numerics.skrock import reach as skrock_reach
from nutfree.paths.by_modes import by_modes
from nutfree.paths.denoisers import importance, plug_in
from nutfree.paths.slow_fast import slow_fast
from tests.paths.oracles import gaussian_mixture_denoiser

WEIGHTS = jnp.array([0.3, 0.7])
MEANS = jnp.array([[-1.0, 0.5], [1.5, 0.0]])
SCALES = jnp.array([0.8, 0.5])
M = jnp.array([0.3, -0.2])
S = 0.7


def logdensity(x):
    squares = jnp.sum((x - MEANS) ** 2, axis=-1) / SCALES**2
    return jax.nn.logsumexp(jnp.log(WEIGHTS) - 0.5 * squares - 2 * jnp.log(SCALES))


@partial(jax.jit, static_argnums=0)
def _estimates(make_denoiser, keys, m, s, num_calls, *args):
    denoiser = make_denoiser(*args)

    def one(key):
        def call(i, carry):
            _, state, count = carry
            return denoiser.step(jax.random.fold_in(key, i), state, m, s, count)

        start = (denoiser.init(m), jnp.asarray(0))
        shapes = jax.eval_shape(denoiser.step, key, start[0], m, s, start[1])[0]
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        estimate, _, count = jax.lax.fori_loop(0, num_calls, call, (none, *start))
        return estimate, count

    return jax.vmap(one)(keys)


def estimates(make_denoiser, s, num_draws, num_calls=1, *args, m=M):
    """Independent estimates, each the last of `num_calls` along a constant path."""
    keys = jax.random.split(jax.random.key(0), num_draws)
    return _estimates(make_denoiser, keys, m, jnp.asarray(s), num_calls, *args)


def exact(s):
    oracle = gaussian_mixture_denoiser(WEIGHTS, MEANS, SCALES)
    return oracle.step(jax.random.key(0), (), M, jnp.asarray(s), 0)[0].mean


AXIS = jnp.linspace(-6, 6, 601)
GRID = jnp.stack(jnp.meshgrid(AXIS, AXIS), -1).reshape(-1, 2)


def test_mixture_denoiser_is_the_mean_on_a_grid():
    squares = jnp.sum((GRID - M) ** 2, -1) / S**2
    tilted = jax.vmap(logdensity)(GRID) - 0.5 * squares
    np.testing.assert_allclose(jax.nn.softmax(tilted) @ GRID, exact(S), atol=1e-3)


SMALL_STEP = {"num_steps": 40, "width": lambda y: jnp.full(2, 0.5), "step_size": 0.1}


def carried():
    return slow_fast(logdensity, **SMALL_STEP)


def restarted():
    long = SMALL_STEP | {"num_steps": 300}
    return slow_fast(logdensity, restart_above=-1.0, **long)


def sk_rock():
    stages = SMALL_STEP | {"step_size": 0.5, "num_stages": 4}
    return slow_fast(logdensity, **stages)


def many_weighted():
    return importance(logdensity, num_draws=400)


@pytest.mark.parametrize(
    ("make_denoiser", "s", "num_calls", "tolerance", "cost"),
    [
        (carried, S, 20, 0.03, 20 * 40),
        (restarted, S, 1, 0.03, 300),
        pytest.param(sk_rock, S, 5, 0.03, 5 * 40 * (4 + 1), marks=pytest.mark.slow),
        (many_weighted, S, 1, 0.02, 400),
        (lambda: plug_in(logdensity), 0.05, 1, 1e-3, 1),
    ],
    ids=["carried", "restarted", "sk_rock", "importance", "plug_in"],
)
def test_estimator_agrees_with_the_closed_form(
    make_denoiser, s, num_calls, tolerance, cost
):
    found, count = estimates(make_denoiser, s, 2000, num_calls)
    np.testing.assert_allclose(found.mean.mean(0), exact(s), atol=tolerance)
    np.testing.assert_array_equal(found.pulled, found.mean)
    assert (count == cost).all()


def test_slow_fast_has_no_variance_on_a_gaussian_of_its_width():
    # so narrow that no drift is cut off
    width = jnp.array([0.03, 0.2])
    center = jnp.array([0.1, -0.1])
    m = 0.1 * M

    def make_denoiser():
        return slow_fast(
            lambda x: -0.5 * jnp.sum(((x - center) / width) ** 2),
            num_steps=3,
            width=lambda y: width,
        )

    for s in (0.005, 0.1, 0.5):
        draws, _ = estimates(make_denoiser, s, 50, m=m)
        expected = (width**2 * m + s**2 * center) / (width**2 + s**2)
        expected = jnp.tile(expected, (50, 1))
        np.testing.assert_allclose(draws.mean, expected, atol=1e-6)


@pytest.mark.slow
def test_importance_bias_halves_with_twice_the_draws():
    # the bias is 0.11 at 10 draws; three decimals of it are noise
    def bias(num_draws):
        found, _ = estimates(weighted, 2.0, 200_000, 1, num_draws)
        return np.linalg.norm(found.mean.mean(0) - exact(2.0))

    def weighted(num_draws):
        return importance(logdensity, num_draws=num_draws)

    assert 1.6 < bias(20) / bias(40) < 2.5


def test_fast_chain_survives_a_region_without_density():
    def half(x):
        return jnp.where(x[0] > 0.0, -0.5 * jnp.sum(x**2), jnp.nan)

    found, _ = estimates(lambda: slow_fast(half, **SMALL_STEP), S, 100, 5)
    assert np.isfinite(found.mean).all()


def student(degrees_of_freedom):
    options = {"degrees_of_freedom": degrees_of_freedom} | SMALL_STEP
    return slow_fast(logdensity, **options)


@pytest.mark.slow
@pytest.mark.parametrize("nu", [3.0, 1e6])
def test_student_t_estimates_are_the_integrals_over_a_grid(nu):
    squares = jnp.sum((GRID - M) ** 2, -1) / S**2
    tilted = jax.vmap(logdensity)(GRID) - 0.5 * (nu + 2) * jnp.log1p(squares / nu)
    weights = jax.nn.softmax(tilted)
    # the score of the law of m, as in the paper
    pull = ((nu + 2) / (nu + squares))[:, None] * (GRID - M)
    draws, _ = estimates(student, S, 2000, 10, nu)
    found = jax.tree.map(lambda x: x.mean(0), draws)
    np.testing.assert_allclose(found.pulled, M + weights @ pull, atol=0.03)
    np.testing.assert_allclose(found.mean, weights @ GRID, atol=0.03)
    np.testing.assert_allclose(found.spread, weights @ (nu + squares) / nu, rtol=0.05)
    if nu == 1e6:
        # Gaussian noise
        np.testing.assert_allclose(found.pulled, exact(S), atol=0.03)
        np.testing.assert_allclose(found.spread, 1.0, atol=1e-3)


def test_sk_rock_needs_fewer_gradients_on_a_stiff_fast_process():
    # sds from 1 to 0.03, and a step that the narrowest sets; the chain starts at m
    sd = jnp.logspace(0, -1.5, 2)
    target = sd**2 * M / (sd**2 + 1.0)

    def error(num_steps, num_stages, step_size):
        def make_denoiser():
            return slow_fast(
                lambda x: -0.5 * jnp.sum((x / sd) ** 2),
                num_steps=num_steps,
                width=lambda y: jnp.full(2, sd[1]),
                step_size=step_size,
                num_stages=num_stages,
            )

        found, count = estimates(make_denoiser, 1.0, 300)
        return float(jnp.sqrt(jnp.mean((found.mean - target) ** 2))), int(count[0])

    # half of what is stable, for both
    plain, plain_cost = error(1024, 0, 2.0)
    stabilised, cost = error(21, 5, skrock_reach(5))
    assert cost * 8 < plain_cost
    assert stabilised < 1.1 * plain


def test_the_mean_over_modes_is_taken_in_closed_form():
    """On the mixture of the modes itself, where hardly any variance is left: 2,000
    estimates, five standard errors, and a hundredth of the variance of drawn modes."""
    means = jnp.array([[-2.0, 0.5], [3.0, 0.0]])
    width = jnp.array([[0.4, 0.4], [0.25, 0.25]])

    def mixture(x):
        squares = jnp.sum((x - means) ** 2 / width**2 + 2 * jnp.log(width), axis=-1)
        return jax.nn.logsumexp(jnp.log(WEIGHTS) - 0.5 * squares)

    axes = jnp.broadcast_to(jnp.eye(2), (2, 2, 2))
    modes = modes_of(means, width, axes, jnp.log(WEIGHTS))
    m = jnp.array([0.4, 0.1])

    def make_denoiser():
        return by_modes(mixture, modes, num_steps=1, step_size=0.5)

    found, count = estimates(make_denoiser, 1.5, 2000, m=m)
    oracle = gaussian_mixture_denoiser(WEIGHTS, means, width[:, 0])
    exact = oracle.step(jax.random.key(0), (), m, jnp.asarray(1.5), 0)[0].mean
    error = found.mean.std(0) / 2000**0.5
    np.testing.assert_allclose(found.mean.mean(0), exact, atol=1e-4 + 5 * error.max())
    assert (found.mean.std(0) ** 2 < 0.01 * 0.3 * 0.7 * 5**2).all()
    assert (count == 1).all()
