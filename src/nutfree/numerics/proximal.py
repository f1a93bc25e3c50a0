"""Proximal operators of non-smooth terms g of the potential.

prox(x) = argmin_y g(y) + |x - y|^2 / (2 step).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import dataclass_transform

import jax
import jax.numpy as jnp


def soft_threshold(x, threshold):
    """The proximal operator of threshold |.|: x, brought nearer to zero."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0.0)


def _rounded(distance, width):
    """A distance to a kink, with a parabola within `width`."""
    inside = jnp.minimum(distance, width)
    return 0.5 * (inside * inside / width + width) + distance - inside


@dataclass_transform(frozen_default=True)
def _term[T](*fields: str) -> Callable[[type[T]], type[T]]:
    def register(cls: type[T]) -> type[T]:
        cls = dataclass(frozen=True)(cls)
        return jax.tree_util.register_dataclass(cls, fields, ())

    return register


@_term("loc", "scale")
class LaplaceTerm:
    """g(x) = sum |x - loc| / scale: minus the log of a Laplace density.

    The normaliser, which depends on `scale`, belongs to the smooth part.

    Args:
        loc, scale: of a shape that broadcasts to that of x; they may be traced.

    Example:
        >>> term = LaplaceTerm(0.0, 2.0)
        >>> float(term.prox(jnp.asarray(3.0), 1.0))
        2.5
    """

    loc: jax.Array | float
    scale: jax.Array | float
    #: prox also takes a step per element
    separable = True

    def value(self, x):
        return jnp.sum(jnp.abs(x - self.loc) / self.scale)

    def prox(self, x, step):
        return self.loc + soft_threshold(x - self.loc, step / self.scale)

    def width(self, step):
        """Distance from the kink within which the Moreau envelope is a parabola."""
        return step / self.scale

    def huber(self, x, width):
        """g with a parabola within `width` of the kink, and g itself elsewhere.

        In closed form: x minus its prox has no digits left where the step is small.
        """
        return jnp.sum(_rounded(jnp.abs(x - self.loc), width) / self.scale)

    def gap(self, x, step):
        """`huber` minus Moreau's envelope, which is parallel to it, a scalar."""
        gap = step / (2 * jnp.square(self.scale))
        return jnp.sum(jnp.broadcast_to(gap, jnp.shape(x)))

    def kinks(self, x):
        """Signed distances to the kinks, and the slopes below and above them."""
        return x - self.loc, -1 / self.scale, 1 / self.scale

    def right_prox(self, entropy, x, step):
        """argmin_y g(y) + D_phi(x, y) / step, with phi centred at the kink.

        With u and v the distances of x and y to the kink in units of phi, stationarity
        reads u - v = t sqrt(1 + v^2), t = step phi.scale / scale, a quadratic in v.
        """
        u = (x - self.loc) / entropy.scale
        t = step * entropy.scale / self.scale
        size = jnp.abs(u)
        inside = size > t
        size = jnp.where(inside, size, t)
        root = jnp.sqrt(1 + (size - t) * (size + t))
        v = (size - t) * (size + t) / (size + t * root)
        return self.loc + entropy.scale * jnp.sign(u) * v


@_term("loc", "below", "above")
class Hinge:
    """g(x) = sum below (loc - x)^+ + above (x - loc)^+, with slopes of two sizes.

    Minus the log of an asymmetric Laplace density, and the loss of a quantile.

    Args:
        loc, below, above: of a shape that broadcasts to that of x; they may be traced.
            The slopes must not be negative.

    Example:
        >>> float(Hinge(0.0, 1.0, 3.0).value(jnp.array([-2.0, 2.0])))
        8.0
    """

    loc: jax.Array | float
    below: jax.Array | float
    above: jax.Array | float
    separable = True

    def value(self, x):
        distance = x - self.loc
        return jnp.sum(jnp.where(distance < 0, -self.below, self.above) * distance)

    def prox(self, x, step):
        distance = x - self.loc
        down = jnp.maximum(distance - step * self.above, 0.0)
        return self.loc + down + jnp.minimum(distance + step * self.below, 0.0)

    def width(self, step):
        """Distance from the kink within which `huber` is a parabola."""
        return step * 0.5 * (self.below + self.above)

    def huber(self, x, width):
        """g with a parabola within `width` of the kink, and g itself elsewhere."""
        tilt, half = 0.5 * (self.above - self.below), 0.5 * (self.above + self.below)
        signed = x - self.loc
        return jnp.sum(tilt * signed + half * _rounded(jnp.abs(signed), width))

    def kinks(self, x):
        """Signed distances to the kinks, and the slopes below and above them."""
        return x - self.loc, -jnp.asarray(self.below), jnp.asarray(self.above)


@_term("lower", "upper")
class Box:
    """g(x) = 0 where lower <= x <= upper, infinite elsewhere."""

    lower: jax.Array | float
    upper: jax.Array | float
    separable = True

    def value(self, x):
        inside = jnp.all((self.lower <= x) & (x <= self.upper))
        return jnp.where(inside, 0.0, jnp.inf).astype(x.dtype)

    def prox(self, x, step):
        return jnp.clip(x, self.lower, self.upper)


@_term("scale")
class GroupNorm:
    """g(x) = sum of |x_group| / scale, a group being a row of the last axis."""

    scale: jax.Array | float
    separable = False

    def value(self, x):
        return jnp.sum(jnp.linalg.norm(x, axis=-1) / self.scale)

    def width(self, step):
        """Distance from zero within which the Moreau envelope is a parabola."""
        return step / self.scale

    def huber(self, x, width):
        """g with a paraboloid where |x_group| < `width`, and g itself elsewhere."""
        width = jnp.broadcast_to(width, x.shape)[..., 0]
        square = jnp.sum(x * x, axis=-1)
        near = square < width * width
        far = jnp.sqrt(jnp.where(near, width * width, square))
        parabola = 0.5 * (square / width + width)
        return jnp.sum(jnp.where(near, parabola, far) / self.scale)

    def gap(self, x, step):
        """`huber` minus Moreau's envelope, which is parallel to it, a scalar."""
        gap = step / (2 * jnp.square(self.scale))
        return jnp.sum(jnp.broadcast_to(gap, jnp.shape(x)[:-1]))

    def prox(self, x, step):
        norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
        threshold = step / jnp.expand_dims(jnp.asarray(self.scale), -1)
        return x * jnp.maximum(1 - threshold / jnp.where(norm > 0, norm, 1.0), 0.0)
