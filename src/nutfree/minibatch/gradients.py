"""Gradients of a log density from a few of its rows, and from all of them in blocks.

With rows i_j of weights w_j (see `nutfree.minibatch.sampling`; N/n for n of N drawn
uniformly) and l_i the log likelihood of row i:

    plain            grad outside(x) + sum_j w_j grad l_ij(x)
    control variate  grad outside(x) + sum_all grad l_i(c)
                     + sum_j w_j (grad l_ij(x) - grad l_ij(c))

(Welling and Teh 2011; Baker, Fearnhead, Fox and Nemeth, arXiv 1706.05439). Counts are
in full-data gradients: the plain one costs n/N, the other, which evaluates each row at
x and at the centre c, 2n/N. Estimators that remember are in
`nutfree.minibatch.estimators`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.minibatch.sampling import Rows
from nutfree.target import Minibatch

#: Rows that a pass over all of the data holds in memory at once.
BLOCK_SIZE = 8192


class Control(NamedTuple):
    """A centre, shape `(d,)`, and all rows' summed gradient there, shape `(d,)`."""

    centre: jax.Array
    rows_gradient: jax.Array


def flat_minibatch(minibatch: Minibatch, unravel: Callable) -> Minibatch:
    """The same rows, as functions of a flat vector."""
    return replace(
        minibatch,
        terms=lambda x, indices: minibatch.terms(unravel(x), indices),
        in_order=None
        if (ordered := minibatch.in_order) is None
        else replace(ordered, terms=lambda x, i: ordered.terms(unravel(x), i)),
    )


def default_batch_size(num_data: int, dim: int) -> int:
    """A hundredth of the rows within 100 to 1,000, and ten rows per dimension.

    The control variate's noise in units of the posterior is of order d/n, so a batch
    grows with the dimension, up to a tenth of the rows.
    """
    by_rows = min(max(num_data // 100, 100), 1000)
    by_dim = min(10 * dim, num_data // 10)
    return min(num_data, max(by_rows, by_dim))


def plain(minibatch, rows: Rows, x, control, count) -> tuple[jax.Array, jax.Array]:
    """The batch's own gradient, scaled up."""
    del control
    value, gradient = jax.value_and_grad(_estimate)(x, minibatch, rows)
    count = count + rows.indices.shape[0] / minibatch.num_data
    return _nan_unless_finite(value, gradient), count


def control_variate(minibatch, rows: Rows, x, control, count):
    """The batch's gradient relative to that at the centre of the `Control`."""

    def batch(x):
        return jnp.sum(
            rows.weights.astype(x.dtype) * minibatch.terms(x, rows.indices)[1]
        )

    value, at_x = jax.value_and_grad(_estimate)(x, minibatch, rows)
    at_centre = jax.grad(batch)(control.centre)
    gradient = (at_x - at_centre) + control.rows_gradient
    count = count + 2 * rows.indices.shape[0] / minibatch.num_data
    return _nan_unless_finite(value, gradient), count


def _estimate(x, minibatch: Minibatch, rows: Rows) -> jax.Array:
    """Unbiased estimate of the log density."""
    outside, terms = minibatch.terms(x, rows.indices)
    return outside + jnp.sum(rows.weights.astype(x.dtype) * terms)


def _nan_unless_finite(value: jax.Array, gradient: jax.Array) -> jax.Array:
    """A gradient is worth nothing where the log density is not finite."""
    return jnp.where(jnp.isfinite(value), gradient, jnp.nan)


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Knuth's a + b: the rounded sum, and the error of its rounding, exactly."""
    total = a + b
    b_rounded = total - a
    return total, (a - (total - b_rounded)) + (b - b_rounded)


def sum_rows(
    minibatch: Minibatch,
    x: jax.Array,
    block_size: int = BLOCK_SIZE,
    due: jax.Array | bool = True,
) -> tuple[Any, Any]:
    """All rows' log likelihood and its gradient, in blocks, with compensated sums.

    A float32 sum over N rows loses the posterior's scale when N is large: log
    densities of 10^6 rows are known to about 0.1, no better. Here each block's sum is
    added with its rounding error kept.

    Args:
        minibatch: over flat vectors.
        x: shape `(d,)`.
        block_size: rows in memory at once.
        due: where False, nothing is evaluated, and the sums are zero. A condition
            that differs between vmapped chains costs a pass for all of them.

    Returns:
        `(high, low)`, two pairs `(value, gradient)`; their sum is the result, and
        `low` is what `high` has lost in rounding.
    """
    num_data, terms = minibatch.num_data, minibatch.terms
    block_size = min(block_size, num_data)
    if minibatch.in_order is not None:
        block_size, terms = minibatch.in_order.block_size, minibatch.in_order.terms

    def block_sum(x, start):
        indices = start + jnp.arange(block_size)
        _, rows = terms(x, jnp.minimum(indices, num_data - 1))
        return jnp.sum(jnp.where(indices < num_data, rows, 0))

    def add(block, carry):
        high, low = carry
        start = block * block_size
        sums = jax.tree.map(two_sum, high, jax.value_and_grad(block_sum)(x, start))
        (value, value_error), (gradient, gradient_error) = sums
        low = (low[0] + value_error, low[1] + gradient_error)
        return (value, gradient), low

    zeros = (jnp.zeros((), x.dtype), jnp.zeros_like(x))
    num_blocks = -(-num_data // block_size)
    # a loop of no rounds is a condition that stays one under vmap
    rounds = num_blocks if due is True else jnp.where(due, num_blocks, 0)
    return jax.lax.fori_loop(0, rounds, add, (zeros, zeros))


def control_at(minibatch, centre, count) -> tuple[Control, jax.Array]:
    """The control variate at `centre`, from one pass over all rows."""
    (_, high), (_, low) = sum_rows(minibatch, centre)
    return Control(centre, high + low), count + 1


def full_logdensity(minibatch: Minibatch, reference: jax.Array) -> Callable:
    """`x -> log density(x) - log density(reference)`, one pass over all rows.

    Its gradient comes with it: reverse-mode differentiation only.
    """
    (reference_high, _), (reference_low, _) = sum_rows(minibatch, reference)

    def outside(x):
        return minibatch.terms(x, jnp.zeros(1, int))[0]

    reference_outside = outside(reference)

    def value_and_grad(x):
        (value, gradient), (value_low, gradient_low) = sum_rows(minibatch, x)
        rows = (value - reference_high) + (value_low - reference_low)
        outside_value, outside_gradient = jax.value_and_grad(outside)(x)
        value = (outside_value - reference_outside) + rows
        return value, outside_gradient + (gradient + gradient_low)

    @jax.custom_vjp
    def relative(x):
        return value_and_grad(x)[0]

    relative.defvjp(value_and_grad, lambda gradient, bar: (bar * gradient,))
    return relative


def whitened_noise(
    rng_key: jax.Array,
    estimate: Callable,
    positions: Any,
    whiten: Callable,
    count: jax.Array,
    due: jax.Array | bool = True,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Variance of a gradient estimate over its batches, averaged over positions.

    Args:
        estimate: `(rng_key, position, count) -> (gradient, count)`.
        positions: a pytree with a leading axis, roughly from the posterior.
        whiten: a gradient in the coordinates in which the posterior's sd is one.
        count: gradients spent so far.
        due: where False, nothing is evaluated, and the results are zero.

    Returns:
        The variance V of each coordinate, shape `(d,)`; the mean square of the whole
        gradient, which is d where a Gaussian of these coordinates is the posterior,
        without what the noise adds; and the count.
    """
    num_positions = len(jax.tree.leaves(positions)[0])

    def one(i, carry):
        noise, size, count = carry
        keys = jax.random.split(jax.random.fold_in(rng_key, i))
        x = jax.tree.map(lambda leaf: leaf[i], positions)

        def from_batch(count, key):
            g, count = estimate(key, x, count)
            return count, whiten(g)

        count, (first, second) = jax.lax.scan(from_batch, count, keys)
        return noise + 0.5 * (first - second) ** 2, size + first @ second, count

    shapes = jax.eval_shape(lambda: one(0, (0.0, 0.0, count))[:2])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    rounds = jnp.where(due, num_positions, 0)
    noise, size, count = jax.lax.fori_loop(0, rounds, one, (*zeros, count))
    return noise / num_positions, size / num_positions, count
