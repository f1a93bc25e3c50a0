"""A preconditioner from draws and the gradients there.

Reference: Seyboldt, Carlson and Carpenter, arXiv 2603.18845. The matrix C that brings
C^(-1/2) x nearest to a standard normal in Fisher divergence is the geometric mean of
the covariance of the draws and the inverse covariance of the gradients. For a Gaussian
posterior it is the covariance as soon as there are more draws than dimensions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.numerics.evaluation import is_finite, select

#: Up to this many coordinates the preconditioner is a full matrix.
MAX_DENSE = 128
#: So many draws' worth of the diagonal preconditioner go into a full one.
PRIOR_DRAWS = 5.0


class Sums(NamedTuple):
    """Welford's number, means and products of draws x and gradients g.

    `xx` and `gg` are of shape `(d, d)`, or `(d,)` for their diagonals alone.
    """

    num: jax.Array
    x: jax.Array
    g: jax.Array
    xx: jax.Array
    gg: jax.Array


def no_sums(d: int, dtype) -> Sums:
    zero = jnp.zeros(d, dtype)
    products = jnp.zeros((d, d) if d <= MAX_DENSE else d, dtype)
    return Sums(jnp.zeros((), dtype), zero, zero, products, products)


def add(sums: Sums, x, g) -> Sums:
    """With one more draw and its gradient, if both are finite."""
    num = sums.num + 1

    def update(mean, products, value):
        change = value - mean
        mean = mean + change / num
        if products.ndim == 1:
            return mean, products + change * (value - mean)
        return mean, products + jnp.outer(change, value - mean)

    (mean_x, xx), (mean_g, gg) = update(sums.x, sums.xx, x), update(sums.g, sums.gg, g)
    return select(is_finite(x, g), Sums(num, mean_x, mean_g, xx, gg), sums)


def factor(sums: Sums) -> jax.Array:
    """R with C = R R': of the shape of the sums' products, one for too few draws."""
    n = jnp.maximum(sums.num - 1, 1.0)
    if sums.xx.ndim == 1:
        return _diagonal(sums.xx / n, sums.gg / n)
    scale = _diagonal(jnp.diag(sums.xx) / n, jnp.diag(sums.gg) / n)
    shrunk = PRIOR_DRAWS * jnp.eye(len(scale), dtype=scale.dtype)
    a = (sums.xx / scale / scale[:, None] + shrunk) / (n + PRIOR_DRAWS)
    b = (sums.gg * scale * scale[:, None] + shrunk) / (n + PRIOR_DRAWS)
    # a # b^-1 = L (L' b L)^(-1/2) L', with L L' = a
    root = jnp.linalg.cholesky(a)
    eigenvalues, axes = jnp.linalg.eigh(root.T @ b @ root)
    # symmetric, so that it does not depend on which axes span an eigenspace
    quarter = (axes * jnp.maximum(eigenvalues, 1e-12) ** -0.25) @ axes.T
    found = scale[:, None] * (root @ quarter)
    return jnp.where(is_finite(found), found, jnp.diag(scale))


def _diagonal(var_x, var_g):
    known = (var_x > 0) & (var_g > 0)
    ratio = jnp.where(known, var_x, 1.0) / jnp.where(known, var_g, 1.0)
    return ratio**0.25
