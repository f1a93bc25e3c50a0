"""Discrepancies that judge draws without a reference sample.

R-hat and ESS compare chains with each other, so a discretisation that shifts every
chain alike, or a mode that no chain visits, leaves them perfect. Three numbers here
look elsewhere; the first and the last come with their Monte-Carlo floor, the value that
exact draws of the same size stay below nineteen times in twenty:

- the kernel Stein discrepancy asks whether the draws agree with the *score* of the
  posterior. It sees any wrong shape inside a mode, less and less of it as the dimension
  grows; it is nearly blind to the weights of modes far apart, whose score does not
  depend on them.
- the score moments ask the same of each coordinate's location and scale alone. They
  lose nothing with the dimension, and see nothing else.
- the agreement of mode weights asks whether independent chains give each mode the same
  share of their draws. It sees what the others cannot, and nothing else.

Everything is summed in float64 on the host, so float32 draws and scores are safe.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from nutfree.diagnostics.modes import (
    ModeAgreement,
    find_modes,
    mode_weights,
    squared_distances,
    thin,
    total_variation,
)
from nutfree.numerics.programs import in_full_precision, jitted

__all__ = [
    "ModeAgreement",
    "ScoreMoments",
    "SteinDiscrepancy",
    "entropic_w2",
    "find_modes",
    "kernel_stein_discrepancy",
    "mode_weights",
    "score_moments",
    "scores",
    "thin",
    "total_variation",
]

LogDensity = Callable[[Any], Any]


class SteinDiscrepancy(NamedTuple):
    """A kernel Stein discrepancy and the floor it should stay below."""

    ksd: float
    """The discrepancy; zero when the draws' law is the target and n is infinite."""
    floor: float
    """95 % quantile of the discrepancy under exact independent draws."""
    num_draws: int
    """Draws that entered, after thinning and after leaving out non-finite ones."""
    num_dropped: int
    """Draws left out because their position or score is not finite."""

    @property
    def ratio(self) -> float:
        """Discrepancy over floor: below 1 nothing speaks against the draws."""
        return self.ksd / self.floor if self.floor > 0 else float("nan")


@in_full_precision
def scores(draws: Any, logdensity_fn: LogDensity, *, batch_size: int = 64) -> NDArray:
    """Gradient of the log density at every draw, as an ``(n, d)`` array.

    Args:
        draws: an ``(n, d)`` array, or a pytree whose leaves have a leading axis ``n``.
        logdensity_fn: log density of one position of that structure.
        batch_size: rows evaluated together; bounds the memory.
    """

    def score(position: Any) -> jax.Array:
        return ravel_pytree(jax.grad(logdensity_fn)(position))[0]

    evaluate = jitted(lambda xs: jax.lax.map(score, xs, batch_size=batch_size))
    return np.asarray(evaluate(draws), dtype=np.float64)


def _stein_block(x: NDArray, s: NDArray, y: NDArray, t: NDArray) -> NDArray:
    """Stein kernel of k(x, y) = (1 + |x − y|²)^(−1/2), rows x, columns y."""
    squared = squared_distances(x, y)
    q = 1.0 / (1.0 + squared)
    root = np.sqrt(q)
    # (s − t)·(x − y), without an (n, n, d) array
    drift = (s * x).sum(1)[:, None] + (t * y).sum(1)[None] - s @ y.T - x @ t.T
    curvature = x.shape[1] - 3.0 * squared * q
    return root * (s @ t.T) + root * q * (drift + curvature)


def kernel_stein_discrepancy(
    draws: ArrayLike,
    scores_or_logdensity: ArrayLike | LogDensity,
    *,
    max_draws: int = 1000,
    num_bootstrap: int = 500,
    block: int = 256,
    seed: int = 0,
    noisy: bool = False,
) -> SteinDiscrepancy:
    r"""Inverse-multiquadric kernel Stein discrepancy of draws, with its floor.

    :math:`\mathrm{KSD}^2 = n^{-2}\sum_{ij} k_0(x_i, x_j)` with

    .. math::
        k_0(x, y) = s_x^\top s_y\,k + s_x^\top\nabla_y k + s_y^\top\nabla_x k
                    + \mathrm{tr}\,\nabla_x\nabla_y k,
        \qquad k(x, y) = (1 + |x - y|^2)^{-1/2},

    where s is the score. Coordinates are divided first by the draws' standard
    deviations and then by the median distance between draws, so the number does not
    depend on units. The floor is the 95 % quantile of
    :math:`n^{-2}\sum_{ij} w_i w_j k_0(x_i, x_j)` over Rademacher signs w (the wild
    bootstrap), which is the discrepancy's law when the draws are independent and exact.
    Autocorrelated draws exceed that floor however right they are: thin them to about
    their effective sample size first.

    Scores may be estimates, unbiased and with independent errors, as those from a batch
    of rows for each draw: :math:`k_0` is linear in either score, so that
    with ``noisy`` the mean over pairs of different draws,
    :math:`(n(n-1))^{-1}\sum_{i\ne j}`, is an unbiased estimate of the squared
    discrepancy, which the terms of a draw with itself would make too large.

    Args:
        draws: array ``(n, d)`` on the space where the density lives.
        scores_or_logdensity: array ``(n, d)`` of scores, or a log density of a ``(d,)``
            vector that JAX can differentiate.
        max_draws: longer samples are thinned evenly to this many draws.
        num_bootstrap: sign vectors behind the floor.
        block: rows of the Stein matrix held at once; memory is O(n · block).
        seed: of the signs.
        noisy: whether the scores are estimates, whose errors are independent.

    Returns:
        A :class:`SteinDiscrepancy`. All fields are NaN when fewer than three draws are
        finite.

    Raises:
        ValueError: if the shapes disagree.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(400, 2))
        >>> exact = kernel_stein_discrepancy(x, -x)
        >>> shifted = kernel_stein_discrepancy(x + 0.5, -(x + 0.5))
        >>> bool(exact.ratio < 1 < shifted.ratio)
        True

    References:
        Gorham & Mackey, Measuring Sample Quality with Kernels, arXiv 1703.01717;
        Chwialkowski, Strathmann & Gretton, A Kernel Test of Goodness of Fit,
        arXiv 1602.02964.
    """
    given = np.asarray(draws)
    if given.ndim != 2:
        raise ValueError(f"draws must have shape (n, d); they have {given.shape}")
    if callable(scores_or_logdensity):
        given = thin(given, max_draws)
        s = scores(given, scores_or_logdensity)
    else:
        s = np.asarray(scores_or_logdensity, dtype=np.float64)
        if s.shape != given.shape:
            raise ValueError(
                f"draws {given.shape} and scores {s.shape} differ in shape"
            )
        given, s = thin(given, max_draws), thin(s, max_draws)
    x = given.astype(np.float64)
    finite = np.isfinite(x).all(1) & np.isfinite(s).all(1)
    dropped = int((~finite).sum())
    x, s = x[finite], s[finite]
    n = len(x)
    if n < 3:
        return SteinDiscrepancy(float("nan"), float("nan"), n, dropped)

    scale = x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x, s = (x - x.mean(0)) / scale, s * scale
    pilot = thin(x, 300)
    distances = squared_distances(pilot, pilot)[np.triu_indices(len(pilot), 1)]
    length = np.sqrt(np.median(distances)) or 1.0
    x, s = x / length, s * length

    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n, num_bootstrap))
    total, null = 0.0, np.zeros(num_bootstrap)
    for start in range(0, n, block):
        rows = slice(start, start + block)
        matrix = _stein_block(x[rows], s[rows], x, s)
        if noisy:
            matrix[np.arange(len(matrix)), np.arange(start, start + len(matrix))] = 0.0
        total += matrix.sum()
        null += (signs[rows] * (matrix @ signs)).sum(0)
    pairs = n * (n - 1) if noisy else n * n
    ksd = np.sqrt(max(total, 0.0) / pairs)
    floor = np.sqrt(max(np.quantile(null, 0.95), 0.0) / pairs)
    return SteinDiscrepancy(float(ksd), float(floor), n, dropped)


class ScoreMoments(NamedTuple):
    """How far moments that involve the score are from their known values."""

    location: NDArray
    """Mean of the score, zero under the target, in standard errors; shape ``(d,)``."""
    scale: NDArray
    """Mean of ``(x − mean) s``, −1 under the target, in standard errors; ``(d,)``."""
    spread: float
    """The mean of that over all coordinates, in standard errors."""
    location_error: NDArray
    """Standard error of a coordinate's mean, in standard deviations; ``(d,)``."""
    scale_error: NDArray
    """Standard error of the logarithm of a coordinate's variance; ``(d,)``."""

    @property
    def worst(self) -> float:
        """The largest of all, without its sign."""
        both = np.abs(np.concatenate([self.location, self.scale, [self.spread]]))
        return float(np.max(both, initial=0.0))

    def limit(self, level: float = 1e-3) -> float:
        """What `worst` exceeds with probability ``level`` under the target."""
        tests = len(self.location) + len(self.scale) + 1
        return float(stats.norm.isf(0.5 * level / tests))

    def power(self, level: float = 1e-3) -> tuple[float, float]:
        """The errors of a mean, in sds, and of a sd, as a part of it, that `worst`
        finds nine times in ten, in the coordinate where they are largest."""
        reach = self.limit(level) + float(stats.norm.ppf(0.9))
        mean = reach * float(np.max(self.location_error, initial=0.0))
        return mean, np.expm1(0.5 * reach * float(np.max(self.scale_error, initial=0)))


def score_moments(draws: ArrayLike, scores: ArrayLike) -> ScoreMoments:
    r"""Check each coordinate's location and scale against the score.

    Under the target, :math:`E[s_j] = 0` and :math:`E[(x_j - E x_j) s_j] = -1`: Stein's
    identity for a constant and for a linear function. In draws that are a times too
    wide, the second is :math:`-a^2`.

    Args:
        draws: array ``(n, d)`` of independent draws, or ``(chains, n, d)`` of chains,
            whose autocorrelation enters the standard errors. Draws that are not
            finite are left out, in chains with those of the same time.
        scores: the gradient of the log density at each, of the same shape.

    Returns:
        A :class:`ScoreMoments`; NaN where fewer than three draws are finite.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(400, 2))
        >>> bool(score_moments(x, -x).worst < 4)
        True
        >>> bool(score_moments(1.3 * x, -1.3 * x).worst > 4)
        True
    """
    x, s = np.asarray(draws, np.float64), np.asarray(scores, np.float64)
    if x.shape != s.shape or x.ndim not in (2, 3):
        raise ValueError(
            f"draws {x.shape} and scores {s.shape} must be one (n, d) or (chains, n, d)"
        )
    chains = x.ndim == 3
    finite = np.isfinite(x).all(-1) & np.isfinite(s).all(-1)
    keep = finite.all(0) if chains else finite
    x, s = x[..., keep, :], s[..., keep, :]
    dim, number = x.shape[-1], x.size // max(x.shape[-1], 1)
    if number < 3:
        nothing = np.full(dim, np.nan)
        return ScoreMoments(nothing, nothing, np.nan, nothing, nothing)
    over = tuple(range(x.ndim - 1))
    centred = x - x.mean(over)
    sd = centred.std(over)

    def mean_error_and_size(terms: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        size = effective_sizes(terms) if chains else np.full(terms.shape[-1], number)
        error = terms.std(over, ddof=0) / np.sqrt(np.maximum(size - 1, 1))
        return terms.mean(over), np.maximum(error, np.finfo(float).tiny), size

    mean, error, size = mean_error_and_size(s)
    location, location_error = _normal(mean / error, size), error * sd
    mean, error, size = mean_error_and_size(-centred * s)
    scale, scale_error = _normal(-_of_logarithm(mean, error), size), error / mean
    mean, error, size = mean_error_and_size(-(centred * s).mean(-1, keepdims=True))
    spread = _normal(-_of_logarithm(mean, error), size)[0]
    return ScoreMoments(location, scale, float(spread), location_error, scale_error)


def effective_sizes(terms: NDArray) -> NDArray:
    """Effective sample size of each series of ``(chains, n, k)``, at least 2."""
    from arviz_stats.base import array_stats

    number = terms.shape[0] * terms.shape[1]
    if terms.shape[1] < 8:
        return np.full(terms.shape[-1], float(number))
    with np.errstate(all="ignore"):
        size = array_stats.ess(terms, chain_axis=0, draw_axis=1, method="mean")
    return np.clip(np.nan_to_num(np.asarray(size), nan=2.0), 2.0, number)


def _of_logarithm(mean: NDArray, error: NDArray) -> NDArray:
    """How far means are from one, in standard errors: those of the logarithm, whose
    error depends less on the value; where there is none, plain."""
    positive = np.where(mean > 0, mean, 1.0)
    return np.where(mean > 0, np.log(positive) * positive, mean - 1.0) / error


def _normal(studentised: NDArray, size: NDArray) -> NDArray:
    """Normal quantiles of t statistics of that many draws."""
    tail = np.maximum(stats.t.sf(np.abs(studentised), size - 1), 1e-300)
    return np.sign(studentised) * stats.norm.isf(tail)


def entropic_w2(x: ArrayLike, y: ArrayLike, *, epsilon: float | None = None) -> float:
    """Entropic 2-Wasserstein distance between two samples (root of the divergence).

    The Sinkhorn divergence is debiased: it is zero between a sample and itself.

    Args:
        x: sample ``(n, d)``.
        y: sample ``(m, d)``.
        epsilon: regularisation; ott-jax's default (a twentieth of the cost's spread)
            when None.
    """
    import jax.numpy as jnp
    from ott.geometry import pointcloud
    from ott.tools import sinkhorn_divergence

    divergence, _ = sinkhorn_divergence.sinkhorn_divergence(
        pointcloud.PointCloud, jnp.asarray(x), jnp.asarray(y), epsilon=epsilon
    )
    return float(np.sqrt(max(float(divergence), 0.0)))
