"""Estimates of a log density's gradient that a stochastic-gradient kernel can use.

An `Estimator` has a memory, a pytree of arrays in the kernel's state. Besides those
that remember nothing, plain and control variate (`nutfree.minibatch.gradients`):

    svrg   control variates at a centre that is the chain's own position, taken every m
           steps, with one pass over all rows (Dubey et al., NeurIPS 2016)
    saga   a table of every row's gradient g_i, where it was last drawn, with its sum:
           grad outside(x) + sum_all g_i + sum_j w_j (grad l_ij(x) - g_ij), after which
           g_ij = grad l_ij(x)  (the same; Defazio, Bach and Lacoste-Julien 2014)

Each is unbiased given its memory. SVRG costs 2n/N a step and 1 a refresh, SAGA
(n + 1)/N a step and 1 at the first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.errors import InvalidOption
from nutfree.minibatch.gradients import (
    BLOCK_SIZE,
    Control,
    control_variate,
    plain,
    sum_rows,
    two_sum,
)
from nutfree.minibatch.sampling import Rows, is_first, require_fixed_rows
from nutfree.numerics.evaluation import is_finite, select
from nutfree.target import Minibatch

#: Numbers in SAGA's table, N x d, at most.
MAX_TABLE = 2 * 10**7
#: Rows of SAGA's table that are filled at once.
TABLE_BLOCK = 1024
#: Numbers of a block of rows' gradients that are in memory at once.
MAX_NUMBERS = 2**20


class Estimator(NamedTuple):
    """How a gradient is estimated.

    start
        `(minibatch, x) -> memory`; nothing is evaluated.
    gradient
        `(minibatch, rows, x, control, memory, count) -> (gradient, memory, count)`,
        over flat vectors; `control` is what warm-up found, a `Control` or `()`.
    cost
        `(batch_size, num_data) -> gradients over all rows` that a step spends on
        average, without what the first one does once.
    """

    start: Callable[[Minibatch, jax.Array], Any]
    gradient: Callable
    cost: Callable[[int, int], float]


def estimator(name: str, refresh_every: int | None = None) -> Estimator:
    """The estimator of that name; `refresh_every` is SVRG's m, N/n unless given."""
    if name == "svrg":
        return _svrg(refresh_every)
    return {"plain": PLAIN, "control_variate": CONTROL_VARIATE, "saga": SAGA}[name]


def _forgetful(gradient: Callable, evaluations: int) -> Estimator:
    """An estimator without memory that evaluates each row so many times."""

    def estimate(minibatch, rows, x, control, memory, count):
        gradient_, count = gradient(minibatch, rows, x, control, count)
        return gradient_, memory, count

    def cost(batch_size, num_data):
        return evaluations * batch_size / num_data

    return Estimator(lambda minibatch, x: (), estimate, cost)


PLAIN = _forgetful(plain, 1)
CONTROL_VARIATE = _forgetful(control_variate, 2)


class Snapshot(NamedTuple):
    """SVRG's centre and its gradient, and how many steps it is still good for."""

    control: Control
    steps_left: jax.Array


def _svrg(refresh_every: int | None) -> Estimator:
    def period_of(batch_size, num_data):
        return refresh_every or -(-num_data // batch_size)

    def cost(batch_size, num_data):
        return 2 * batch_size / num_data + 1 / period_of(batch_size, num_data)

    def start(minibatch, x):
        del minibatch
        return Snapshot(Control(jnp.zeros_like(x), jnp.zeros_like(x)), jnp.asarray(0))

    def estimate(minibatch, rows, x, control, memory, count):
        del control
        period = period_of(rows.indices.shape[0], minibatch.num_data)
        due = memory.steps_left <= 0
        (_, high), (_, low) = sum_rows(minibatch, x, due=due)
        # one that is not finite is taken again at the next step
        good = due & is_finite(high, low)
        control = select(good, Control(x, high + low), memory.control)
        steps_left = jnp.where(good, period, memory.steps_left) - 1
        count = count + due
        gradient, count = control_variate(minibatch, rows, x, control, count)
        gradient = jnp.where(due & ~good, jnp.nan, gradient)
        return gradient, Snapshot(control, jnp.maximum(steps_left, 0)), count

    return Estimator(start, estimate, cost)


class Table(NamedTuple):
    """SAGA's gradients of every row, `(N, d)`, their sum, and what that sum lost.

    filled
        False until the first step, which fills the table where it is.
    """

    gradients: jax.Array
    total: jax.Array
    lost: jax.Array
    filled: jax.Array


def row_gradients(minibatch: Minibatch, x: jax.Array, indices: jax.Array):
    """Each row's log likelihood, shape `(n,)`, and its gradient, `(n, d)`."""

    def one(x, i):
        return minibatch.terms(x, i[None])[1][0]

    return jax.vmap(jax.value_and_grad(one), (None, 0))(x, indices)


def row_importance(
    minibatch: Minibatch,
    pairs: tuple[jax.Array, jax.Array],
    relative: bool,
    whiten: Callable,
    count: Any,
    due: jax.Array,
) -> tuple[jax.Array, Any]:
    """The root mean square of each row's whitened gradient, `(N,)`, and the count.

    Args:
        pairs: positions x and centres, `(k, d)` each, over which the mean is.
        relative: of how the gradient at x differs from that at the centre.
        whiten: a gradient in the coordinates in which the posterior's sd is one.
        due: where False, nothing is evaluated, and the result is zero.
    """
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

    rounds = jnp.where(due, num_blocks, 0)
    squares = jnp.zeros(num_data, pairs[0].dtype)
    squares = jax.lax.fori_loop(0, rounds, block, squares)
    evaluated = rounds * size / num_data
    count = count + num_pairs * (1 + relative) * evaluated
    return jnp.sqrt(squares), count


def _empty_table(minibatch, x) -> Table:
    num_data = minibatch.num_data
    require_fixed_rows(minibatch, "gradient='saga'")
    if num_data * x.size > MAX_TABLE:
        raise InvalidOption(
            f"gradient='saga' remembers a gradient for each of {num_data} rows, of "
            f"{x.size} numbers each; it takes up to {MAX_TABLE} numbers. Write "
            "gradient='svrg' or gradient='control_variate'."
        )
    zeros = jnp.zeros_like(x)
    table = jnp.zeros((num_data, x.size), x.dtype)
    return Table(table, zeros, zeros, jnp.asarray(False))


def _fill(minibatch, x, table: Table, count):
    """The whole table at x, where it is not filled yet."""
    num_data = minibatch.num_data
    size = min(TABLE_BLOCK, num_data)
    num_blocks = -(-num_data // size)

    def block(i, carry):
        gradients, total, lost = carry
        # the last block begins early enough to be whole
        start = jnp.minimum(i * size, num_data - size)
        indices = start + jnp.arange(size)
        _, new = row_gradients(minibatch, x, indices)
        gradients = jax.lax.dynamic_update_slice(gradients, new, (start, 0))
        fresh = jnp.where((indices >= i * size)[:, None], new, 0)
        total, error = two_sum(total, jnp.sum(fresh, axis=0))
        return gradients, total, lost + error

    due = ~table.filled
    gradients, total, lost = jax.lax.fori_loop(
        0, jnp.where(due, num_blocks, 0), block, table[:3]
    )
    filled = table.filled | is_finite(total)
    # what could not be filled is begun again from zero
    total, lost = select(filled, (total, lost), (jnp.zeros_like(x),) * 2)
    count = count + due * (num_blocks * size / num_data)
    return Table(gradients, total, lost, filled), count


def _saga(minibatch, rows: Rows, x, control, memory, count):
    del control
    memory, count = _fill(minibatch, x, memory, count)
    indices, weights = rows.indices, rows.weights.astype(x.dtype)[:, None]
    outside, pull_back = jax.vjp(
        lambda x: minibatch.terms(x, indices[:1])[0].astype(x.dtype), x
    )
    (at_outside,) = pull_back(jnp.ones_like(outside))
    values, new = row_gradients(minibatch, x, indices)
    old = memory.gradients[indices]
    estimate = at_outside + (memory.total + memory.lost)
    estimate = estimate + jnp.sum(weights * (new - old), axis=0)
    good = memory.filled & is_finite(estimate, outside, values)
    # a row that was drawn twice changes its entry once
    change = jnp.where((good & is_first(indices))[:, None], new - old, 0)
    total, error = two_sum(memory.total, jnp.sum(change, axis=0))
    gradients = memory.gradients.at[indices].set(jnp.where(good, new, old))
    table = Table(gradients, total, memory.lost + error, memory.filled)
    count = count + (indices.shape[0] + 1) / minibatch.num_data
    return jnp.where(good, estimate, jnp.nan), table, count


SAGA = Estimator(
    _empty_table, _saga, lambda batch_size, num_data: (batch_size + 1) / num_data
)
#: The words for `gradient=`.
GRADIENTS = ("control_variate", "plain", "svrg", "saga")
#: Those whose centre is a past position of the chain, not the mode.
WANDERING = ("svrg", "saga")
