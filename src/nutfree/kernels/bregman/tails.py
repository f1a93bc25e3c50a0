"""Coordinates in which a bounded site's tails are those of a Gaussian.

On the sampling space a share of a simplex, or a distance to a bound, has exponential
tails towards the bound: those of Gamma(0.2) in the logarithm are exp(0.2 z). The other
tail is much lighter than a Gaussian's. With l = log(1 + exp(-s)) and
r = log(1 + exp(s)), so that s = r - l, the coordinate s is that of

    z = center - below P(l, b) + above P(r, b'),
    P(r, b) = r + b r^2 / 2 for b >= 0,    log(1 - b r) / (-b) for b < 0.

It has a Gaussian tail where z has an exponential one and b > 0, or where exp(z) is
linear in s, and b < 0; with b = b' = 0 and one scale it is linear in z. The scales and
the b are those with which a standard normal s has the first two moments that draws of
z have on each side of their mean.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.kernels.bregman.geometry import is_real
from nutfree.numerics.moments import Moments, no_moments
from nutfree.target import Position, Split

#: Newton steps from z to s; four are as good as exact from the asymptotic start.
NUM_NEWTON = 12
#: Weight of a Gaussian side against that of the draws, in draws.
PRIOR_DRAWS = 10.0
#: Draws on one side of the mean below which nothing is made of them.
FEWEST = 8


def _sides() -> tuple[np.ndarray, ...]:
    """Moments of P(|s|, b), s standard normal: `(E P^2 / (E P)^2, b, E P)`, by b."""
    nodes = (np.arange(2000) + 0.5) / 250
    weights = np.exp(-0.5 * nodes**2)
    weights /= weights.sum()
    bends = np.concatenate([-np.geomspace(3, 0.01, 40), np.linspace(0, 1.1, 40)])
    values = np.array([_bent(np, nodes, b) for b in bends])
    first, second = values @ weights, values**2 @ weights
    return second / first**2, bends, first


def _bent(xp, r, bend):
    """P(r, b), in NumPy or its like."""
    lighter = xp.where(bend < 0, -bend, 1.0)
    log = xp.log1p(lighter * r) / lighter
    return xp.where(bend < 0, log, r + 0.5 * bend * r * r)


_RATIO, _BEND, _MEAN = _sides()
#: b by E P^2 / (E P)^2, which is pi / 2 for b = 0, and 2 for an exponential law.
RATIO_AND_BEND = _RATIO, _BEND
#: E P by b.
BEND_AND_MEAN = _BEND, _MEAN


class Tails(NamedTuple):
    """The map from s to z, `(d,)` each: see the module.

    bent
        Which coordinates have the map; the others are s itself.
    """

    bent: jax.Array
    center: jax.Array
    below: jax.Array
    above: jax.Array
    bend_below: jax.Array
    bend_above: jax.Array

    def leave(self, s) -> tuple[jax.Array, jax.Array]:
        """`(z, log |dz / ds|)`, `(d,)` and a scalar."""
        z, slope = self._curve(jnp.where(self.bent, s, 0.0))
        slope = jnp.where(self.bent, slope, 1.0)
        return jnp.where(self.bent, z, s), jnp.sum(jnp.log(slope))

    def enter(self, z) -> jax.Array:
        """The s of a z: the inverse of `leave`."""
        away = jnp.where(self.bent, z - self.center, 0.0)
        s = jnp.where(
            away < 0,
            -_unbent(-away / self.below, self.bend_below),
            _unbent(away / self.above, self.bend_above),
        )

        def newton(_, s):
            z, slope = self._curve(s)
            step = (self.center + away - z) / slope
            return s + jnp.clip(step, -2.0, 2.0)

        return jnp.where(self.bent, jax.lax.fori_loop(0, NUM_NEWTON, newton, s), z)

    def _curve(self, s):
        left, right = jax.nn.softplus(-s), jax.nn.softplus(s)
        z = (
            self.center
            - self.below * _bent(jnp, left, self.bend_below)
            + self.above * _bent(jnp, right, self.bend_above)
        )
        slope = self.below * jax.nn.sigmoid(-s) * _slope(left, self.bend_below)
        return z, slope + self.above * jax.nn.sigmoid(s) * _slope(
            right, self.bend_above
        )


def _slope(r, bend):
    """dP / dr."""
    return jnp.where(bend < 0, 1 / (1 + jnp.maximum(-bend, 0.0) * r), 1 + bend * r)


def _unbent(p, bend):
    """The r >= 0 with P(r, bend) = p."""
    lighter = jnp.where(bend < 0, -bend, 1.0)
    exponential = jnp.expm1(jnp.minimum(lighter * p, 20.0)) / lighter
    heavier = jnp.maximum(bend, 0.0)
    return jnp.where(bend < 0, exponential, 2 * p / (1 + jnp.sqrt(1 + 2 * heavier * p)))


def straight(like: jax.Array) -> Tails:
    """The map under which every coordinate is itself."""
    zeros, ones = jnp.zeros_like(like), jnp.ones_like(like)
    return Tails(jnp.zeros(like.shape, bool), zeros, ones, ones, zeros, zeros)


class Sides(NamedTuple):
    """Moments of draws, and sums of the distances of those on each side of the mean.

    first, second : (2, d), below and above; number likewise.
    """

    moments: Moments
    number: jax.Array
    first: jax.Array
    second: jax.Array

    def plus(self, z) -> "Sides":
        moments = self.moments.plus(z)
        away = z - moments.mean
        # a mean of few draws is none
        known = moments.number > FEWEST
        sides = known & jnp.stack([away < 0, away > 0])
        size = jnp.where(sides, jnp.abs(away), 0.0)
        return Sides(
            moments,
            self.number + sides,
            self.first + size,
            self.second + size * size,
        )

    def tails(self, bounded) -> Tails:
        """The map of the `bounded` coordinates, a mask of `(d,)`."""
        number = jnp.maximum(self.number, 1)
        first, second = self.first / number, self.second / number
        # as if some draws more had been those of a Gaussian
        known_share = number / (number + PRIOR_DRAWS)
        gaussian = 0.5 * np.pi * first * first
        second = known_share * second + (1 - known_share) * gaussian
        known = (self.number > FEWEST) & (first > 0) & (second > 0)
        known = bounded & jnp.all(known & jnp.isfinite(second), axis=0)
        ratio = jnp.where(known, second / jnp.where(known, first * first, 1.0), 1.0)
        bend = jnp.interp(ratio, *RATIO_AND_BEND)
        # at its lightest, exp(z) is linear in s: beyond, exponential laws get heavy
        lightest = -first / jnp.interp(bend, *BEND_AND_MEAN)
        bend = jnp.maximum(bend, lightest)
        scale = jnp.where(known, first / jnp.interp(bend, *BEND_AND_MEAN), 1.0)
        center = jnp.where(known, self.moments.mean, 0.0)
        bend = jnp.where(known, bend, 0.0)
        return Tails(known, center, *scale, *bend)


def no_draws(like: jax.Array) -> Sides:
    none = jnp.zeros((2, *like.shape), like.dtype)
    return Sides(no_moments(like), none, none, none)


def bounded(position: Position, split: Split) -> np.ndarray:
    """Which coordinates of the flat position are of sites with a bound, `(d,)`."""
    named = isinstance(position, dict)
    parts = [
        np.full(
            np.size(leaf),
            named and name in split.supports and not is_real(split.supports[name]),
        )
        for name, tree in sorted(position.items() if named else [("", position)])
        for leaf in jax.tree.leaves(tree)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, bool)
