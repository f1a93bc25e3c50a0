"""Convex sets as non-smooth terms: g is 0 inside and infinite outside.

The proximal operator is the projection on the set, whatever the step.
"""

import jax
import jax.numpy as jnp

from nutfree.numerics.proximal import excess, term


def _indicator(inside, x):
    return jnp.where(inside, 0.0, jnp.inf).astype(x.dtype)


@term("lower", "upper")
class Box:
    """g(x) = 0 where lower <= x <= upper, infinite elsewhere."""

    lower: jax.Array | float
    upper: jax.Array | float
    separable = True

    def value(self, x):
        inside = jnp.all((self.lower <= x) & (x <= self.upper))
        return _indicator(inside, x)

    def prox(self, x, step):
        return jnp.clip(x, self.lower, self.upper)


@term("normal", "offset")
class HalfSpace:
    """g(x) = 0 where sum(normal x) <= offset, infinite elsewhere.

    Args:
        normal: of the shape of x.
        offset: a number.
    """

    normal: jax.Array
    offset: jax.Array | float
    separable = False

    def value(self, x):
        return _indicator(jnp.sum(self.normal * x) <= self.offset, x)

    def prox(self, x, step):
        beyond = jnp.maximum(jnp.sum(self.normal * x) - self.offset, 0.0)
        return x - beyond / jnp.sum(jnp.square(self.normal)) * self.normal


@term("total")
class Simplex:
    """g(x) = 0 where x >= 0 and sum(x) <= total by rows, and infinite elsewhere.

    A row is one of the last axis. Shares that sum to the total exactly have no density
    there; they are for `dist.Dirichlet`.

    Args:
        total: a number, or one for each row of the last axis.
    """

    total: jax.Array | float = 1.0
    separable = False

    def value(self, x):
        below = jnp.sum(x, axis=-1) <= self.total
        return _indicator(jnp.all(x >= 0) & jnp.all(below), x)

    def prox(self, x, step):
        return jnp.maximum(x - jnp.maximum(excess(x, self.total), 0.0), 0.0)
