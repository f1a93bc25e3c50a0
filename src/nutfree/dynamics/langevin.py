"""The overdamped Langevin step with a diagonal preconditioner, and its density.

    x' = x + (h/2) C grad log pi(x) + sqrt(h C) xi,    xi ~ N(0, I),

with C = diag(inverse_mass_matrix), an estimate of the posterior variances.
"""

import jax
import jax.numpy as jnp


def langevin_step(rng_key, x, grad, step_size, inverse_mass_matrix) -> jax.Array:
    """One step from `x`, of shape `(d,)`, where the gradient is `grad`."""
    noise = jax.random.normal(rng_key, x.shape, x.dtype)
    scale = jnp.sqrt(step_size * inverse_mass_matrix)
    return x + 0.5 * step_size * inverse_mass_matrix * grad + scale * noise


def log_transition(x_from, grad_from, x_to, step_size, inverse_mass_matrix):
    """Log density of the step from `x_from` to `x_to`, without its constant."""
    mean = x_from + 0.5 * step_size * inverse_mass_matrix * grad_from
    return -0.5 * jnp.sum((x_to - mean) ** 2 / (step_size * inverse_mass_matrix))


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
