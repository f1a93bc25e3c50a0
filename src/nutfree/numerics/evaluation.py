"""Evaluation of a log density that counts itself.

Every kernel evaluates through these functions, so that its counts are made where the
work is done. A count is a scalar that is threaded through the loops; a gradient that
comes with its value counts once, as a gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.target import LogDensity, Position

#: Nats below the chain's log density from which on a point counts for nothing.
NEGLIGIBLE = 20.0


def flatten(
    position: Position, logdensity_fn: LogDensity
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array], Callable[[jax.Array], Any]]:
    """Ravel a position once, at the kernel's door.

    Returns:
        `(x, logdensity, unravel)` with x of shape `(d,)` and logdensity a function of
        such a vector.
    """
    x, unravel = ravel_pytree(position)
    return x, lambda v: logdensity_fn(unravel(v)), unravel


def counted_value(logdensity: Callable) -> Callable:
    """Return `(x, count) -> (log density, count + 1)`."""

    def evaluate(x, count):
        return logdensity(x), count + 1

    return evaluate


def counted_value_and_grad(logdensity: Callable, has_aux: bool = False) -> Callable:
    """Return `(x, count) -> (log density, gradient, count + 1)`.

    Args:
        has_aux: whether `logdensity` returns something beside the log density, which
            then is in its place.
    """
    value_and_grad = jax.value_and_grad(logdensity, has_aux=has_aux)

    def evaluate(x, count):
        value, grad = value_and_grad(x)
        return value[1] if has_aux else value, grad, count + 1

    return evaluate


class Spent(NamedTuple):
    """Evaluations so far, and whether one of them had no gradient to go by.

    That is where the gradient is not finite and the log density is: to refuse such a
    point samples the posterior without its neighbourhood.
    """

    evaluations: jax.Array
    blind: jax.Array


def noticing_blind(evaluate: Callable, logdensity: jax.Array) -> Callable:
    """Return `(x, spent) -> (log density, gradient, spent)`, with `Spent` for a count.

    Args:
        evaluate: as `counted_value_and_grad` returns it.
        logdensity: where the chain is. A point of which the density is negligible
            beside that is not noticed.
    """

    def noticing(x, spent: Spent):
        value, grad, count = evaluate(x, spent.evaluations)
        counts = jnp.isfinite(value) & (value > logdensity - NEGLIGIBLE)
        return value, grad, Spent(count, spent.blind | (counts & ~is_finite(grad)))

    return noticing


def is_finite(*trees: Any) -> jax.Array:
    """Say whether every number in every tree is finite."""
    leaves = jax.tree.leaves(trees)
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def select(condition: jax.Array, if_true: Any, if_false: Any) -> Any:
    """Choose one of two trees of the same structure by a scalar condition."""
    return jax.tree.map(lambda t, f: jnp.where(condition, t, f), if_true, if_false)
