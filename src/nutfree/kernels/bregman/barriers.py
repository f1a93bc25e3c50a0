"""Barriers: Burg's entropy, plus a quadratic where the support is unbounded.

The square root of the Hessian is linear in the dual variable, so that a step changes
the distance to the boundary by a factor, and the law near the boundary is right to the
order of the step at any distance. Barriers are therefore the default. The maps of Lau
and Liu are in `entropies`.
"""

import jax
import jax.numpy as jnp

from nutfree.kernels.bregman.mirror import (
    Bounded,
    OnInterval,
    OnSimplex,
    clip_to_side,
    record,
)


@record("bound", "scale", "center", meta=("sign",))
class Barrier(Bounded):
    """phi(x) = sum u^2 / 2 - log u for u = sign (x - bound) / scale > 0.

    Burg's entropy near the boundary and Euclidean far from it: the Hessian is
    1 / scale^2 + 1 / distance^2. The dual variable is any real number.
    """

    bound: jax.Array | float = 0.0
    sign: int = 1
    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def distance(self, x):
        return self.sign * (x - self.bound)

    def value(self, x):
        u = self.distance(x) / self.scale
        return jnp.sum(0.5 * u**2 - jnp.log(u))

    def grad(self, x):
        u = self.distance(x) / self.scale
        return self.sign * (u - 1 / u) / self.scale

    def inverse(self, y):
        u = positive_root(self.sign * y * self.scale)
        return self.bound + self.sign * self.scale * u

    def root(self, x):
        return jnp.hypot(1 / self.scale, 1 / self.distance(x))

    def clip(self, x):
        return clip_to_side(x, self.bound, self.sign)


@record("lower", "upper", "scale", "center")
class IntervalBarrier(OnInterval):
    """h(p) = -log p - log(1 - p), with p the share of the interval below x."""

    lower: jax.Array | float = 0.0
    upper: jax.Array | float = 1.0
    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.5

    def _curvature(self, below, above):
        return below**-2.0 + above**-2.0

    def value(self, x):
        below, above = self._share(x)
        return -jnp.sum(self._strength() * (jnp.log(below) + jnp.log(above)))

    def grad(self, x):
        below, above = self._share(x)
        return self._strength() / self._width() * (1 / above - 1 / below)

    def inverse(self, y):
        r = y * self._width() / self._strength()
        size, hypotenuse = jnp.abs(r), jnp.hypot(r, 2.0)
        nearer = (1 + 2 / (size + hypotenuse)) / (2 + hypotenuse)
        share = self._width() * nearer
        return self.clip(jnp.where(r < 0, self.lower + share, self.upper - share))


@record("scale", "center")
class SimplexBarrier(OnSimplex):
    """h_i(x) = u^2 / 2 - log u with u = x / scale_i."""

    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def value(self, x):
        return jnp.sum(0.5 * (x / self.scale) ** 2 - jnp.log(x))

    def grad(self, x):
        return x / self.scale**2 - 1 / x

    def root(self, x):
        return jnp.hypot(1 / self.scale, 1 / x)

    def inverse(self, y):
        """Newton on 1 = 1 / sum_i x_i(y_i - nu), x_i the inverse of h_i'."""
        scale = jnp.broadcast_to(self.scale, y.shape)
        n = y.shape[-1]

        def level(share):  # nu at which the largest of the x_i is `share`
            slope = share / scale**2 - 1 / share
            return jnp.max(y - slope, axis=-1, keepdims=True)

        def shares(nu):
            return scale * positive_root((y - nu) * scale)

        def newton(_, carry):
            nu, low, high = carry
            x = shares(nu)
            total = jnp.sum(x, axis=-1, keepdims=True)
            low = jnp.where(total >= 1, nu, low)
            high = jnp.where(total >= 1, high, nu)
            slope = jnp.sum(jnp.hypot(1 / scale, 1 / x) ** -2.0, -1, keepdims=True)
            step = nu + (total - 1) * total / slope
            inside = (step > low) & (step < high)
            return jnp.where(inside, step, 0.5 * (low + high)), low, high

        low, high = level(1.0), level(1.0 / n)
        nu, _, _ = jax.lax.fori_loop(0, 20, newton, (low, low, high))
        return self.clip(shares(nu))


def positive_root(v):
    """The u > 0 with u - 1/u = v, to full relative precision."""
    size, hypotenuse = jnp.abs(v), jnp.hypot(v, 2.0)
    larger = 0.5 * (size + hypotenuse)
    return jnp.where(v < 0, 1 / larger, larger)
