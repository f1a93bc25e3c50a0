"""Discrepancies that judge draws without a reference sample.

R-hat and ESS compare chains with each other, so a discretisation that shifts every
chain alike, or a mode that no chain visits, leaves them perfect. Two numbers here look
elsewhere, and each comes with its Monte-Carlo floor, the value that exact draws of the
same size stay below nineteen times in twenty:

- the kernel Stein discrepancy asks whether the draws agree with the *score* of the
  posterior. It sees wrong scales and shifts inside a mode; it is nearly blind to the
  weights of modes far apart, whose score does not depend on them.
- the agreement of mode weights asks whether independent chains give each mode the same
  share of their draws. It sees what the first cannot, and nothing else.

Everything is summed in float64 on the host, so float32 draws and scores are safe.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ModeAgreement",
    "SteinDiscrepancy",
    "entropic_w2",
    "find_modes",
    "kernel_stein_discrepancy",
    "mode_weights",
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


def thin(draws: NDArray, max_draws: int) -> NDArray:
    """At most ``max_draws`` rows, evenly spaced from the first to the last."""
    if len(draws) <= max_draws:
        return draws
    return draws[np.linspace(0, len(draws) - 1, max_draws).round().astype(int)]


def scores(draws: Any, logdensity_fn: LogDensity, *, batch_size: int = 64) -> NDArray:
    """Gradient of the log density at every draw, as an ``(n, d)`` array.

    Args:
        draws: an ``(n, d)`` array, or a pytree whose leaves have a leading axis ``n``.
        logdensity_fn: log density of one position of that structure.
        batch_size: rows evaluated together; bounds the memory.
    """

    def score(position: Any) -> jax.Array:
        return ravel_pytree(jax.grad(logdensity_fn)(position))[0]

    evaluate = jax.jit(lambda xs: jax.lax.map(score, xs, batch_size=batch_size))
    return np.asarray(evaluate(draws), dtype=np.float64)


def _squared_distances(a: NDArray, b: NDArray) -> NDArray:
    cross = a @ b.T
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * cross, 0.0)


def _stein_block(x: NDArray, s: NDArray, y: NDArray, t: NDArray) -> NDArray:
    """Stein kernel of k(x, y) = (1 + |x − y|²)^(−1/2), rows x, columns y."""
    squared = _squared_distances(x, y)
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

    Args:
        draws: array ``(n, d)`` on the space where the density lives.
        scores_or_logdensity: array ``(n, d)`` of scores, or a log density of a ``(d,)``
            vector that JAX can differentiate.
        max_draws: longer samples are thinned evenly to this many draws.
        num_bootstrap: sign vectors behind the floor.
        block: rows of the Stein matrix held at once; memory is O(n · block).
        seed: of the signs.

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
            raise ValueError(f"draws {given.shape} and scores {s.shape} differ in shape")
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
    distances = _squared_distances(pilot, pilot)[np.triu_indices(len(pilot), 1)]
    length = np.sqrt(np.median(distances)) or 1.0
    x, s = x / length, s * length

    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n, num_bootstrap))
    total, null = 0.0, np.zeros(num_bootstrap)
    for start in range(0, n, block):
        rows = slice(start, start + block)
        matrix = _stein_block(x[rows], s[rows], x, s)
        total += matrix.sum()
        null += (signs[rows] * (matrix @ signs)).sum(0)
    ksd = np.sqrt(max(total, 0.0)) / n
    floor = np.sqrt(max(np.quantile(null, 0.95), 0.0)) / n
    return SteinDiscrepancy(float(ksd), float(floor), n, dropped)


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """Half the sum of absolute differences of two weight vectors."""
    return 0.5 * float(np.abs(np.asarray(p, float) - np.asarray(q, float)).sum())


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


class ModeAgreement(NamedTuple):
    """Shares of each chain's draws in each mode, and whether chains agree on them."""

    weights: NDArray
    """``(chains, modes)``: share of the chain's draws in the mode."""
    tv: float
    """Largest total variation between the weights of two chains."""
    floor: float
    """95 % quantile of the same between exact chains of the effective sizes."""
    centers: NDArray
    """``(modes, d)``: mean of the draws of each mode."""
    effective_sizes: NDArray
    """``(chains,)``: effective sample size of each chain's mode labels."""

    @property
    def agree(self) -> bool:
        """Whether the chains' mode weights differ by no more than chance."""
        return self.tv <= self.floor


def _local_scale(x: NDArray, share: float = 0.05) -> NDArray:
    """Per coordinate, how far one goes to meet ``share`` of the draws.

    Unlike a standard deviation it does not grow with the distance between modes.
    """
    n = len(x)
    lag = max(2, int(share * n))
    ordered = np.sort(x, axis=0)
    width = np.median(ordered[lag:] - ordered[:-lag], axis=0)
    spread = x.std(0)
    return np.where(width > 1e-6 * spread, width, np.where(spread > 0, spread, 1.0))


def _connected(a: NDArray, b: NDArray, depth: float) -> bool:
    """Whether two cells' draws show no valley along the line through their means."""
    axis = b.mean(0) - a.mean(0)
    length = np.linalg.norm(axis)
    if length == 0:
        return True
    axis = axis / length
    left, right = a @ axis, b @ axis
    start, stop = left.mean(), right.mean()
    width = 0.6 * min(left.std() + right.std(), stop - start)
    width *= 0.5 * min(len(a), len(b)) ** -0.2
    if width <= 0:
        return False
    grid = np.linspace(start, stop, 41)
    together = np.concatenate([left, right])
    density = np.exp(-0.5 * ((grid[:, None] - together) / width) ** 2).sum(1)
    valley = int(density[5:-5].argmin()) + 5
    peak = min(density[: valley + 1].max(), density[valley:].max())
    return bool(density[valley] > depth * peak)


def find_modes(
    draws: NDArray,
    *,
    max_draws: int = 2000,
    num_cells: int = 80,
    min_weight: float = 0.01,
    depth: float = 0.25,
) -> NDArray[np.int_]:
    """Label draws by mode, with no reference and no number of modes given.

    The draws are cut into many cells by k-means. Two cells belong to one mode when the
    density of their draws, projected on the line through their means, has no valley
    below ``depth`` times its lower peak, or when a chain of such cells joins them; so
    bent and long modes stay whole. Two equal Gaussians are told apart from about four
    standard deviations on.

    Args:
        draws: array ``(n, d)``, chains pooled.
        max_draws: modes are found among this many draws, evenly spaced.
        num_cells: cells of the first cut; more than the modes one expects.
        min_weight: smaller groups are joined to the nearest mode.
        depth: how deep a valley separates modes, 0 to 1.

    Returns:
        Integer labels ``(n,)``, numbered from the heaviest mode.
    """
    from scipy.sparse.csgraph import connected_components
    from sklearn.cluster import KMeans

    x = np.asarray(draws, dtype=np.float64)
    if len(x) < 20:
        return np.zeros(len(x), dtype=int)
    x = (x - x.mean(0)) / _local_scale(x)
    core = thin(x, max_draws)
    num_cells = min(num_cells, len(core) // 10)
    cut = KMeans(num_cells, n_init=2, random_state=0).fit(core)
    cells = [core[cut.labels_ == k] for k in range(num_cells)]
    joined = np.zeros((num_cells, num_cells), dtype=bool)
    for i in range(num_cells):
        for j in range(i):
            if len(cells[i]) > 1 and len(cells[j]) > 1:
                joined[i, j] = _connected(cells[i], cells[j], depth)
    _, mode_of = connected_components(joined, directed=False)
    share = np.bincount(mode_of, np.bincount(cut.labels_, minlength=num_cells))
    heavy = np.flatnonzero(share >= min_weight * len(core))
    kept = np.flatnonzero(np.isin(mode_of, heavy))
    to_kept = _squared_distances(cut.cluster_centers_, cut.cluster_centers_[kept])
    mode_of = mode_of[kept[to_kept.argmin(1)]]
    assigned = mode_of[cut.predict(x)]
    _, assigned, counts = np.unique(assigned, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=int)
    rank[np.argsort(-counts)] = np.arange(len(counts))
    return rank[assigned]


def _label_ess(labels: NDArray, num_modes: int) -> float:
    """Effective sample size of one chain's mode labels, the smallest over modes."""
    from arviz_stats.base import array_stats

    sizes = [float(len(labels))]
    for mode in range(num_modes):
        indicator = (labels == mode).astype(float)
        if len(labels) >= 8 and 0.02 < indicator.mean() < 0.98:
            ess = array_stats.ess(indicator[None], method="mean")
            sizes.append(max(float(ess), 2.0))
    return min(size for size in sizes if np.isfinite(size))


def _largest_tv(weights: NDArray) -> NDArray:
    """Largest total variation over pairs of rows of ``(..., chains, modes)``."""
    pairs = np.abs(weights[..., :, None, :] - weights[..., None, :, :]).sum(-1)
    return 0.5 * pairs.max((-2, -1))


def mode_weights(
    draws_by_chain: ArrayLike | Sequence[ArrayLike],
    *,
    labels: NDArray | None = None,
    max_draws: int = 2000,
    min_weight: float = 0.02,
    num_replicates: int = 1000,
    seed: int = 0,
) -> ModeAgreement:
    """Weights of the modes in each chain, and their agreement between chains.

    The floor replaces each chain by independent labels from the pooled weights, as many
    as the chain's labels are worth (their effective sample size, or the chain's length
    when it never leaves a mode).

    Args:
        draws_by_chain: array ``(chains, n, d)``.
        labels: modes already found, ``(chains, n)``; found here when None.
        max_draws: as in :func:`find_modes`.
        min_weight: as in :func:`find_modes`.
        num_replicates: simulated sets of chains behind the floor.
        seed: of those.

    Returns:
        A :class:`ModeAgreement`. One chain agrees with itself: zero and zero.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> side = np.sign(rng.uniform(-1, 1, size=(2, 500, 1)))
        >>> side[1] = 1.0  # the second chain never leaves the right-hand mode
        >>> mode_weights(5 * side + rng.normal(size=(2, 500, 1))).agree
        False
    """
    draws = np.asarray(draws_by_chain, dtype=np.float64)
    if draws.ndim != 3:
        raise ValueError(f"draws must be (chains, n, d); they are {draws.shape}")
    num_chains, num_draws, dim = draws.shape
    pooled = draws.reshape(-1, dim)
    if labels is None:
        labels = find_modes(pooled, max_draws=max_draws, min_weight=min_weight)
    labels = np.asarray(labels).reshape(num_chains, num_draws)
    num_modes = int(labels.max()) + 1
    counts = np.stack([np.bincount(row, minlength=num_modes) for row in labels])
    weights = counts / num_draws
    centers = np.stack(
        [pooled[labels.ravel() == mode].mean(0) for mode in range(num_modes)]
    )
    sizes = np.array([_label_ess(row, num_modes) for row in labels])
    rng = np.random.default_rng(seed)
    share = weights.mean(0)
    exact = np.stack(
        [
            rng.multinomial(max(int(size), 1), share, size=num_replicates) / int(size)
            for size in sizes
        ],
        axis=1,
    )
    floor = float(np.quantile(_largest_tv(exact), 0.95))
    return ModeAgreement(weights, float(_largest_tv(weights)), floor, centers, sizes)
