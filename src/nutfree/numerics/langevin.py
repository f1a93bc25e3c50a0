"""The overdamped Langevin step with a preconditioner, and its Metropolis ratio.

    x' = x + R u,    u = (h/2) R' grad log pi(x) + sqrt(h) xi,    xi ~ N(0, I),

with R R' = C the inverse mass matrix, an estimate of the posterior covariance; R is of
shape `(d, d)`, or stands for a diagonal matrix with shape `(d,)` or as a scalar.
"""

import jax
import jax.numpy as jnp

from nutfree.numerics.preconditioning import matvec, transpose

#: The most steps that a transition makes by itself.
MAX_STEPS = 1000


def langevin_step(rng_key, x, grad, step_size, factor) -> tuple[jax.Array, jax.Array]:
    """One step from `x`, of shape `(d,)`, where the gradient is `grad`.

    Args:
        factor: R.

    Returns:
        `(x', u)`.
    """
    noise = jax.random.normal(rng_key, x.shape, x.dtype)
    drift = 0.5 * step_size * matvec(transpose(factor), grad)
    move = drift + jnp.sqrt(step_size) * noise
    return x + matvec(factor, move), move


def metropolis_log_ratio(old, new, move, step_size, factor) -> jax.Array:
    """Log Metropolis-Hastings ratio of a Langevin step; NaN becomes -inf.

    Args:
        old, new: pairs of log density and gradient, at x and x'.
        move: u.
        factor: R.
    """
    (value, grad), (value_new, grad_new) = old, new
    there = move - 0.5 * step_size * matvec(transpose(factor), grad)
    back = move + 0.5 * step_size * matvec(transpose(factor), grad_new)
    change = 0.5 * (jnp.sum(there**2) - jnp.sum(back**2)) / step_size
    log_ratio = value_new - value + change
    return jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)


def steps_to_forget(step_size) -> jax.Array:
    """Steps in which a chain of unit variance forgets 63 % of its position."""
    return jnp.clip(jnp.ceil(2 / step_size), 1, MAX_STEPS).astype(int)
