"""Each move leaves the posterior invariant, and q is the density of its draws.

Tolerances are four and a half standard errors, with fixed seeds: false alarms below
1e-3 for the file.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.kernels.multiscale.moves import (
    chain_point,
    follow,
    global_move,
    jump_move,
    local_move,
)
from nutfree.kernels.multiscale.proposal import Mixture, draw, evaluate_mixture
from nutfree.kernels.multiscale.shifts import shifts_between, summands
from nutfree.modes.mixture import modes_of
from tests.paths.test_polish import EVALUATE, MODES, exact_draws

MIXTURE = Mixture(
    MODES._replace(log_weight=jax.nn.log_softmax(MODES.log_weight)),
    jnp.log(jnp.array([0.5, 0.3, 0.2])),
)
SHIFTS = jax.jit(shifts_between)(MIXTURE.modes)


def local(key, at):
    return local_move(key, at, jnp.asarray(0.9), 3)


def transport(key, at):
    return jump_move(key, at, MIXTURE, SHIFTS, 0.0)


def shift(key, at):
    return jump_move(key, at, MIXTURE, SHIFTS, 1.0)


def independence(key, at):
    return global_move(key, at, MIXTURE)


@pytest.mark.parametrize("move", [local, transport, shift, independence])
def test_exact_draws_stay_exact(move):
    starts = exact_draws(40_000)

    def one(key, u):
        value, grad, _ = EVALUATE(u, 0)
        start = chain_point(u, value, grad, MIXTURE)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(4))

        def step(at, key):
            new, _, rate, _ = follow(at, move(key, at), EVALUATE, MIXTURE, 0)
            return new, rate

        point, rates = jax.lax.scan(step, start, keys)
        # the mixture is that at the point, whichever moves were accepted
        fresh = evaluate_mixture(MIXTURE, point.u).log_density
        apart = point.mixture.log_density - fresh
        return point.u, rates.mean(), apart

    keys = jax.random.split(jax.random.key(1), len(starts))
    u, rate, apart = jax.jit(jax.vmap(one))(keys, jnp.asarray(starts, jnp.float32))
    assert np.abs(apart).max() < 1e-3

    def summaries(u):
        return np.concatenate([u, u**2, u[:, :1] * u[:, 1:], u > 0], axis=1)

    before, after = summaries(starts), summaries(np.asarray(u))
    # the draws are paired with their starts, which makes the difference no larger
    error = np.sqrt((before.var(0) + after.var(0)) / len(u))
    assert (abs(after.mean(0) - before.mean(0)) < 4.5 * error).all()
    assert 0.1 < rate.mean() < 0.99
    assert np.abs(np.asarray(u) - starts).max() > 1.0


def test_mixture_is_the_normalised_density_of_its_draws():
    """In one dimension, by a grid and by the share of draws in intervals."""
    modes = modes_of(
        jnp.array([[-1.0], [2.0]]),
        jnp.array([[0.3], [0.6]]),
        jnp.ones((2, 1, 1)),
        jnp.log(jnp.array([0.4, 0.6])),
    )
    mixture = Mixture(modes, jnp.log(jnp.array([0.2, 0.3, 0.5])))
    grid = jnp.linspace(-400.0, 400.0, 800_001)[:, None]
    density = np.exp(
        jax.jit(jax.vmap(lambda u: evaluate_mixture(mixture, u).log_density))(grid)
    )
    mass = np.cumsum(density) * 1e-3
    assert mass[-1] == pytest.approx(1.0, abs=1e-3)
    keys = jax.random.split(jax.random.key(0), 100_000)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: draw(key, mixture)))(keys))[:, 0]
    for edge in (-5.0, -1.3, -1.0, 0.0, 1.0, 2.0, 3.0, 6.0):
        expected = mass[np.searchsorted(grid[:, 0], edge)]
        assert abs((draws < edge).mean() - expected) < 4.5 * 0.5 / 100_000**0.5 + 1e-3


def at_points(points):
    ones = jnp.ones_like(points)
    axes = jnp.broadcast_to(jnp.eye(points.shape[1]), (*points.shape, points.shape[1]))
    return modes_of(points, ones, axes, jnp.zeros(len(points)))


@pytest.fixture(scope="module")
def shifts_of():
    return jax.jit(shifts_between)


def test_of_modes_too_many_to_be_known_the_steps_between_wells_are_found(shifts_of):
    """A hundred of 2^12 combinations, hardly any two a single well apart."""
    steps = np.linspace(3.0, 5.0, 12)
    right = np.random.default_rng(0).random((100, 12)) > 0.5
    shifts = shifts_of(at_points(jnp.asarray(right * steps, jnp.float32)))
    assert list(shifts.number) == [256, 12]
    found = np.abs(shifts.vectors[1, :12])
    np.testing.assert_allclose(found[found.argmax(1).argsort()], np.diag(steps), 1e-3)


def test_modes_that_are_known_have_no_other_shifts_and_one_mode_has_none(shifts_of):
    points = jax.random.normal(jax.random.key(0), (100, 12))
    modes = at_points(points)._replace(log_weight=jnp.log(jnp.arange(100) < 4.0))
    assert list(shifts_of(modes).number) == [6, 0]
    assert list(shifts_between(at_points(points[:1])).number) == [0, 0]


def test_summands_are_of_what_is_there():
    vectors = jnp.array([[4.0, 0.0], [4.0, 3.0], [0.0, 3.0], [9.0, 9.0]])
    found, live = summands(vectors, jnp.array([True, True, True, False]))
    assert list(live) == [True, True, False, False]
    np.testing.assert_allclose(np.abs(found[:2]).sum(0), [4.0, 3.0])
