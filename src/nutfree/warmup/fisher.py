"""A preconditioner from draws and the gradients at them.

Reference: Seyboldt, Carlson and Carpenter, arXiv 2603.18845.

    C = cov(x) # cov(g)^(-1),    A # B = A^(1/2) (A^(-1/2) B A^(-1/2))^(1/2) A^(1/2).

The matrix C that brings
C^(-1/2) x nearest to a standard normal in Fisher divergence is the geometric mean of
the covariance of the draws and the inverse covariance of the gradients. For a Gaussian
posterior it is the covariance as soon as there are more draws than dimensions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.moments import Moments, no_moments

#: Up to this many coordinates the preconditioner is a full matrix.
MAX_DENSE = 128
#: Weight of the diagonal preconditioner in a full one, in draws.
PRIOR_DRAWS = 5.0


class Sums(NamedTuple):
    """Moments of the draws and of the gradients at them."""

    x: Moments
    g: Moments


def no_sums(d: int, dtype) -> Sums:
    none = no_moments(jnp.zeros(d, dtype), dense=d <= MAX_DENSE)
    return Sums(none, none)


def add(sums: Sums, x, g) -> Sums:
    """Add a draw and its gradient, if both are finite."""
    return select(is_finite(x, g), Sums(sums.x.plus(x), sums.g.plus(g)), sums)


def factor(sums: Sums) -> jax.Array:
    """Return R with C = R R', of the shape of the squares; ones for too few draws."""
    n = jnp.maximum(sums.x.number - 1, 1)
    xx, gg = sums.x.squares, sums.g.squares
    if xx.ndim == 1:
        return _diagonal(xx / n, gg / n)
    scale = _diagonal(jnp.diag(xx) / n, jnp.diag(gg) / n)
    shrunk = PRIOR_DRAWS * jnp.eye(len(scale), dtype=scale.dtype)
    a = (xx / scale / scale[:, None] + shrunk) / (n + PRIOR_DRAWS)
    b = (gg * scale * scale[:, None] + shrunk) / (n + PRIOR_DRAWS)
    # a # b^-1 = L (L' b L)^(-1/2) L', with L L' = a
    root = jnp.linalg.cholesky(a)
    eigenvalues, axes = jnp.linalg.eigh(root.T @ b @ root)
    # this form of the root does not depend on which axes span an eigenspace
    quarter = (axes * jnp.maximum(eigenvalues, 1e-12) ** -0.25) @ axes.T
    found = scale[:, None] * (root @ quarter)
    return jnp.where(is_finite(found), found, jnp.diag(scale))


def _diagonal(var_x, var_g):
    known = (var_x > 0) & (var_g > 0)
    ratio = jnp.where(known, var_x, 1.0) / jnp.where(known, var_g, 1.0)
    return ratio**0.25
