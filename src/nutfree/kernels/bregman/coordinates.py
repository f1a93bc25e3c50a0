"""Coordinates s in which adjusted trajectories move, one for each of the sampling
space.

The mirror Langevin diffusion of phi has noise of covariance Hess phi(x)^-1. In the arc
length s, ds = phi''(x)^(1/2) dx, its noise is standard, so that a leapfrog step needs
no metric that changes along it. For a distance u, in some unit, to the boundary of a
half-line,

    u = log(1 + exp(s)),    phi''(u)^(1/2) = 1 / (1 - exp(-u)):

the metric of a barrier, 1 / u^2, near the boundary, and flat far from it. The arc
length of an interval's barrier is the logit of the share, which is NumPyro's
coordinate, as are those of the sticks that a simplex is broken into.

A law whose density is u^(a - 1) near the boundary has an exponential tail of rate a
there, over which a trajectory takes long where a is small. A tail map

    z = base(s) - left softplus(-s)^2 / 2 + right softplus(s)^2 / 2

makes it the tail of a Gaussian, with left = 1 / a, and right = 1 / b for a tail
exp(-b z). The base is log log(1 + exp(s)) plus the log of the unit for a half-line, and
center + unit s otherwise. Warm-up finds the rates (`fitted`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import (
    ExpTransform,
    SigmoidTransform,
    StickBreakingTransform,
)

from nutfree.kernels.bregman.geometry import is_real, mirror_for
from nutfree.kernels.bregman.scales import (
    Scales,
    Which,
    enter_scaled,
    leave_scaled,
    no_scales,
    which_of,
)
from nutfree.numerics.moments import Moments
from nutfree.target import Position, Split

#: Slope of a share's coordinate at its median, over that which gives it unit variance.
#: The side of a light tail is stiff: with 1, a chain may stay for 20 transitions at a
#: large share. On Dirichlet posteriors, 0.75 has 68 / 72 effective draws per 1,000
#: gradients for the 37 / 25 of 0.6 (25 shares), and 0.9 has 94 / 70 for 70 / 70 (42).
SLOPE = 0.75
#: Below this s, log(softplus(s)) is its series, because exp(s) loses digits.
_SMALL = -8.0
#: Most Newton steps by which the map is inverted.
_NEWTON = 12
#: Unit of a half-line that makes its coordinate the log of the distance.
FAR = 1e6
#: Smallest tail, as 1 / rate, that is worth a map, and the largest.
_LEAST, _MOST = 0.02, 50.0


class Kinds(NamedTuple):
    """What the coordinates of the flat position are; each is of shape `(d,)`.

    half_line
        Whether it is the log of a distance.
    share
        Whether it is a logit of a share, plus `offset`.
    real
        Whether it is a real site's.
    """

    half_line: np.ndarray
    share: np.ndarray
    offset: np.ndarray
    real: np.ndarray

    @property
    def curved(self) -> np.ndarray:
        """Which coordinates have a map."""
        return self.half_line | self.share

    @property
    def scaled(self) -> Which:
        """Which coordinates have a scale, and which make it."""
        return which_of(self.real, self.half_line)


class Tails(NamedTuple):
    """The parameters of the map; see the module. Each is `(d,)` or a scalar.

    scales: those of real coordinates, of `scales`; None where they have none.
    """

    unit: jax.Array | float = 1.0
    center: jax.Array | float = 0.0
    left: jax.Array | float = 0.0
    right: jax.Array | float = 0.0
    scales: Scales | None = None


def kinds_of(position: Position, split: Split, *, mirrored: bool = True) -> Kinds:
    """What the coordinates of a position are; all are plain unless `mirrored`."""
    named = isinstance(position, dict)
    rows = [_plain(0)]
    for name, tree in sorted(position.items() if named else [("", position)]):
        for leaf in jax.tree.leaves(tree):
            shape = np.shape(leaf)
            known = mirrored and named and name in split.supports
            rows.append(_kind(split.supports[name], shape) if known else _plain(shape))
    columns = zip(*rows, strict=True)
    return Kinds(*(np.concatenate([a.ravel() for a in c]) for c in columns))


def _plain(shape) -> Kinds:
    no = np.zeros(shape, bool)
    return Kinds(no, no, np.zeros(shape), no)


def _kind(constraint, shape) -> Kinds:
    found = _plain(shape)
    if mirror_for(constraint) is None:
        return found
    if is_real(constraint):
        return found._replace(real=np.ones(shape, bool))
    transform = biject_to(constraint)
    transform = getattr(transform, "base_transform", transform)
    first = getattr(transform, "parts", [transform])[0]
    if isinstance(first, ExpTransform):
        return found._replace(half_line=np.ones(shape, bool))
    if isinstance(first, SigmoidTransform):
        return found._replace(share=np.ones(shape, bool))
    if isinstance(first, StickBreakingTransform):
        left = np.log(np.arange(shape[-1], 0, -1.0))
        return found._replace(
            share=np.ones(shape, bool), offset=np.broadcast_to(left, shape)
        )
    return found


def unfitted(of: Kinds, like: jax.Array) -> Tails:
    """A map that leaves every coordinate as it is, but for a constant.

    Its parameters are `(d,)` each, or scalars where no coordinate has a map.
    """
    scales = no_scales(of.scaled, like)
    if not of.curved.any():
        none = jnp.zeros((), like.dtype)
        return Tails(none + 1, none, none, none, scales)
    zeros = jnp.zeros_like(like)
    unit = jnp.where(of.half_line, FAR, zeros + 1)
    return Tails(unit, zeros, zeros, zeros, scales)


def leave(
    s, of: Kinds, tails: Tails, hold: Callable = lambda x: x
) -> tuple[jax.Array, jax.Array]:
    """`(z, log |dz / ds|)`, of shape `(d,)` and a scalar.

    Args:
        hold: applied to the logs of the scales of real coordinates.
    """
    if not of.curved.any():
        return s, jnp.zeros((), s.dtype)
    z, slope = _map(jnp.where(of.curved, s, 0.0), of, tails)
    log_slope = jnp.sum(jnp.where(of.curved, jnp.log(slope), 0.0))
    z = jnp.where(of.curved, z, s)
    if tails.scales is None:
        return z, log_slope
    z, log_unit = leave_scaled(z, of.scaled, tails.scales, hold)
    return z, log_slope + log_unit


def _map(s, of: Kinds, tails: Tails) -> tuple[jax.Array, jax.Array]:
    """z and dz / ds, elementwise."""
    above, below = jax.nn.softplus(s), jax.nn.softplus(-s)
    log_u = _log_softplus(s)
    base = tails.center + tails.unit * s
    z = jnp.where(of.half_line, jnp.log(tails.unit) + log_u, base)
    slope = jnp.where(of.half_line, jnp.exp(-below - log_u), tails.unit)
    z = z - 0.5 * tails.left * below * below + 0.5 * tails.right * above * above
    slope = slope + tails.left * below * jax.nn.sigmoid(-s)
    return z, slope + tails.right * above * jax.nn.sigmoid(s)


def _log_softplus(s):
    """log log(1 + exp(s)), to full precision for any s."""
    series = jnp.minimum(s, _SMALL)
    direct = jnp.log(jax.nn.softplus(jnp.maximum(s, _SMALL)))
    return jnp.where(s < _SMALL, series - 0.5 * jnp.exp(series), direct)


def enter(z, of: Kinds, tails: Tails) -> jax.Array:
    """The inverse of `leave`, `(d,)`."""
    if not of.curved.any():
        return z
    if tails.scales is not None:
        z = enter_scaled(z, of.scaled, tails.scales)
    goal = jnp.where(of.curved, z, 0.0)
    start = jnp.where(
        of.half_line,
        _without_tails(goal - jnp.log(tails.unit), tails),
        _of_line(goal - tails.center, tails),
    )

    # the error after a step is nearly its square
    enough = 0.1 * jnp.sqrt(jnp.finfo(z.dtype).eps)

    def newton(carry):
        s, _, n = carry
        reached, slope = _map(s, of, tails)
        step, most = (goal - reached) / slope, 1.0 + jnp.abs(s)
        step = jnp.clip(step, -most, most)
        return s + step, jnp.any(jnp.abs(step) > enough * most), n + 1

    s, *_ = jax.lax.while_loop(
        lambda carry: carry[1] & (carry[2] < _NEWTON), newton, (start, True, 0)
    )
    return jnp.where(of.curved, s, z)


def _without_tails(log_u, tails: Tails):
    """A first s for a half-line: exact where there are no tails."""
    # log(expm1(u)) as log(u) + u - (log(u) - log(1 - exp(-u)))
    u = jnp.exp(jnp.minimum(log_u, 60.0))
    tiny = u < 1e-3
    rest = jnp.log(-jnp.expm1(-jnp.where(tiny, 1.0, u)))
    s = jnp.where(tiny, log_u + 0.5 * u, u + rest)
    far = 2 * log_u / (1 + jnp.sqrt(1 + 2 * tails.right * jnp.maximum(log_u, 0.0)))
    s = jnp.where((tails.right > 0) & (log_u > 0), jnp.minimum(s, far + 1), s)
    near = 2 * s / (1 + jnp.sqrt(1 + 2 * tails.left * jnp.maximum(-s, 0.0)))
    return jnp.where(s < 0, near, s)


def _of_line(shift, tails: Tails):
    """A first s otherwise: exact far out."""
    tail = jnp.where(shift < 0, tails.left, tails.right)
    unit = tails.unit
    return 2 * shift / (unit + jnp.sqrt(unit**2 + 2 * tail * jnp.abs(shift)))


def fitted(
    of: Kinds, positions: Moments, distances: Moments
) -> tuple[Tails, jax.Array]:
    """The tails of the laws of which those are the moments, and where they are known.

    There, s has about unit variance, and elsewhere it is z.

    A share is taken for one of a Beta law with the mean and the variance of its logit,
    and a distance for one of a Gamma law with the variance of its log; but if its
    variance is larger than that law's, the other tail has a part in it.

    Args:
        positions: of the flat positions.
        distances: of the exponentials of those that are logs of distances.
    """
    if not of.curved.any():
        return unfitted(of, positions.mean), jnp.zeros(positions.mean.shape, bool)
    dtype = positions.mean.dtype
    variance = positions.covariance()
    known = jnp.isfinite(variance) & (variance > 0) & of.curved
    variance = jnp.where(known, variance, 1.0)
    below, above = _beta(positions.mean - of.offset, variance)
    center = positions.mean + 0.5 * (below - above)
    harmonic = 1 / (below + above)
    unit = SLOPE * (0.2 + harmonic + 1.2 * harmonic / (0.5 + harmonic)) ** -0.5

    # a Gamma law of scale 1 has this number as the largest of its sd and its scale
    sd, mean = jnp.sqrt(distances.covariance()), distances.mean
    light = jnp.maximum(sd, sd * sd / mean)
    surplus = jnp.square(sd / mean) / _tail(variance)
    lean = jnp.clip(1 - jnp.log(0.5 * surplus) / np.log(3.0), -1.0, 1.0)
    left = jnp.where(of.half_line, _tail(0.5 * variance * (1 + lean)), below)
    right = jnp.where(of.half_line, _tail(0.5 * variance * (1 - lean)), above)
    # that of a heavy tail is too uncertain
    heavy = jnp.clip(1 - lean, 0.0, 1.0)
    blend = jnp.exp((1 - heavy) * jnp.log(light) + heavy * positions.mean)
    unit = jnp.where(of.half_line, blend, unit)
    usable = known & jnp.isfinite(unit) & (unit > 0) & jnp.isfinite(left + right)

    def else_plain(found, plain):
        return jnp.where(usable, found, plain).astype(dtype)

    tails = Tails(
        else_plain(unit, 1.0),
        else_plain(jnp.where(of.half_line, 0.0, center), 0.0),
        else_plain(_worth(left), 0.0),
        else_plain(_worth(right), 0.0),
    )
    return tails, usable


def _tail(variance):
    """1 / a, where the log of a Gamma(a) has this variance; within 2 %."""
    return variance / jnp.sqrt(1 + variance)


def _worth(tail):
    return jnp.where(tail < _LEAST, 0.0, jnp.minimum(tail, _MOST))


def _beta(mean, variance) -> tuple[jax.Array, jax.Array]:
    """`(1 / a, 1 / b)` of the Beta(a, b) whose logit has these moments, nearly."""

    def log_mean(tail):  # of log Gamma(1 / tail)
        return jnp.log(1 / tail + 0.5) - tail

    def halve(_, bracket):
        low, high = bracket
        logit = 0.5 * (low + high)
        below = _tail(variance * jax.nn.sigmoid(logit))
        above = _tail(variance * jax.nn.sigmoid(-logit))
        # a larger share of the variance below is a smaller mean
        larger = log_mean(below) - log_mean(above) > mean
        return jnp.where(larger, logit, low), jnp.where(larger, high, logit)

    ends = jnp.full_like(mean, -20.0), jnp.full_like(mean, 20.0)
    logit = sum(jax.lax.fori_loop(0, 30, halve, ends)) / 2
    below = _tail(variance * jax.nn.sigmoid(logit))
    return below, _tail(variance * jax.nn.sigmoid(-logit))
