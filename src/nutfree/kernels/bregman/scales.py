"""Real coordinates in units that depend on positive ones.

Where the scale of a real z is a product of powers of positive numbers, whose logs are
theta, the density has funnels or curved ridges: a coefficient under a latent scale, or
a standardised one beside it that the data tie to it. They are gone in

    y_i = z_i (1 + exp(2 l_i + 2 b_i))^(1/2),    l_i = sum_j C_ij (theta_j - level_j):

z has two sources of precision, one of which is constant and the other a power. With
C = -1, y is the standardised coordinate of a centred model where the data say little,
and z where they say much; with C = 1 it is the centred one of a standardised model
where they say much. Papaspiliopoulos, Roberts and Skold 2007,
doi:10.1214/088342307000000014, choose one of both for good.

If y and theta are independent, the scores g obey

    g_theta_j = f_j(theta_j) + sum_i C_ij sigmoid(2 l_i + 2 b_i) (1 + z_i g_i)

at every point. Least squares on the points of a pilot, with an f that is affine, thus
find C from few points, however much those depend on each other.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.warmup.fisher import MAX_DENSE

#: Mean powers below this are not worth a map.
LEAST = 0.2
#: Standard errors that a mean power must be away from 0.
NUM_ERRORS = 4.0
#: Weight of the power 0, in points.
PRIOR_POINTS = 1.0
#: Fewest points by which powers are found.
FEWEST = 20
#: Most standard deviations from 0 of the means of those z, by their mean square, whose
#: scale rises with theta: where it vanishes, so must they.
OFF_ZERO = 0.6
#: What a map must leave at most of that by which a posterior is unlike a Gaussian.
MUCH_LESS = 0.7
#: Powers that are tried, relative to the mean one.
RELATIVE = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
#: Onsets that are tried; with the last the scale is a power everywhere.
ONSETS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 10.0)


class Which(NamedTuple):
    """The numbers of the coordinates that have a scale, and of those that make it."""

    real: np.ndarray
    positive: np.ndarray

    @property
    def sizes(self) -> tuple[int, int]:
        return self.real.size, self.positive.size


class Scales(NamedTuple):
    """C, of shape `(num_real, num_positive)`, the level of theta, and b, by real
    coordinate."""

    powers: jax.Array
    level: jax.Array
    onset: jax.Array


def which_of(real: np.ndarray, positive: np.ndarray) -> Which:
    """The numbers of the coordinates; none where one kind lacks or they are many.

    Args:
        real, positive: `(d,)`, whether a coordinate is a real site's, or a log.
    """
    if real.size > MAX_DENSE or not (real.any() and positive.any()):
        real = positive = np.zeros(0, bool)
    return Which(np.flatnonzero(real), np.flatnonzero(positive))


def no_scales(which: Which, like: jax.Array) -> Scales:
    """A map that leaves every coordinate as it is."""
    zeros = jnp.zeros(which.sizes, like.dtype)
    return Scales(zeros, like[which.positive], jnp.zeros(zeros.shape[0], like.dtype))


def leave_scaled(
    z, which: Which, scales: Scales, hold: Callable = lambda x: x
) -> tuple[jax.Array, jax.Array]:
    """`(z, log |dz / dy|)` of the y of the real coordinates, `(d,)` and a scalar.

    Args:
        hold: applied to log |dz / dy|.
    """
    log_unit = hold(_log_unit(z, which, scales))
    return z * jnp.exp(log_unit), jnp.sum(log_unit)


def enter_scaled(z, which: Which, scales: Scales) -> jax.Array:
    """The inverse of `leave_scaled`, `(d,)`."""
    return z * jnp.exp(-_log_unit(z, which, scales))


def _log_unit(z, which: Which, scales: Scales) -> jax.Array:
    """log |dz_i / dy_i|, `(d,)`."""
    onset = 2 * scales.onset
    along = 2 * scales.powers @ (z[which.positive] - scales.level)
    log_unit = 0.5 * (jax.nn.softplus(onset) - jax.nn.softplus(along + onset))
    return jnp.zeros_like(z).at[which.real].set(log_unit)


def found_scales(which: Which, z, score, told, level) -> Scales:
    """The scales that least squares find, or none where those are no improvement.

    Args:
        z, score: points and the scores there, `(n, d)`.
        told: `(n,)`, which of them to learn from.
        level: theta at the middle of the posterior, `(num_positive,)`.
    """
    none = no_scales(which, z[0])._replace(level=level)
    if min(which.sizes) == 0:
        return none
    found = _least_squares(which, z, score, told, level)

    def moved(z, score):
        y = enter_scaled(z, which, found)
        _, pull = jax.vjp(lambda y: leave_scaled(y, which, found), y)
        return y, pull((score, jnp.ones((), z.dtype)))[0]

    y, pull = jax.vmap(moved)(z, score)
    before = _unlike_a_gaussian(z, score, told)
    after = _unlike_a_gaussian(y, pull, told)
    better = (after < MUCH_LESS * before) & (jnp.sum(told) > FEWEST)
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), found, none)


def _unlike_a_gaussian(z, score, told) -> jax.Array:
    """What of the variance of scores no affine function of the point tells, a number.

    By leaving points out one by one, with the mean over coordinates.
    """
    x, _ = _standardised(z, told)
    y, _ = _standardised(score, told)
    hat = x @ jnp.linalg.solve(x.T @ x + _prior(told) * jnp.eye(x.shape[1]), x.T)
    left_out = (y - hat @ y) / (1 - jnp.minimum(jnp.diag(hat), 0.9))[:, None]
    return jnp.mean(jnp.sum(left_out**2, 0))


def _standardised(x, told) -> tuple[jax.Array, jax.Array]:
    """Columns of mean 0 and norm 1 over the told rows, and their norms."""
    weight = told.astype(x.dtype)[:, None]
    shifted = weight * (x - jnp.sum(weight * x, 0) / jnp.maximum(jnp.sum(weight), 1))
    norms = jnp.sqrt(jnp.sum(shifted**2, 0))
    norms = jnp.where(norms > 0, norms, 1.0)
    return shifted / norms, norms


def _prior(told) -> jax.Array:
    return PRIOR_POINTS / jnp.maximum(jnp.sum(told), 1)


def _least_squares(which: Which, z, score, told, level) -> Scales:
    num_real = which.real.size
    theta = z[:, which.positive]
    felt = 1 + z[:, which.real] * score[:, which.real]
    x, of_felt = _standardised(felt, told)
    own, _ = _standardised(theta, told)
    pull, of_pull = _standardised(score[:, which.positive], told)

    def mean_powers(own, pull):
        """The mean powers of one theta, and what of its score they leave, `(n,)`."""
        seen = jnp.append(x, own[:, None], axis=1)
        gram = seen.T @ seen + _prior(told) * jnp.eye(num_real + 1)
        inverse = jnp.linalg.inv(gram)
        beta = inverse @ seen.T @ pull
        left = pull - seen @ beta
        freedom = jnp.maximum(jnp.sum(told) - num_real - 2, 1)
        error = jnp.sqrt(jnp.diag(inverse) * jnp.sum(left**2) / freedom)
        sure = jnp.abs(beta) > NUM_ERRORS * error
        return jnp.where(sure, beta, 0.0)[:num_real], left + x @ beta[:num_real]

    powers, left = jax.vmap(mean_powers, in_axes=1)(own, pull)
    powers = powers * of_pull[:, None] / of_felt
    powers = jnp.where(jnp.isfinite(powers) & (jnp.abs(powers) > LEAST), powers, 0.0)
    _, of_real = _standardised(z[:, which.real], told)
    of_mean = jnp.sum(jnp.where(told[:, None], z[:, which.real], 0.0), 0) / of_real
    off_zero = jnp.square(of_mean) / jnp.maximum(jnp.sum(told), 1)
    rising = powers < 0
    off_zero = jnp.sum(rising * off_zero, 1) / jnp.maximum(jnp.sum(rising, 1), 1)
    powers = jnp.where(rising & (off_zero > OFF_ZERO**2)[:, None], 0.0, powers)
    # what of the score of one theta the others leave to one z: (n, theta, z)
    felt = x * of_felt
    left = (left * of_pull[:, None]).T - felt @ powers.T
    left = left[:, :, None] + felt[:, None, :] * powers
    along = (theta - level) @ powers
    weight = told.astype(z.dtype)[:, None, None]

    def misfit(tried):
        relative, onset = tried
        share = relative * jax.nn.sigmoid(2 * (relative * along + onset))
        felt = 1 + z[:, which.real] * score[:, which.real]
        by_one = weight * (share * felt)[:, None, :] * powers
        by_one = by_one - weight * jnp.sum(by_one, 0) / jnp.maximum(jnp.sum(told), 1)
        return jnp.sum(jnp.where(powers != 0, left - by_one, 0.0) ** 2, (0, 1))

    relative, onset = jnp.meshgrid(jnp.array(RELATIVE), jnp.array(ONSETS))
    tried = jnp.stack([relative.ravel(), onset.ravel()], 1).astype(z.dtype)
    best = tried[jnp.argmin(jax.lax.map(misfit, tried), 0)]
    return Scales(powers.T * best[:, :1], level, best[:, 1])
