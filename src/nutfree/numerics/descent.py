"""Descents of a bounded number of gradients, for many starts at once.

Reference: L-BFGS, Liu and Nocedal, Mathematical Programming 45, 1989; here in a trust
region. A step is one gradient whatever happens, so that many starts run side by side
under `vmap` without waiting for the longest line search. It ends where the gradients
do, near a mode or not; one start that is to arrive takes `nutfree.numerics.laplace`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.numerics.evaluation import is_finite

#: Pairs of a step and a change of the gradient that the curvature is made of.
MEMORY = 8
#: Least curvature of -log pi along a step. In a flat tail, pairs from a steep wall
#: would otherwise keep the steps short.
FLAT = 1e-4
#: Radius of the first trust region, in units of sqrt(d).
FIRST_RADIUS = 0.3


class _Descent(NamedTuple):
    u: jax.Array
    value: jax.Array
    grad: jax.Array
    radius: jax.Array
    moves: jax.Array  # (MEMORY, d), the last steps taken
    changes: jax.Array  # (MEMORY, d), how the gradient of -log pi changed over them
    spent: jax.Array


def descend(evaluate, u: jax.Array, num_steps: int | jax.Array) -> tuple:
    """Climb `num_steps` steps from `u`; a step that would go down is not made.

    Args:
        evaluate: `(u, count) -> (log density, gradient, count)`.
        u: the start, in coordinates where a step of length one is a long one.
        num_steps: number of steps.

    Returns:
        `(u, log density, gradient, count)` at the end; a log density of -inf where no
        finite value was met.
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

    # the first step has no gradient yet: it stays at the start, and evaluates there
    memory = jnp.zeros((MEMORY, *u.shape), u.dtype)
    nothing = jnp.asarray(-jnp.inf, u.dtype)
    radius = jnp.asarray(FIRST_RADIUS * u.size**0.5, u.dtype)
    zeros = jnp.zeros_like(u)
    start = _Descent(u, nothing, zeros, radius, memory, memory, jnp.asarray(0))
    end = jax.lax.fori_loop(0, num_steps, step, start)
    return end.u, end.value, end.grad, end.spent


def _two_loop(moves, changes, grad) -> jax.Array:
    """Return the L-BFGS direction; rows of zeros are pairs that do not exist yet."""
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
