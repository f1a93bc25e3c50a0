"""The posterior mode over many rows, and the curvature there.

Climbs on a few of the rows, from as many starts as it takes to end in the best mode
three times, say where it is; one from there on a larger subsample, and a few passes
over all rows, finish it: Newton's steps with the subsample's curvature or, where that
is a diagonal, L-BFGS in the coordinates in which the subsample's posterior has unit sd.
Gradients are counted in passes over all rows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nutfree.minibatch.gradients import full_logdensity, sum_rows
from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.laplace import (
    Laplace,
    inverse,
    largest_curvature,
    maximise,
    positive,
    precision,
)
from nutfree.numerics.preconditioning import matvec, root, transpose
from nutfree.target import Minibatch

#: Rows from which the curvature is taken, at most: its errors matter little.
CURVATURE_ROWS = 2**15
#: Rows of the climb from which passes over all rows start, at most.
START_ROWS = 2**13
#: Rows of the search for the best mode, at most: it only says where to start.
SEARCH_ROWS = 2**11
#: Climbs of the search, at most.
MAX_CLIMBS = 12
#: Climbs that end in the best mode, after which the search is over.
ENOUGH_CLIMBS = 3
#: How far from zero the starts are, as NumPyro's are by default.
RADIUS = 2.0
#: Nats by which ends may differ that are one mode, or its mirror images.
SAME_HEIGHT = 0.5
#: Distance from the mode, in sds, at which Newton's steps end.
NEAR = 0.01
#: Newton's steps, a pass over all rows each, at most.
MAX_PASSES = 40


def subsample(rng_key: jax.Array, minibatch: Minibatch, size: int) -> Minibatch:
    """A smaller data set with the same expected log density."""
    if size >= minibatch.num_data:
        return minibatch
    chosen = jax.random.randint(rng_key, (size,), 0, minibatch.num_data)
    scale = minibatch.num_data / size

    def terms(x, indices):
        outside, rows = minibatch.terms(x, chosen[indices])
        return outside, scale * rows

    return Minibatch(size, terms, minibatch.plate)


def highest_mode(
    rng_key: jax.Array, logdensity: Callable, x: jax.Array, count: Any, cost: float
) -> tuple[jax.Array, Any]:
    """The best end of climbs from `x` and from random starts, and the count.

    The posterior of a network, say, has lesser modes in which a chain would stay. The
    search ends when `ENOUGH_CLIMBS` have come to the greatest height so far.
    """

    def climb_from_next(carry):
        i, best, height, times, count = carry
        start = jax.random.uniform(
            jax.random.fold_in(rng_key, i), x.shape, x.dtype, -RADIUS, RADIUS
        )
        start = jnp.where(i == 0, x, start)
        end, _, count = maximise(logdensity, start, count, cost=cost)
        value = logdensity(end)
        value = jnp.where(jnp.isfinite(value), value, -jnp.inf)
        times = jnp.where(value > height + SAME_HEIGHT, 0, times)
        times = times + (value > height - SAME_HEIGHT)
        best = jnp.where(value > height, end, best)
        return i + 1, best, jnp.maximum(value, height), times, count + cost

    def going(carry):
        i, _, _, times, _ = carry
        return (times < ENOUGH_CLIMBS) & (i < MAX_CLIMBS)

    start = (0, x, jnp.full((), -jnp.inf, x.dtype), 0, count)
    _, best, _, _, count = jax.lax.while_loop(going, climb_from_next, start)
    return best, count


def newton_of_rows(
    minibatch: Minibatch, centre: jax.Array, covariance: jax.Array, count: Any
) -> tuple[jax.Array, jax.Array, Any]:
    """From a subsample's mode to that of all rows, one pass a step.

    The step is C g with the subsample's covariance C, whose error a step multiplies
    the distance by; a step that does not bring the gradient nearer to zero is halved.

    Returns:
        `(centre, gradient there, count)`.
    """
    transposed = transpose(root(covariance))

    def gradient_at(x):
        (_, high), (_, low) = sum_rows(minibatch, x)
        outside = jax.grad(lambda x: minibatch.terms(x, jnp.zeros(2, int))[0])(x)
        gradient = outside + (high + low)
        size = jnp.linalg.norm(matvec(transposed, gradient))
        return gradient, jnp.where(is_finite(gradient), size, jnp.inf)

    def step(carry):
        x, gradient, size, scale, num_passes, count = carry
        proposal = x + scale * matvec(covariance, gradient)
        gradient_new, size_new = gradient_at(proposal)
        better = size_new < size
        kept = select(better, (proposal, gradient_new, size_new), (x, gradient, size))
        scale = jnp.where(better, jnp.minimum(2 * scale, 1), scale / 4)
        return *kept, scale, num_passes + 1, count + 1

    def going(carry):
        _, _, size, scale, num_passes, _ = carry
        return (size > NEAR) & (scale > 1e-3) & (num_passes < MAX_PASSES)

    gradient, size = gradient_at(centre)
    carry = (centre, gradient, size, jnp.ones_like(size), 1, count + 1)
    centre, gradient, *_, count = jax.lax.while_loop(going, step, carry)
    return centre, gradient, count


def curvature_around(
    rng_key: jax.Array,
    minibatch: Minibatch,
    places: jax.Array,
    count: Any,
    due: jax.Array | bool = True,
) -> tuple[jax.Array, Any]:
    """The inverse of the curvature's mean size over places, `(k, d)`, and the count.

    Shape `(d, d)`, or `(d,)` as in `precision`; of no meaning where it is not `due`.
    """
    key, rows_key = jax.random.split(rng_key)
    some = subsample(rows_key, minibatch, CURVATURE_ROWS)

    def add(i, carry):
        total, count = carry
        matrix, count = precision(
            jax.random.fold_in(key, i),
            lambda x: some.logdensity(x, jnp.arange(some.num_data)),
            places[i],
            count,
            some.num_data / minibatch.num_data,
        )
        return total + positive(matrix), count

    shape = jax.eval_shape(lambda: add(0, (0.0, count))[0])
    zeros = jnp.zeros(shape.shape, shape.dtype)
    rounds = jnp.where(due, len(places), 0)
    total, count = jax.lax.fori_loop(0, rounds, add, (zeros, count))
    return inverse(positive(total / len(places))), count


def laplace_of_rows(
    rng_key: jax.Array, minibatch: Minibatch, x: jax.Array, count: Any
) -> tuple[Laplace, jax.Array]:
    """Mode and curvature of a posterior over many rows, from the start `x`.

    Args:
        minibatch: over flat vectors.
        x: shape `(d,)`.
        count: gradients spent so far.
    """
    keys = jax.random.split(rng_key, 7)
    some = subsample(keys[0], minibatch, CURVATURE_ROWS)
    few = some if some is minibatch else subsample(keys[4], some, START_ROWS)
    fewest = subsample(keys[5], few, SEARCH_ROWS)

    def cost(rows: Minibatch) -> float:
        return rows.num_data / minibatch.num_data

    def logdensity_of(rows: Minibatch) -> Callable:
        return lambda x: rows.logdensity(x, jnp.arange(rows.num_data))

    def scaled(key, rows: Minibatch, centre, count):
        matrix, count = precision(key, logdensity_of(rows), centre, count, cost(rows))
        return inverse(positive(matrix)), count

    search = full_logdensity(fewest, x)
    start, count = highest_mode(keys[6], search, x, count + cost(fewest), cost(fewest))
    climb = full_logdensity(few, start)
    centre, gradient, count = maximise(climb, start, count + cost(few), cost=cost(few))
    covariance, count = scaled(keys[1], few, centre, count)
    if few is not minibatch:
        if covariance.ndim == 2 or minibatch.in_order:
            centre, gradient, count = newton_of_rows(
                minibatch, centre, covariance, count
            )
        else:
            start, factor = centre, root(covariance)
            climb = full_logdensity(minibatch, start)
            u, _, count = maximise(
                lambda u: climb(start + matvec(factor, u)),
                jnp.zeros_like(start),
                count + 1,
                max_steps=20,
            )
            centre = start + matvec(factor, u)
            gradient, count = jax.grad(climb)(centre), count + 1
        covariance, count = scaled(keys[2], some, centre, count)
    top, count = largest_curvature(
        keys[3], logdensity_of(some), centre, covariance, count, cost(some)
    )
    distance = jnp.linalg.norm(matvec(transpose(root(covariance)), gradient))
    return Laplace(centre, covariance, top, distance), count
