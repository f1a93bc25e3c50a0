"""Descents of a bounded number of gradients, for many starts at once.

L-BFGS, Liu and Nocedal, Mathematical Programming 45, 1989, in a trust region.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.numerics.evaluation import is_finite

MEMORY = 8
#: Where -log pi curves less than this along a step, it is taken to curve so much; what
#: an earlier wall said would else keep the steps short in a tail.
FLAT = 1e-4


class _Descent(NamedTuple):
    u: jax.Array
    value: jax.Array
    grad: jax.Array
    radius: jax.Array
    moves: jax.Array  # (MEMORY, d), the last steps taken
    changes: jax.Array  # (MEMORY, d), how the gradient of -log pi changed over them
    spent: jax.Array


def descend(evaluate, u: jax.Array, num_steps: int | jax.Array) -> tuple:
    """L-BFGS in a trust region: one gradient a step, and no step that goes down.

    Args:
        evaluate: `(u, count) -> (log density, gradient, count)`.
        u: the start, in coordinates where a step of length one is a long one.
        num_steps: number of steps.

    Returns:
        `(u, log density, count)` at the end; -inf where no finite value was met.
    """

    def step(_, s: _Descent) -> _Descent:
        direction = _two_loop(s.moves, s.changes, s.grad)
        direction = jnp.where(direction @ s.grad > 0, direction, s.grad)
        length = jnp.linalg.norm(direction)
        shrink = jnp.minimum(1.0, s.radius / jnp.maximum(length, 1e-30))
        move = shrink * direction
        u = s.u + move
        value, grad, count = evaluate(u, s.spent)
        accepted = is_finite(value, grad) & (value > s.value)
        change = jnp.where(accepted, s.grad - grad, 0.0)
        flat = change @ move < FLAT * (move @ move)
        change = jnp.where(flat, FLAT * move, change)
        useful = accepted & (change @ move > 1e-8 * (change @ change))

        def push(old, new):
            return jnp.where(useful, jnp.concatenate([old[1:], new[None]]), old)

        radius = jnp.where(
            accepted,
            jnp.where(shrink < 1.0, 2.0 * s.radius, s.radius),
            0.25 * jnp.minimum(s.radius, length),
        )
        return _Descent(
            jnp.where(accepted, u, s.u),
            jnp.where(accepted, value, s.value),
            jnp.where(accepted, grad, s.grad),
            radius,
            push(s.moves, move),
            push(s.changes, change),
            count,
        )

    # without a gradient the first step stays where it is, and evaluates there
    memory = jnp.zeros((MEMORY, *u.shape), u.dtype)
    nothing = jnp.asarray(-jnp.inf, u.dtype)
    radius = jnp.asarray(0.3 * u.size**0.5, u.dtype)
    zeros = jnp.zeros_like(u)
    start = _Descent(u, nothing, zeros, radius, memory, memory, jnp.asarray(0))
    end = jax.lax.fori_loop(0, num_steps, step, start)
    return end.u, end.value, end.spent


def _two_loop(moves, changes, grad) -> jax.Array:
    """The L-BFGS direction; rows of zeros are pairs that do not exist yet."""
    products = jnp.sum(moves * changes, axis=-1)
    rho = jnp.where(products > 0, 1.0 / jnp.where(products > 0, products, 1.0), 0.0)

    def back(q, pair):
        move, change, rho = pair
        alpha = rho * (move @ q)
        return q - alpha * change, alpha

    def forth(q, pair):
        move, change, rho, alpha = pair
        return q + move * (alpha - rho * (change @ q)), None

    q, alphas = jax.lax.scan(back, grad, (moves, changes, rho), reverse=True)
    size = changes[-1] @ changes[-1]
    q = q * jnp.where(size > 0, products[-1] / jnp.where(size > 0, size, 1.0), 1.0)
    return jax.lax.scan(forth, q, (moves, changes, rho, alphas))[0]
