"""A covariance as a preconditioner, and the Langevin step that it shapes.

    x' = x + (h/2) C g + sqrt(h) R xi,    C = R R',  xi ~ N(0, I),

with C a matrix, or a vector or a scalar that stands for a diagonal one.
"""

from typing import Any

import jax
import jax.numpy as jnp

from nutfree.numerics.evaluation import is_finite

#: Up to this dimension a matrix is factorised column by column on a CPU.
SMALL_DIM = 64


def matvec(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """Return `matrix @ x`; a vector or a scalar stands for a diagonal matrix."""
    return matrix @ x if jnp.ndim(matrix) == 2 else matrix * x


def root(covariance: jax.Array) -> jax.Array:
    """Return R with R R' = covariance: lower triangular, or diagonal as that is."""
    if jnp.ndim(covariance) != 2:
        return jnp.sqrt(covariance)
    if covariance.shape[0] > SMALL_DIM:
        return jnp.linalg.cholesky(covariance)
    return jax.lax.platform_dependent(
        covariance, cpu=_by_columns, default=jnp.linalg.cholesky
    )


def _by_columns(matrix: jax.Array) -> jax.Array:
    """Return Cholesky's factor without a call to LAPACK.

    It is as fast up to `SMALL_DIM`, and XLA compiles a small loop around it as one,
    which it does not where a library is called.
    """
    rows = jnp.arange(matrix.shape[0])

    def column(j, factor):
        rest = matrix[:, j] - factor @ factor[j]
        return factor.at[:, j].set(jnp.where(rows >= j, rest / jnp.sqrt(rest[j]), 0))

    return jax.lax.fori_loop(0, len(rows), column, jnp.zeros_like(matrix))


def solve_root(factor: jax.Array, x: jax.Array) -> jax.Array:
    """Return R^-1 x, for the R that `root` returns."""
    if jnp.ndim(factor) == 2:
        return jax.scipy.linalg.solve_triangular(factor, x, lower=True)
    return x / factor


def standard_deviations(factor: jax.Array) -> jax.Array:
    """The roots of the diagonal of R R', of the shape of R where R is diagonal."""
    return jnp.sqrt(jnp.sum(factor**2, axis=1)) if jnp.ndim(factor) == 2 else factor


def transpose(matrix: jax.Array) -> jax.Array:
    return matrix.T if jnp.ndim(matrix) == 2 else matrix


def guarded(x, ahead, gradient, move) -> tuple[jax.Array, jax.Array, Any, jax.Array]:
    """Make one step of a chain that never rests where its gradient is not finite.

    Whether a step was a good one shows when the gradient there is asked for, so the
    chain keeps the last position that was found good, and the step from it.

    Args:
        x: the last good position, shape `(d,)`.
        ahead: the step from it, or `x` itself.
        gradient: at `ahead`.
        move: `x -> (the step from x, anything else)`.

    Returns:
        `(x, ahead, anything else, divergent)`: `ahead` becomes `x` where its gradient
        is finite, and a step is made from it; otherwise the chain goes back to `x`.
    """
    finite = is_finite(gradient)
    x = jnp.where(finite, ahead, x)
    moved, rest = move(x)
    ok = finite & is_finite(moved)
    return x, jnp.where(ok, moved, x), rest, ~ok


def guarded_step(
    rng_key, x, ahead, gradient, step_size, factor
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Make a guarded Langevin step: `(x, ahead, divergent)`, see `guarded`.

    Args:
        factor: R.
    """

    def move(x):
        noise = jax.random.normal(rng_key, x.shape, x.dtype)
        drift = 0.5 * step_size * matvec(transpose(factor), gradient)
        return x + matvec(factor, drift + jnp.sqrt(step_size) * noise), ()

    x, ahead, _, divergent = guarded(x, ahead, gradient, move)
    return x, ahead, divergent
