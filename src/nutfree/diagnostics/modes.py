"""Modes of a sample without a reference, and whether chains agree on their weights.

A chain that stays in one of several modes looks perfect from inside. Modes are found
among the draws of all chains (or all kernels) together, and each chain's share of each
mode is compared with the others', beside what exact chains of that size would show.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ModeAgreement",
    "find_modes",
    "mode_weights",
    "squared_distances",
    "thin",
    "total_variation",
]


def thin(draws: NDArray, max_draws: int) -> NDArray:
    """At most ``max_draws`` rows, evenly spaced from the first to the last."""
    if len(draws) <= max_draws:
        return draws
    return draws[np.linspace(0, len(draws) - 1, max_draws).round().astype(int)]


def squared_distances(a: NDArray, b: NDArray) -> NDArray:
    """Squared Euclidean distances between rows, ``(len(a), len(b))``."""
    cross = a @ b.T
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * cross, 0.0)


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """Half the sum of absolute differences of two weight vectors."""
    return 0.5 * float(np.abs(np.asarray(p, float) - np.asarray(q, float)).sum())


class ModeAgreement(NamedTuple):
    """Shares of each chain's draws in each mode, and whether chains agree on them."""

    weights: NDArray
    """``(chains, modes)``: share of the chain's draws in the mode."""
    tv: float
    """Largest total variation between the weights of two chains."""
    floor: float
    """95 % quantile of the same between exact chains of the effective sizes."""
    limit: float
    """Its 99.9 % quantile."""
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


def _connected(a: NDArray, b: NDArray, depth: float, *, nearest: bool) -> bool:
    """Whether two cells' draws show no valley along the line through their means.

    Next neighbours are given the benefit of counting noise: the few draws of a tail
    leave gaps by chance.
    """
    axis = b.mean(0) - a.mean(0)
    length = np.linalg.norm(axis)
    if length == 0:
        return True
    axis = axis / length
    left, right = a @ axis, b @ axis
    start, stop = left.mean(), right.mean()
    width = 0.9 * min(left.std() + right.std(), stop - start)
    width *= 0.5 * min(len(a), len(b)) ** -0.2
    if width <= 0:
        return False
    grid = np.linspace(start, stop, 41)
    together = np.concatenate([left, right])
    density = np.exp(-0.5 * ((grid[:, None] - together) / width) ** 2).sum(1)
    valley = int(density[5:-5].argmin()) + 5
    peak = min(density[: valley + 1].max(), density[valley:].max())
    low = density[valley]
    return bool(low + nearest * (1.0 + np.sqrt(low)) > depth * peak)


def find_modes(
    draws: NDArray,
    *,
    max_draws: int = 2000,
    num_cells: int = 80,
    min_weight: float = 0.01,
    depth: float = 0.2,
    num_axes: int = 8,
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
        num_axes: principal axes that are kept. Coordinates are scaled by the modes'
            widths first, so modes far apart lie along the leading axes.

    Returns:
        Integer labels ``(n,)``, numbered from the heaviest mode.
    """
    from scipy.sparse.csgraph import connected_components
    from sklearn.cluster import KMeans

    x = np.asarray(draws, dtype=np.float64)
    if len(x) < 20:
        return np.zeros(len(x), dtype=int)
    x = (x - x.mean(0)) / _local_scale(x)
    if x.shape[1] > num_axes:
        _, _, axes = np.linalg.svd(thin(x, max_draws), full_matrices=False)
        x = x @ axes[:num_axes].T
    core = thin(x, max_draws)
    num_cells = min(num_cells, max(len(core) // 40, 2))
    cut = KMeans(num_cells, n_init=2, random_state=0).fit(core)
    cells = [core[cut.labels_ == k] for k in range(num_cells)]
    gaps = squared_distances(cut.cluster_centers_, cut.cluster_centers_)
    np.fill_diagonal(gaps, np.inf)
    next_to = gaps.argmin(1)
    joined = np.zeros((num_cells, num_cells), dtype=bool)
    for i in range(num_cells):
        for j in range(i):
            if len(cells[i]) > 1 and len(cells[j]) > 1:
                nearest = bool(next_to[i] == j or next_to[j] == i)
                joined[i, j] = _connected(cells[i], cells[j], depth, nearest=nearest)
    _, mode_of = connected_components(joined, directed=False)
    share = np.bincount(mode_of, np.bincount(cut.labels_, minlength=num_cells))
    heavy = np.flatnonzero(share >= min_weight * len(core))
    kept = np.flatnonzero(np.isin(mode_of, heavy))
    to_kept = squared_distances(cut.cluster_centers_, cut.cluster_centers_[kept])
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
    num_replicates: int = 4000,
    seed: int = 0,
) -> ModeAgreement:
    """Weights of the modes in each chain, and their agreement between chains.

    The floor replaces each chain by independent labels from the pooled weights, as many
    as the chain's labels are worth (their effective sample size, or the chain's length
    when no chain ever leaves its mode).

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
    _, labels = np.unique(labels, return_inverse=True)
    labels = labels.reshape(num_chains, num_draws)
    num_modes = int(labels.max()) + 1
    counts = np.stack([np.bincount(row, minlength=num_modes) for row in labels])
    weights = counts / num_draws
    centers = np.stack(
        [pooled[labels.ravel() == mode].mean(0) for mode in range(num_modes)]
    )
    sizes = np.array([_label_ess(row, num_modes) for row in labels])
    stays = weights.max(1) > 0.98
    if stays.any() and not stays.all():
        # a chain that happens to stay is worth no more than those that move
        sizes[stays] = np.minimum(sizes[stays], sizes[~stays].min())
    rng = np.random.default_rng(seed)
    share = weights.mean(0)
    exact = np.stack(
        [
            rng.multinomial(max(int(size), 1), share, size=num_replicates) / int(size)
            for size in sizes
        ],
        axis=1,
    )
    floor, limit = np.quantile(_largest_tv(exact), [0.95, 0.999])
    tv = float(_largest_tv(weights))
    return ModeAgreement(weights, tv, float(floor), float(limit), centers, sizes)
