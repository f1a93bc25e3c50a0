"""Means, variances and quantiles of draws that are not kept.

Mean and variance are those of all draws. Quantiles are read off counts: of each
parameter, how many draws of all chains are below each of some numbers, `GRID` standard
deviations from the mean of the first draws. Between two of them a normal law is
interpolated, so that a quantile is right to that spacing whatever the law, and nearly
exact where it is smooth. R-hat is that of halves of chains, and the error of a mean is
from means of batches (Flegal and Jones 2010, arXiv 0811.1729).
"""

import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from nutfree.diagnostics.blocks import RunningFaults, RunningMoments, split_r_hat

#: Where draws are counted, in standard deviations from the mean.
GRID = np.concatenate([[-8.0, -5.5], np.arange(-4, 4.01, 0.25), [5.5, 8.0]])
#: Draws of each chain, and share of all, before the first that is counted.
FIRST, FIRST_SHARE = 20, 0.05
#: Parameters of a site that are looked at at a time.
SLICE = 1 << 15
#: Probability of the interval, as ArviZ has it.
INTERVAL = 0.89

#: What is told of a parameter, in order; names are those of `arviz.summary`.
COLUMNS = (
    "mean",
    "sd",
    "median",
    "eti89_lb",
    "eti89_ub",
    "ess_mean",
    "r_hat",
    "mcse_mean",
)


class RunningSummary:
    """What is told of the draws of one site.

    Parameters are looked at `SLICE` at a time, so that a site of many takes little
    more memory than what is known of it.

    Args:
        total: draws of each chain that are to come.
    """

    def __init__(self, total: int):
        self._total = total
        self._slices: list[_Slice] = []
        self._shape: tuple[int, ...] = ()

    def add(self, block: NDArray) -> None:
        """Add draws, `(chains, draws, ...)`."""
        self._shape = block.shape[2:]
        flat = block.reshape(*block.shape[:2], -1)
        firsts = range(0, max(flat.shape[2], 1), SLICE)
        parts = [flat[:, :, first : first + SLICE] for first in firsts]
        if not self._slices:
            self._slices = [
                _Slice(self._total, len(part), part.shape[2]) for part in parts
            ]
        for known, part in zip(self._slices, parts, strict=True):
            known.add(part)

    @property
    def not_finite(self) -> int:
        """How many numbers are not finite."""
        return sum(part.not_finite for part in self._slices)

    @property
    def largest(self) -> float:
        """The absolute value of the largest number that is."""
        return max(part.largest for part in self._slices)

    @property
    def unmoved(self) -> NDArray:
        """Of each chain, whether all draws are the same."""
        return np.all([part.unmoved for part in self._slices], axis=0)

    def table(self) -> NDArray:
        """Return `COLUMNS` of every parameter, `(len(COLUMNS), ...)`."""
        found = np.empty((len(COLUMNS), math.prod(self._shape)))
        for i, part in enumerate(self._slices):
            found[:, i * SLICE : (i + 1) * SLICE] = part.table()
        return found.reshape(-1, *self._shape)

    def r_hat(self) -> NDArray:
        """Return R-hat of every parameter."""
        hats = np.concatenate([part.r_hat() for part in self._slices])
        return hats.reshape(self._shape)


class _Slice(RunningFaults):
    """What is told of some parameters of a site.

    Args:
        total: draws of each chain that are to come.
        num_chains: of which there are draws.
        size: number of parameters.
    """

    def __init__(self, total: int, num_chains: int, size: int):
        super().__init__()
        self.total, self.number = total, 0
        self._nan = np.broadcast_to(np.nan, size)
        self._halves = [RunningMoments(), RunningMoments()]
        self._length = max(1, math.isqrt(total))
        self._sum: Any = 0.0  # of the draws of a batch that is not yet full
        self._batches = RunningMoments()
        self._first = min(total // 2, max(FIRST, int(FIRST_SHARE * total)))
        self._place: Any = None
        self._counts: Any = np.zeros((), np.min_scalar_type(total * num_chains))
        self._counted = 0
        self._least: Any = np.inf
        self._most: Any = -np.inf

    def add(self, block: NDArray) -> None:
        """Add draws, `(chains, draws, parameters)`."""
        super().add(block)
        ends = {self.number, self.number + block.shape[1]}
        batches = range(0, self.total + 1, self._length)
        cuts = {self.total // 2, self._first, *batches}
        places = sorted(ends | {c for c in cuts if min(ends) < c < max(ends)})
        for low, high in pairwise(places):
            self._add(block[:, low - places[0] : high - places[0]])

    def _add(self, part: NDArray) -> None:
        """Add draws that are of one half, and of one batch."""
        if self.number >= self._first > 0:
            if self._place is None:
                self._place = self._placed(np.result_type(part.dtype, np.float32))
            below = _below(part, self._grid())
            self._counts = self._counts + below.astype(self._counts.dtype)
            self._counted += part.shape[0] * part.shape[1]
            self._least = np.minimum(self._least, part.min((0, 1)))
            self._most = np.maximum(self._most, part.max((0, 1)))
        self._halves[self.number >= self.total // 2].add(part, 1)
        self._sum = self._sum + part.sum(1, dtype=np.float64)
        self.number += part.shape[1]
        if self.number % self._length == 0:
            self._batches.add((self._sum / self._length)[:, None], 1)
            self._sum = 0.0

    def _placed(self, dtype: Any) -> tuple[NDArray, NDArray]:
        """Return mean and standard deviation of the first draws, of all chains."""
        first = self._halves[0]
        within = first.squares.mean(0) / first.number
        scale = np.sqrt(within + np.var(first.mean, axis=0))
        return first.mean.mean(0).astype(dtype), scale.astype(dtype)

    def _grid(self) -> NDArray:
        """Return the numbers that draws are compared with, `(numbers, parameters)`."""
        center, scale = self._place
        return center + np.multiply.outer(GRID.astype(scale.dtype), scale)

    def table(self) -> NDArray:
        """Return `COLUMNS` of every parameter, `(len(COLUMNS), ...)`."""
        halves = [half for half in self._halves if half.number]
        number = sum(half.number for half in halves)
        means = sum(half.mean * half.number for half in halves) / number
        squares = sum(
            half.squares + half.number * (half.mean - means) ** 2 for half in halves
        )
        num_chains = len(means)
        mean = means.mean(0)
        squares = squares.sum(0) + number * ((means - mean) ** 2).sum(0)
        variance = squares / max(number * num_chains - 1, 1)
        with np.errstate(all="ignore"):
            batches = self._batches
            of_mean = np.full(mean.shape, np.nan)
            if batches.number > 1:
                spread = batches.squares / (batches.number - 1) / batches.number
                of_mean = spread.mean(0) / num_chains
            ess = variance / of_mean
        lower, middle, upper = (
            self._quantile(p) for p in ((1 - INTERVAL) / 2, 0.5, (1 + INTERVAL) / 2)
        )
        columns = {
            **{"mean": mean, "sd": np.sqrt(variance), "median": middle},
            **{"eti89_lb": lower, "eti89_ub": upper, "ess_mean": ess},
            **{"r_hat": self.r_hat(), "mcse_mean": np.sqrt(of_mean)},
        }
        return np.stack([columns[name] for name in COLUMNS])

    def r_hat(self) -> NDArray:
        """Return R-hat of every parameter."""
        if not all(half.number for half in self._halves):
            return self._nan
        return split_r_hat(self._halves)

    def _quantile(self, probability: float) -> NDArray:
        if not self._counted:
            return self._nan
        n = self._counted
        end = 0.5 / n
        x_low, p_low = np.asarray(self._least, np.float64), np.full((), end)
        x_high, p_high = np.asarray(self._most, np.float64), np.full((), 1 - end)
        for grid, count in zip(self._grid(), self._counts, strict=True):
            share = count / n
            below = (share <= probability) & (grid > x_low)
            x_low = np.where(below, grid, x_low)
            p_low = np.where(below, np.maximum(share, end), p_low)
            above = (share > probability) & (grid < x_high)
            x_high = np.where(above, grid, x_high)
            p_high = np.where(above, np.minimum(share, 1 - end), p_high)
        # next to the least or the largest draw, where the law may end, a uniform one
        at_end = (p_low <= end) | (p_high >= 1 - end)
        p_low, p, p_high = (
            np.where(at_end, q, ndtri(q)) for q in (p_low, probability, p_high)
        )
        with np.errstate(all="ignore"):
            part = (p - p_low) / (p_high - p_low)
        part = np.clip(np.where(np.isfinite(part), part, 0.5), 0, 1)
        return x_low + part * (x_high - x_low)


def _below(block: NDArray, grid: NDArray) -> NDArray:
    """Return how many draws are below each number of a grid, `(numbers, ...)`."""
    # of a length of which there are few, so that few programs are compiled
    length = 1 << (block.shape[1] - 1).bit_length()
    pad = [(0, 0), (0, length - block.shape[1]), *((0, 0),) * (block.ndim - 2)]
    return np.asarray(_count(np.pad(block, pad, constant_values=np.nan), grid))


@jax.jit
def _count(block, grid):
    draws = block.reshape(-1, *block.shape[2:])
    return jnp.sum(draws < grid[:, None], axis=1, dtype=jnp.int32)
