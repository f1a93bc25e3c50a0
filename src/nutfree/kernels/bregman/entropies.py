"""Entropies: the mirror maps of Lau and Liu, arXiv 2207.04387.

On a bounded support their dual noise has variance phi''(x), which grows exponentially
in the dual variable towards the boundary. No explicit step follows it there, so they
are for densities that vanish at the boundary.
"""

import jax
import jax.numpy as jnp

from nutfree.kernels.bregman.mirror import (
    Bounded,
    MirrorMap,
    OnInterval,
    OnSimplex,
    clip_to_side,
    record,
)


@record("scale", "center")
class HyperbolicEntropy(MirrorMap):
    """phi(x) = sum u asinh(u) - sqrt(1 + u^2) on the real line.

    Steps grow with the distance from the centre, which suits heavy tails and scales
    that differ by orders. Reference: Ghai, Hazan and Singer, arXiv 1902.01903.
    """

    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def _unit(self, x):
        return (x - self.center) / self.scale

    def value(self, x):
        u = self._unit(x)
        return jnp.sum(u * jnp.arcsinh(u) - jnp.sqrt(1 + u**2))

    def grad(self, x):
        return jnp.arcsinh(self._unit(x)) / self.scale

    def inverse(self, y):
        return self.center + self.scale * jnp.sinh(self.scale * y)

    def root(self, x):
        return (1 + self._unit(x) ** 2) ** -0.25 / self.scale

    def divergence(self, x, y):
        """As of any map, for x and y on one side of the centre.

        Written in u - v, so that it keeps its relative precision as y nears x.
        """
        u, v = jnp.abs(self._unit(x)), jnp.abs(self._unit(y))
        root, root_y = jnp.sqrt(1 + u**2), jnp.sqrt(1 + v**2)
        rise = (u - v) * (u + v) / (root + root_y)
        return jnp.sum(u * jnp.log1p((u - v + rise) / (v + root_y)) - rise)


@record("bound", "scale", "center", meta=("sign",))
class BoltzmannShannon(Bounded):
    """phi(x) = sum u log u - u for u = sign (x - bound) / scale > 0."""

    bound: jax.Array | float = 0.0
    sign: int = 1
    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def distance(self, x):
        return self.sign * (x - self.bound)

    def value(self, x):
        u = self.distance(x) / self.scale
        return jnp.sum(u * jnp.log(u) - u)

    def grad(self, x):
        return self.sign * jnp.log(self.distance(x) / self.scale) / self.scale

    def inverse(self, y):
        return self.bound + self.sign * self.scale * jnp.exp(self.sign * y * self.scale)

    def root(self, x):
        return (self.scale * self.distance(x)) ** -0.5

    def clip(self, x):
        return clip_to_side(x, self.bound, self.sign)


@record("lower", "upper", "scale", "center")
class FermiDirac(OnInterval):
    """h(p) = p log p + (1 - p) log(1 - p)."""

    lower: jax.Array | float = 0.0
    upper: jax.Array | float = 1.0
    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.5

    def _curvature(self, below, above):
        return 1 / below + 1 / above

    def value(self, x):
        below, above = self._share(x)
        return jnp.sum(
            self._strength() * (below * jnp.log(below) + above * jnp.log(above))
        )

    def grad(self, x):
        below, above = self._share(x)
        ratio = jnp.log(below) - jnp.log(above)
        return self._strength() / self._width() * ratio

    def inverse(self, y):
        r = y * self._width() / self._strength()
        share = self._width() * jax.nn.sigmoid(-jnp.abs(r))
        return self.clip(jnp.where(r < 0, self.lower + share, self.upper - share))


@record("scale", "center")
class NegativeEntropy(OnSimplex):
    """h_i(x) = x log x; all coordinates have the smallest of the scales as theirs."""

    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def _strength(self):
        # unit metric 1 / x at the uniform distribution; one factor keeps softmax
        scale = jnp.atleast_1d(self.scale)
        return jnp.maximum(jnp.min(1.0 / (scale.shape[-1] * scale**2)), 1.0)

    def value(self, x):
        return self._strength() * jnp.sum(x * jnp.log(x))

    def grad(self, x):
        return self._strength() * jnp.log(x)

    def inverse(self, y):
        return self.clip(jax.nn.softmax(y / self._strength(), axis=-1))

    def root(self, x):
        return jnp.sqrt(self._strength() / x)
