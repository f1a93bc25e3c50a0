"""Both moves leave the posterior invariant, whatever the modes say of it.

Tolerances are four and a half standard errors, with fixed seeds: false alarms below
1e-4 for the file.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.modes.mixture import modes_of
from nutfree.numerics.evaluation import counted_value_and_grad
from nutfree.paths.polish import Point, polish, start_at

WEIGHTS = np.array([0.25, 0.75])
MEANS = np.array([[-2.0, 0.0], [2.0, 1.0]])
SCALES = np.array([[0.5, 1.0], [1.0, 0.3]])


def logdensity(u):
    squares = jnp.sum(((u - MEANS) / SCALES) ** 2, axis=-1)
    log_weights = jnp.log(WEIGHTS) - jnp.log(SCALES).sum(-1)
    return jax.nn.logsumexp(log_weights - 0.5 * squares)


EVALUATE = counted_value_and_grad(logdensity)
#: Wrong in centre, width, direction and weight, with a spare row.
TURN = jnp.array([[0.8, -0.6], [0.6, 0.8]])
MODES = modes_of(
    jnp.array([[-1.8, 0.3], [2.3, 0.8], [0.0, 0.0]]),
    jnp.array([[0.6, 0.7], [0.8, 0.5], [1.0, 1.0]]),
    jnp.stack([TURN, TURN.T, TURN]),
    jnp.array([0.0, -1.0, -jnp.inf]),
)


def exact_draws(num_draws):
    rng = np.random.default_rng(0)
    k = rng.choice(2, p=WEIGHTS, size=num_draws)
    return MEANS[k] + SCALES[k] * rng.standard_normal((num_draws, 2))


@jax.jit
def _run(keys, starts, options):
    def one(key, u):
        value, grad, _ = EVALUATE(u, 0)
        return polish(key, Point(u, value, grad), EVALUATE, MODES, **options)

    return jax.vmap(one)(keys, starts)


def run(starts, num_steps, num_jumps):
    """The numbers of moves are arguments: one program for each number of starts."""
    keys = jax.random.split(jax.random.key(1), len(starts))
    options = {"step_size": 0.7, "num_steps": num_steps, "num_jumps": num_jumps}
    return _run(keys, jnp.asarray(starts, jnp.float32), options)


@pytest.mark.optimised
def test_exact_draws_stay_exact():
    starts = exact_draws(40_000)
    expected = np.concatenate([starts, starts**2, starts > 0], axis=1)
    for numbers in ((6, 0), (1, 9)):
        end = run(starts, *numbers)
        u = np.asarray(end.point.u)
        found = np.concatenate([u, u**2, u > 0], axis=1)
        error = np.sqrt((found.var(0) + expected.var(0)) / len(u))
        assert (abs(found.mean(0) - expected.mean(0)) < 4.5 * error).all()
        assert 0.2 < end.acceptance_rate.mean() < 0.95


@pytest.mark.slow
def test_jumps_repair_the_weights_of_modes():
    end = run(np.tile(MEANS[0], (4000, 1)), 20, 20)
    share = (np.asarray(end.point.u)[:, 0] > 0).mean()
    # one standard error is 0.007
    assert abs(share - np.mean(exact_draws(400_000)[:, 0] > 0)) < 0.035
    assert end.jump_rate.mean() > 0.1


def test_moves_are_counted_one_gradient_each():
    assert (run(exact_draws(5), 5, 2).spent == 7).all()


def test_a_start_that_is_not_finite_is_replaced():
    otherwise = Point(jnp.zeros(2), *EVALUATE(jnp.zeros(2), 0)[:2])
    point, lost, count = start_at(jnp.array([jnp.nan, 0.0]), otherwise, EVALUATE, 3)
    assert lost
    assert count == 4
    np.testing.assert_array_equal(point.u, otherwise.u)


def test_log_densities_are_means_over_halves_of_halves_of_the_moves():
    # the first moves do not depend on how many there are
    starts = exact_draws(5)
    values = np.stack([run(starts, n, 0).point.value for n in range(1, 9)], axis=1)
    parts = np.asarray(run(starts, 8, 0).log_densities)
    np.testing.assert_allclose(parts[:, 0], values[:, 4:].mean(1), rtol=1e-5)
    np.testing.assert_allclose(parts[:, 1], values[:, 2:4].mean(1), rtol=1e-5)
    np.testing.assert_allclose(parts[:, 2], values[:, 1], rtol=1e-5)
    np.testing.assert_allclose(parts[:, 3], values[:, 0], rtol=1e-5)
    assert np.isnan(parts[:, 4]).all()
