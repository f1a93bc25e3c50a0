"""What a run says of itself, of draws that are too many to have in memory.

Draws are read a block at a time. R-hat is that of halves of chains (Gelman et al. 2013,
Bayesian Data Analysis, 11.4), with no ranks, for which all draws would be sorted.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

#: Numbers up to which the draws of a site are had in memory as a whole.
MAX_NUMBERS = 5_000_000


def are_many(posterior: xr.Dataset) -> bool:
    """Say whether the draws are too many to have in memory more than once."""
    return sum(site.size for site in posterior.values()) > MAX_NUMBERS


def some_draws(posterior: xr.Dataset) -> xr.Dataset:
    """Return as many draws, evenly spread over the chains, as are no burden."""
    numbers = sum(site.size for site in posterior.values())
    return posterior.isel(draw=slice(None, None, -(-numbers // MAX_NUMBERS) or 1))


class RunningMoments:
    """Mean and sum of squares about it, of values that come in blocks.

    n' = n + k,    mean' = mean + k (m - mean) / n',
    squares' = squares + s + n k (m - mean)^2 / n',

    with mean m and squares s of a block of k (Chan, Golub and LeVeque 1983).
    """

    def __init__(self) -> None:
        self.number = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, block: NDArray, axis: int) -> None:
        """Add values along an axis."""
        k = block.shape[axis]
        if not k:
            return
        mean = block.mean(axis, dtype=np.float64)
        squares = block.var(axis, dtype=np.float64) * k
        number = self.number + k
        apart = mean - self.mean
        self.squares = self.squares + squares + apart**2 * (self.number * k / number)
        self.mean = self.mean + apart * (k / number)
        self.number = number


class RunningFaults:
    """What speaks against draws that come in blocks, whatever their law.

    Attributes:
        not_finite: how many numbers are not.
        largest: the absolute value of the largest that is.
        unmoved: of each chain, whether all draws are the same.
    """

    def __init__(self) -> None:
        self.not_finite, self.largest = 0, 0.0
        self.unmoved: Any = True
        self._compared: Any = None

    def add(self, block: NDArray) -> None:
        """Add draws, `(chains, draws, ...)`."""
        finite = np.isfinite(block)
        self.not_finite += int(block.size - finite.sum())
        largest = np.max(np.abs(block), initial=0, where=finite)
        self.largest = max(self.largest, float(largest))
        if self._compared is None:
            self._compared = block[:, :1].copy()  # and not the whole block with it
        same = np.all(block == self._compared, axis=tuple(range(1, block.ndim)))
        self.unmoved = self.unmoved & same


def split_r_hat(halves: list[RunningMoments]) -> NDArray:
    """Return R-hat of every parameter, from halves of chains.

    Args:
        halves: with leading axes of chains.
    """
    n = min(half.number for half in halves)
    if n < 2:
        return np.full(np.shape(halves[0].mean)[1:], np.nan)
    means = np.concatenate([half.mean for half in halves])
    within = np.concatenate([half.squares / (half.number - 1) for half in halves])
    within = within.mean(0)
    between = np.var(means, axis=0, ddof=1)
    with np.errstate(all="ignore"):
        return np.sqrt((n - 1) / n + between / within)


def in_blocks(site: xr.DataArray) -> Iterator[tuple[int, NDArray]]:
    """Yield the place of a first draw, and draws from there on, `(chain, n, ...)`."""
    site = site.transpose("chain", "draw", ...)
    total = site.sizes["draw"]
    size = max(1, MAX_NUMBERS * total // max(site.size, 1))
    for first in range(0, total, size):
        yield first, site.isel(draw=slice(first, first + size)).values


def worst_of(site: xr.DataArray) -> dict[str, Any]:
    """Return what speaks against the draws of a site.

    Returns:
        `r_hat` of the worst parameter, of constants NaN; `not_finite`, how many draws
        are not; `largest`, the absolute value of the largest that is; and `unmoved`,
        of each chain whether all draws are the same.
    """
    halves = [RunningMoments(), RunningMoments()]
    middle = site.sizes["draw"] // 2
    faults = RunningFaults()
    for first, block in in_blocks(site):
        faults.add(block)
        cut = min(max(middle - first, 0), block.shape[1])
        halves[0].add(block[:, :cut], 1)
        halves[1].add(block[:, cut:], 1)
    r_hat = split_r_hat(halves)
    r_hat = r_hat[np.isfinite(r_hat)]
    return {
        "r_hat": float(r_hat.max()) if r_hat.size and not faults.not_finite else np.nan,
        "not_finite": faults.not_finite,
        "largest": faults.largest,
        "unmoved": faults.unmoved,
    }
