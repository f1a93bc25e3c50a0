"""How noisy a batch's gradient is around the mode, and which rows make it less so.

The noise is measured at draws from the Gaussian at the mode. Where they are no stand-in
for the posterior, as their gradients are far larger than a Gaussian's (the posterior of
a network, say, is bent), the places are those of a short SGLD walk, and the
preconditioner is the inverse of the mean curvature there. Where even batches are noisy,
rows are drawn in proportion to their gradients at some of the places.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.minibatch.estimators import WANDERING, row_gradients
from nutfree.minibatch.gradients import (
    BLOCK_SIZE,
    Control,
    control_variate,
    plain,
    step_for_inflation,
    whitened_noise,
)
from nutfree.minibatch.mode import curvature_around
from nutfree.minibatch.sampling import even_shares, row_shares
from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.laplace import Laplace
from nutfree.numerics.preconditioning import matvec, root, transpose
from nutfree.target import Minibatch

#: Places at which the noise is measured; those of them at which the curvature is, if it
#: is not the mode's; and those at which the rows' gradients are compared.
NUM_PLACES, CURVATURE_PLACES, IMPORTANCE_PLACES = 64, 8, 4
#: A Gaussian's gradients have a mean square of d; up to so many times that is as good.
CURVED = 2.0
#: The most walks; the steps of each, and those over which it averages the noise for its
#: step size.
WALKS, WALK_STEPS, WALK_MEMORY = 2, 2048, 64
#: Numbers of a block of rows' gradients, or of the places, that are in memory at once.
MAX_NUMBERS = 2**20


class Surroundings(NamedTuple):
    """What was measured around a mode.

    covariance
        The mode's, or the inverse of the mean curvature at the places.
    noise
        V of each coordinate, in those in which the covariance is one, `(d,)`.
    shares
        The `Shares` of rows, or () where rows are drawn evenly.
    places
        `(k, d)`, roughly from the posterior.
    """

    covariance: jax.Array
    noise: jax.Array
    shares: Any
    places: jax.Array


def surroundings(
    rng_key: jax.Array,
    minibatch: Minibatch,
    draw_rows: Callable,
    mode: Laplace,
    control: Control,
    count: Any,
    *,
    batch_size: int,
    gradient: str,
    reshape: Callable,
    total: Callable,
    unequal: bool,
    limit: float,
    max_inflation: float,
) -> tuple[Surroundings, Any]:
    """Measure them.

    Args:
        draw_rows: `(rng_key, shares) -> Rows`.
        control: at the mode.
        count: gradients spent so far.
        batch_size: rows of a gradient; where it is all of them, there is no noise.
        gradient: name of the estimator.
        reshape: `mode -> mode`, with the covariance of the law that the kernel has.
        total: `(mode, noise) -> noise`, with what the kernel adds to that of batches.
        unequal: whether rows may be drawn unevenly.
        limit: the noise above which they are.
        max_inflation: of the walk, as of the kernel.
    """
    keys = jax.random.split(rng_key, 4)
    centre, num_data = mode.centre, minibatch.num_data
    dim, dtype = centre.size, centre.dtype
    wandering = gradient in WANDERING

    def gradient_at(key, pair, count, shares):
        rows = draw_rows(key, shares)
        if gradient == "plain":
            return plain(minibatch, rows, pair[0], (), count)
        # elsewhere than at the mode the sum is not that of the rows there: a constant
        there = Control(pair[1], control.rows_gradient)
        return control_variate(minibatch, rows, pair[0], there, count)

    def pairs_of(places, apart=False):
        """With where the estimate is exact: the mode, or a stand-in for the past."""
        others = jnp.broadcast_to(centre, places.shape)
        past = jnp.roll(places, len(places) // 2, axis=0)
        return places, jnp.where(apart, past, others)

    def in_all(covariance, noise):
        noise = total(mode._replace(covariance=covariance), noise)
        return jnp.where(jnp.isfinite(noise), noise, 1.0)

    def factor_of(covariance):
        return root(reshape(mode._replace(covariance=covariance)).covariance)

    def stage(i, carry):
        """The noise; at first better places, twice; then, there, better shares."""
        (covariance, noise, shares, places), due, count = carry
        factor = factor_of(covariance)

        def whiten(g):
            return matvec(transpose(factor), g)

        def estimate(key, pair, count):
            return gradient_at(key, pair, count, shares)

        pairs = pairs_of(places, wandering & (i == WALKS))
        measured, size, count = whitened_noise(
            keys[0], estimate, pairs, whiten, count, due
        )
        noise = jnp.where(due, in_all(covariance, measured), noise)
        usual = CURVED * dim * mode.curvature
        error = jnp.linalg.norm(measured) / len(places) ** 0.5
        curved = due & (i < WALKS) & ~(size < usual + 4 * error)

        def step_for(noise):
            noise = jnp.max(in_all(covariance, noise))
            return step_for_inflation(max_inflation, noise, mode.curvature)

        places, count = _walk(
            jax.random.fold_in(keys[1], i),
            estimate,
            jnp.where(i == 0, centre, places[-1]),
            centre,
            factor,
            places,
            step_for,
            count,
            curved,
        )
        around, count = curvature_around(
            keys[2], minibatch, _some(places, CURVATURE_PLACES), count, curved
        )
        covariance = jnp.where(curved, around, covariance)
        # the last time where it is meant, at the estimator's own pairs
        due = curved | (wandering & (i == WALKS - 1))
        if unequal:
            poor = (i == WALKS) & (jnp.max(noise) > limit)
            importance, count = _importance(
                minibatch,
                pairs_of(_some(places, IMPORTANCE_PLACES), wandering),
                gradient != "plain",
                whiten,
                count,
                poor,
            )
            shares = select(poor, row_shares(importance), shares)
            due = due | poor
        return Surroundings(covariance, noise, shares, places), due, count

    num_places = max(min(NUM_PLACES, MAX_NUMBERS // dim), CURVATURE_PLACES)
    draws = jax.random.normal(keys[3], (num_places, dim), dtype)
    factor = factor_of(mode.covariance)
    found = Surroundings(
        mode.covariance,
        in_all(mode.covariance, jnp.zeros_like(centre)),
        even_shares(num_data) if unequal else (),
        centre + jax.vmap(lambda z: matvec(factor, z))(draws),
    )
    carry = (found, jnp.asarray(True), count)
    stages = WALKS + (2 if unequal else 1)
    if batch_size >= num_data:
        stages = 0
    found, _, count = jax.lax.fori_loop(0, stages, stage, carry)
    return found, count


def _some(places: jax.Array, number: int) -> jax.Array:
    """So many of them, evenly."""
    return places[:: len(places) // number][:number]


def _walk(rng_key, estimate, start, centre, factor, places, step_for, count, due):
    """Positions of an SGLD walk, in the shape of `places`, `(k, d)`.

    It goes back to the mode where it gets lost. Where it is not `due`, the `places`
    are returned.

    Args:
        estimate: `(rng_key, (x, centre), count) -> (gradient, count)`.
        step_for: `noise -> step size`, of the noise V of each coordinate, `(d,)`.
    """

    def step(i, carry):
        x, noise, places, count = carry
        noise_key, *keys = jax.random.split(jax.random.fold_in(rng_key, i), 3)

        def from_batch(count, key):
            g, count = estimate(key, (x, centre), count)
            return count, matvec(transpose(factor), g)

        count, g = jax.lax.scan(from_batch, count, jnp.stack(keys))
        seen = 0.5 * (g[0] - g[1]) ** 2
        noise += (seen - noise) / jnp.minimum(i + 1, WALK_MEMORY)
        h = step_for(noise)
        xi = jax.random.normal(noise_key, x.shape, x.dtype)
        move = 0.5 * h * jnp.mean(g, axis=0) + jnp.sqrt(h) * xi
        new = (x + matvec(factor, move), noise)
        x, noise = select(is_finite(new), new, (centre, jnp.zeros_like(noise)))
        # the places are those of the second half
        half = WALK_STEPS // 2
        slot = jnp.maximum((i - half) * len(places) // half, 0)
        return x, noise, places.at[slot].set(x), count

    carry = (start, jnp.zeros_like(centre), places, count)
    rounds = jnp.where(due, WALK_STEPS, 0)
    _, _, places, count = jax.lax.fori_loop(0, rounds, step, carry)
    return places, count


def _importance(minibatch, pairs, relative: bool, whiten, count, due):
    """Root mean square of each row's whitened gradient, or of how it differs from that
    at a centre, over pairs of x and centre, `(k, d)` each; shape `(N,)`, zeros where
    it is not `due`."""
    num_data = minibatch.num_data
    num_pairs, dim = pairs[0].shape
    size = max(1, min(num_data, BLOCK_SIZE, MAX_NUMBERS // dim))
    num_blocks = -(-num_data // size)

    def block(i, squares):
        # the last block begins early enough to be whole
        start = jnp.minimum(i * size, num_data - size)
        indices = start + jnp.arange(size)

        def add(total, pair):
            _, g = row_gradients(minibatch, pair[0], indices)
            if relative:
                g = g - row_gradients(minibatch, pair[1], indices)[1]
            return total + jnp.sum(jax.vmap(whiten)(g) ** 2, axis=1), None

        total, _ = jax.lax.scan(add, jnp.zeros(size, squares.dtype), pairs)
        return jax.lax.dynamic_update_slice(squares, total, (start,))

    num_blocks = jnp.where(due, num_blocks, 0)
    squares = jnp.zeros(num_data, pairs[0].dtype)
    squares = jax.lax.fori_loop(0, num_blocks, block, squares)
    evaluated = num_blocks * size / num_data
    count = count + num_pairs * (1 + relative) * evaluated
    return jnp.sqrt(squares), count
