"""The overdamped Langevin step with a preconditioner, and its density.

    x' = x + (h/2) C grad log pi(x) + sqrt(h C) xi,    xi ~ N(0, I),

with C the inverse mass matrix, an estimate of the posterior covariance, of shape
`(d, d)`, or of the posterior variances, of shape `(d,)` or a scalar.
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular


def _times(matrix, vector):
    return matrix @ vector if jnp.ndim(matrix) == 2 else matrix * vector


def _root(matrix):
    if jnp.ndim(matrix) == 2:
        return jnp.linalg.cholesky(matrix)
    return jnp.sqrt(matrix)


def langevin_step(rng_key, x, grad, step_size, inverse_mass_matrix) -> jax.Array:
    """One step from `x`, of shape `(d,)`, where the gradient is `grad`."""
    noise = jax.random.normal(rng_key, x.shape, x.dtype)
    drift = 0.5 * step_size * _times(inverse_mass_matrix, grad)
    return x + drift + jnp.sqrt(step_size) * _times(_root(inverse_mass_matrix), noise)


def log_transition(x_from, grad_from, x_to, step_size, inverse_mass_matrix):
    """Log density of the step from `x_from` to `x_to`, without its constant."""
    mean = x_from + 0.5 * step_size * _times(inverse_mass_matrix, grad_from)
    root = _root(inverse_mass_matrix)
    if jnp.ndim(root) == 2:
        noise = solve_triangular(root, x_to - mean, lower=True)
    else:
        noise = (x_to - mean) / root
    return -0.5 * jnp.sum(noise**2) / step_size


def metropolis_log_ratio(old, new, step_size, inverse_mass_matrix) -> jax.Array:
    """Log Metropolis-Hastings ratio of a Langevin step; NaN becomes -inf.

    Args:
        old, new: triples `(x, log density, gradient)`.
    """
    (x, value, grad), (x_new, value_new, grad_new) = old, new
    log_ratio = (
        value_new
        - value
        + log_transition(x_new, grad_new, x, step_size, inverse_mass_matrix)
        - log_transition(x, grad, x_new, step_size, inverse_mass_matrix)
    )
    return jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
