"""Norms as non-smooth terms g of the potential, with their proximal operators,

    prox(x) = argmin_y g(y) + |x - y|^2 / (2 step).

`bodies` has the sets that x may be confined to. References: Parikh and Boyd, Proximal
algorithms, 2014, chapter 6; Duchi et al., ICML 2008, for the projection on a simplex.
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
def term[T](*fields: str) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen dataclass and a pytree of these fields."""

    def register(cls: type[T]) -> type[T]:
        cls = dataclass(frozen=True)(cls)
        return jax.tree_util.register_dataclass(cls, fields, ())

    return register


@term("loc", "scale")
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

    def left_prox(self, entropy, x, step):
        """argmin_y g(y) + D_phi(y, x) / step, with phi centred at the kink.

        Its dual variable is that of x, brought nearer to zero by step / scale.
        """
        dual = soft_threshold(entropy.grad(x), step / self.scale)
        return entropy.inverse(dual)

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


@term("loc", "below", "above")
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


@term("scale")
class GroupNorm:
    """g(x) = sum of |x_group| / scale, a group being a row of the last axis."""

    scale: jax.Array | float
    separable = False
    #: huber also takes a width per row
    by_rows = True

    def value(self, x):
        return jnp.sum(jnp.linalg.norm(x, axis=-1) / self.scale)

    def width(self, step):
        """Distance from zero within which the Moreau envelope is a parabola."""
        return step / self.scale

    def huber(self, x, width):
        """g with a paraboloid where |x_group| < `width`, and g itself elsewhere.

        Args:
            width: a number, or one for each row; 0 for a row that is always 0.
        """
        square = jnp.sum(x * x, axis=-1)
        moves = jnp.broadcast_to(width > 0, square.shape)
        width = jnp.where(moves, width, 1.0)
        near = square < width * width
        far = jnp.sqrt(jnp.where(near, width * width, square))
        parabola = 0.5 * (square / width + width)
        norm = jnp.where(near, parabola, far)
        return jnp.sum(jnp.where(moves, norm, 0.0) / self.scale)

    def gap(self, x, step):
        """`huber` minus Moreau's envelope, which is parallel to it, a scalar."""
        gap = step / (2 * jnp.square(self.scale))
        return jnp.sum(jnp.broadcast_to(gap, jnp.shape(x)[:-1]))

    def prox(self, x, step):
        norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
        threshold = step / jnp.expand_dims(jnp.asarray(self.scale), -1)
        return x * jnp.maximum(1 - threshold / jnp.where(norm > 0, norm, 1.0), 0.0)


def excess(x, total):
    """The theta with sum_i (x_i - theta)^+ = total, along the last axis, kept as 1."""
    descending = -jnp.sort(-x, axis=-1)
    total = jnp.broadcast_to(total, x.shape[:-1])[..., None]
    means = (jnp.cumsum(descending, axis=-1) - total) / jnp.arange(1, x.shape[-1] + 1)
    above = jnp.sum(descending > means, axis=-1, keepdims=True)
    return jnp.take_along_axis(means, jnp.maximum(above, 1) - 1, axis=-1)


@term("scale")
class MaxNorm:
    """g(x) = sum of max |x_group| / scale, a group being a row of the last axis.

    Args:
        scale: a number, or one for each row.

    Example:
        >>> MaxNorm(1.0).prox(jnp.array([3.0, -1.0]), 0.5).tolist()
        [2.5, -1.0]
    """

    scale: jax.Array | float
    separable = False

    def value(self, x):
        return jnp.sum(jnp.max(jnp.abs(x), axis=-1) / self.scale)

    def prox(self, x, step):
        """x less its projection on the l1 ball of radius step / scale."""
        radius, size = step / jnp.asarray(self.scale), jnp.abs(x)
        most = jnp.maximum(excess(size, radius), 0.0)
        return x - soft_threshold(x, most)


@term("scale")
class NuclearNorm:
    """g(X) = sum of the singular values of X / scale, X a matrix of the last two axes.

    Args:
        scale: a number, or one for each matrix.
    """

    scale: jax.Array | float
    separable = False

    def value(self, x):
        singular = jnp.linalg.svd(x, compute_uv=False)
        return jnp.sum(jnp.sum(singular, axis=-1) / self.scale)

    def prox(self, x, step):
        u, singular, v = jnp.linalg.svd(x, full_matrices=False)
        threshold = step / jnp.asarray(self.scale)[..., None]
        return (u * jnp.maximum(singular - threshold, 0.0)[..., None, :]) @ v


@dataclass(frozen=True)
class OwnTerm:
    """A term made of two functions.

    Args:
        value: `x -> g(x)`, a scalar.
        prox: `(x, step) -> argmin_y g(y) + |y - x|^2 / (2 step)`.
    """

    value: Callable
    prox: Callable


def differences(x):
    """The differences of neighbours whose norms are the total variation of x.

    Returns:
        For a vector `(n,)`, the n - 1 differences. For an array of m > 1 axes, one of
        shape `(*x.shape, m)` with the forward differences at every point, which are 0
        beyond the last; the rows of its last axis are the groups of a `GroupNorm`.
    """
    if x.ndim == 1:
        return jnp.diff(x)

    def forward(axis):
        after = [(0, int(i == axis)) for i in range(x.ndim)]
        return jnp.pad(jnp.diff(x, axis=axis), after)

    return jnp.stack([forward(axis) for axis in range(x.ndim)], axis=-1)
