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
    Control,
    control_variate,
    plain,
    sum_rows,
    two_sum,
)
from nutfree.minibatch.sampling import Rows, is_first, require_fixed_rows
from nutfree.numerics.evaluation import is_finite, select
from nutfree.target import Minibatch

#: Numbers in SAGA's table, N x d, and rows of it that are filled at once.
MAX_TABLE = 2 * 10**7
TABLE_BLOCK = 1024


class Estimator(NamedTuple):
    """How a gradient is estimated.

    start
        `(minibatch, x) -> memory`; nothing is evaluated.
    gradient
        `(minibatch, rows, x, control, memory, count) -> (gradient, memory, count)`,
        over flat vectors; `control` is what warm-up found, a `Control` or `()`.
    """

    start: Callable[[Minibatch, jax.Array], Any]
    gradient: Callable


def estimator(name: str, refresh_every: int | None = None) -> Estimator:
    """The estimator of that name; `refresh_every` is SVRG's m, N/n unless given."""
    if name == "svrg":
        return _svrg(refresh_every)
    return {"plain": PLAIN, "control_variate": CONTROL_VARIATE, "saga": SAGA}[name]


def _forgetful(gradient: Callable) -> Estimator:
    def estimate(minibatch, rows, x, control, memory, count):
        gradient_, count = gradient(minibatch, rows, x, control, count)
        return gradient_, memory, count

    return Estimator(lambda minibatch, x: (), estimate)


PLAIN = _forgetful(plain)
CONTROL_VARIATE = _forgetful(control_variate)


class Snapshot(NamedTuple):
    """SVRG's centre and its gradient, and how many steps it is still good for."""

    control: Control
    steps_left: jax.Array


def _svrg(refresh_every: int | None) -> Estimator:
    def start(minibatch, x):
        del minibatch
        return Snapshot(Control(jnp.zeros_like(x), jnp.zeros_like(x)), jnp.asarray(0))

    def estimate(minibatch, rows, x, control, memory, count):
        del control
        batch_size = rows.indices.shape[0]
        period = refresh_every or -(-minibatch.num_data // batch_size)
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

    return Estimator(start, estimate)


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


SAGA = Estimator(_empty_table, _saga)
#: The words for `gradient=`.
GRADIENTS = ("control_variate", "plain", "svrg", "saga")
#: Those whose centre is a past position of the chain, not the mode.
WANDERING = ("svrg", "saga")
