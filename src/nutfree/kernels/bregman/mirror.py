"""Mirror maps: the geometries in which a Bregman kernel moves.

A map is a record of a Legendre function phi on the inside of a support, its gradient,
the inverse of that gradient, and a square root of its Hessian. Each works in the units
of its site, u = (x - center) / scale, so that `scale`, an estimate of the posterior's
standard deviations, makes it a diagonal preconditioner as well; with a scale of one
the formulas are those of the papers.

This file has what the maps share and the Euclidean map; `barriers` and `entropies` have
those of bounded supports, and `geometry` finds the map of a support.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

#: Largest relative change of a distance to the boundary by noise, to first order; below
#: one, so that no step crosses the boundary.
REACH = 0.9


def record(*data: str, meta: tuple[str, ...] = ()):
    """Make a class a frozen dataclass and a pytree of the fields `data`."""

    def register(cls):
        cls = dataclass(frozen=True)(cls)
        return jax.tree_util.register_dataclass(cls, data, meta)

    return register


class MirrorMap:
    """A mirror map; its Hessian is diagonal unless a class says otherwise.

    A map defines `value(x)`, phi up to a constant; `grad(x)`, the dual variable
    y = grad phi(x), defined up to what the support's constraints leave open;
    `inverse(y)`, grad phi*(y); and `root(x)`, the square root of the Hessian.
    """

    def at(self, scale, center) -> "MirrorMap":
        """The same map in other units, `scale` and `center` of the shape of x."""
        return replace(self, scale=scale, center=center)  # type: ignore[type-var]

    def clip(self, x):
        """Move `x` off the boundary, as far as rounding needs."""
        return x

    def noise(self, x, xi, step_size):
        """sqrt(2 step_size) Hess phi(x)^(1/2) xi, with xi standard normal."""
        return jnp.sqrt(2 * step_size) * self.root(x) * xi

    def dual_norm2(self, x, r):
        """r' Hess phi(x)^-1 r for a difference r of dual variables, a scalar."""
        return jnp.sum((r / self.root(x)) ** 2)

    def divergence(self, x, y):
        """D_phi(x, y) = phi(x) - phi(y) - <grad phi(y), x - y>, a scalar."""
        return self.value(x) - self.value(y) - jnp.sum(self.grad(y) * (x - y))


class Bounded(MirrorMap, ABC):
    """A map of a support with a boundary, `distance(x)` away at its nearest side."""

    @abstractmethod
    def distance(self, x):
        """Of x from the boundary, of its shape."""

    def noise(self, x, xi, step_size):
        """Noise of the variance that `MirrorMap.noise` has, but uniform.

        A normal step is now and then longer than the distance to the boundary, and
        then has no meaning. Noise with the same first three moments leaves the order
        of the bias as it is (Milstein and Tretyakov 2004, section 2.1), and for
        step_size < 0.13 no distance changes by more than the factor `REACH`. A longer
        step is cut to that.
        """
        uniform = 3**0.5 * jax.scipy.special.erf(xi / 2**0.5)
        root = self.root(x)
        limit = REACH * root * self.distance(x)
        return root * jnp.clip(jnp.sqrt(2 * step_size) * uniform, -limit, limit)


@record("scale", "center")
class Euclidean(MirrorMap):
    """phi(x) = |u|^2 / 2 on the real line: mirror Langevin is Langevin."""

    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def value(self, x):
        return 0.5 * jnp.sum((x / self.scale) ** 2)

    def grad(self, x):
        return x / self.scale**2

    def inverse(self, y):
        return y * self.scale**2

    def root(self, x):
        return jnp.broadcast_to(1.0 / self.scale, x.shape).astype(x.dtype)


class OnInterval(Bounded):
    """phi(x) = c sum h((x - lower) / (upper - lower)).

    c makes the Hessian at the centre 1 / scale^2, but is at least 1.
    """

    def _width(self):
        return self.upper - self.lower

    def _share(self, x):
        """x as shares of the interval, from below and from above."""
        return (x - self.lower) / self._width(), (self.upper - x) / self._width()

    def _strength(self):
        at_center = self._curvature(*self._share(self.clip(jnp.asarray(self.center))))
        return jnp.maximum((self._width() / self.scale) ** 2 / at_center, 1.0)

    def distance(self, x):
        return jnp.minimum(x - self.lower, self.upper - x)

    def root(self, x):
        curvature = self._curvature(*self._share(x))
        return jnp.sqrt(self._strength() * curvature) / self._width()

    def clip(self, x):
        x = clip_to_side(x, self.lower, 1, self._width())
        return clip_to_side(x, self.upper, -1, self._width())


class OnSimplex(Bounded):
    """phi(x) = sum_i h_i(x_i) restricted to sum_i x_i = 1, along the last axis.

    The density is with respect to any all but one of the shares, as Dirichlet's is.
    Dual variables count up to a common constant: in the coordinates x_1..x_{n-1} the
    dual variable is y_i - y_n and the Hessian D_i on the diagonal plus D_n everywhere,
    of which noise with variances D_1..D_n, differenced, is a square root.
    """

    def clip(self, x):
        x = jnp.maximum(x, jnp.finfo(x.dtype).tiny)
        return x / jnp.sum(x, axis=-1, keepdims=True)

    def distance(self, x):
        return x

    def dual_norm2(self, x, r):
        root = self.root(x)
        weight = root**-2.0
        middle = jnp.sum((r / root) / root, axis=-1, keepdims=True)
        middle = middle / jnp.sum(weight, axis=-1, keepdims=True)
        return jnp.sum(((r - middle) / root) ** 2)


def clip_to_side(x, bound, sign, width=0.0):
    """Move `x` off `bound`, as far as numbers of that size are rounded."""
    info = jnp.finfo(jnp.result_type(float, x))
    gap = info.eps * jnp.abs(bound) + info.tiny * (1 + jnp.abs(width))
    return jnp.maximum(x, bound + gap) if sign > 0 else jnp.minimum(x, bound - gap)
