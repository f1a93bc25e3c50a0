"""Data whose rows stay on disk, read at random by windows and in order by passes.

A window is the rows that are in memory at once, made of blocks of neighbouring rows. A
block begins at a row drawn uniformly from all N; where its storage chunk ends, it goes
on from the first row of the chunk. So, whatever the chunks are, each place of a window
holds each row with probability 1/N, and a gradient from rows drawn out of it is
unbiased.
"""

from __future__ import annotations

import numbers
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from nutfree.errors import InvalidData
from nutfree.frontends.readers import Reader, open_array, open_parquet

#: Most rows of a window unless the user says otherwise.
WINDOW_ROWS = 2**18
#: Most bytes of a window unless the user says otherwise.
WINDOW_BYTES = 2**26
#: Rows of a block of a window, where the storage has no chunks.
BLOCK_ROWS = 1024
#: Least number of blocks of a window.
MIN_BLOCKS = 16
#: Most rows in memory at once in a pass over all.
PASS_ROWS = 2**15
#: Most bytes in memory at once in a pass over all.
PASS_BYTES = 2**24


class Source:
    """Arrays on disk whose rows belong together.

    Args:
        readers: by name.
        window_rows: rows of a window.
        block_rows: neighbouring rows read in one go.
        devices: over which the rows of a window are spread.
    """

    def __init__(
        self,
        readers: Mapping[str, Reader],
        window_rows: int | None = None,
        block_rows: int | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.readers = dict(readers)
        sizes = {name: r.shape[0] for name, r in self.readers.items()}
        if len(set(sizes.values())) != 1:
            raise InvalidData(f"The arrays differ in their number of rows: {sizes}.")
        self.num_data = next(iter(sizes.values()))
        if self.num_data >= 2**31 and not jax.config.jax_enable_x64:
            raise InvalidData(
                f"{self.num_data} rows cannot be numbered in 32 bits. Set "
                'jax.config.update("jax_enable_x64", True).'
            )
        self.devices = list(jax.local_devices() if devices is None else devices)
        for what, size in (("window_rows", window_rows), ("block_rows", block_rows)):
            if size is not None and (
                not isinstance(size, numbers.Integral)
                or isinstance(size, bool)
                or size < 1
            ):
                raise InvalidData(
                    f"{what} is {size!r}; write a whole number that is at least 1."
                )
        parts = len(self.devices)
        row_bytes = sum(
            r.dtype.itemsize * int(np.prod(r.shape[1:])) for r in self.readers.values()
        )
        if window_rows is None:
            window_rows = max(min(WINDOW_ROWS, WINDOW_BYTES // row_bytes), 1024)
        self.window_rows = parts * max(window_rows // parts, 1)
        pass_rows = max(min(PASS_ROWS, PASS_BYTES // row_bytes), 64)
        # a plate subsamples only where a batch is smaller than it
        pass_rows = min(pass_rows, self.num_data // 2)
        self.pass_rows = parts * max(pass_rows // parts, 1)
        # the array with the fewest rows a chunk is where reading at random costs most
        self.edges = max((r.edges for r in self.readers.values()), key=len)
        if block_rows is None:
            chunk = int(np.diff(self.edges).max())
            block_rows = chunk if len(self.edges) > 2 else BLOCK_ROWS
            block_rows = min(block_rows, self.window_rows // MIN_BLOCKS)
        self.block_rows = max(min(block_rows, self.window_rows), 1)
        #: Why a program that reads rows has ended, where they are why.
        self.failed: InvalidData | None = None
        self._worker = ThreadPoolExecutor(1, "nutfree-rows")
        self._ahead: dict[tuple[int, int], Future] = {}
        self._lock = threading.Lock()

    def read(self, low: int, high: int) -> dict[str, np.ndarray]:
        return {name: reader(low, high) for name, reader in self.readers.items()}

    def window_blocks(self, seed: Sequence[int], number: int) -> np.ndarray:
        """Draw the row numbers of a window, shape `(blocks, block_rows)`."""
        rng = np.random.default_rng([*seed, number])
        blocks = -(-self.window_rows // self.block_rows)
        first = np.sort(rng.integers(0, self.num_data, blocks))  # in the disk's order
        chunk = np.searchsorted(self.edges, first, "right") - 1
        low, size = self.edges[chunk], np.diff(self.edges)[chunk]
        offset = (first - low)[:, None] + np.arange(self.block_rows)
        rows = low[:, None] + offset % size[:, None]
        # sorted blocks would put low rows at low places
        return rows[rng.permutation(blocks)]

    def window(self, seed: Sequence[int], number: int) -> dict[str, np.ndarray]:
        """Read the rows of window `number`, `(window_rows,)`; a seed fixes them."""
        blocks = self.window_blocks(seed, number)
        found = {
            name: np.empty((blocks.size, *r.shape[1:]), r.dtype)
            for name, r in self.readers.items()
        }
        for place in np.argsort(blocks[:, 0], kind="stable"):
            at = int(place) * self.block_rows
            for low, high in _runs(blocks[place]):
                for name, value in self.read(low, high).items():
                    found[name][at : at + high - low] = value
                at += high - low
        return {name: value[: self.window_rows] for name, value in found.items()}

    def submit_window(self, seed: Sequence[int], number: int) -> Future:
        """Read a window in the loader's thread."""
        return self._worker.submit(self.window, seed, number)

    def in_order(self, start: int, size: int) -> dict[str, np.ndarray]:
        """Read rows `start` to `start + size - 1`; beyond the end repeat the last one.

        The block that a pass asks for next is read ahead.
        """
        with self._lock:
            task = self._ahead.pop((start, size), None)
            following = start + self.pass_rows
            if following >= self.num_data:
                following = start % self.pass_rows
            if len(self._ahead) > 2 * len(self.devices):
                self._ahead.clear()
            if task is None:
                task = self._worker.submit(self._block, start, size)
            ahead = self._worker.submit(self._block, following, size)
            self._ahead[following, size] = ahead
        return task.result()

    def _block(self, start: int, size: int) -> dict[str, np.ndarray]:
        low, high = min(start, self.num_data - 1), min(start + size, self.num_data)
        found = self.read(low, max(high, low + 1))
        return {
            name: np.concatenate([v, np.repeat(v[-1:], size - len(v), axis=0)])
            for name, v in found.items()
        }

    def order_effect(self, window: Mapping[str, np.ndarray]) -> float:
        """Estimate how much more a window's mean varies than that of as many rows.

        It is the variance of block means over that of rows divided by the block's
        size, for the column where this is largest: one where rows are in random order,
        and up to `block_rows` where neighbours are alike.
        """
        size, worst = self.block_rows, 1.0
        whole = self.window_rows // size * size
        for value in window.values():
            columns = np.asarray(value[:whole], np.float64).reshape(whole, -1)
            variance = columns.var(axis=0)
            means = columns.reshape(-1, size, columns.shape[1]).mean(axis=1)
            if len(means) > 1:
                # a constant column varies in nothing but its rounding
                ok = variance > 1e-12 * np.mean(columns**2, axis=0)
                effect = size * means.var(axis=0, ddof=1)[ok] / variance[ok]
                worst = max(worst, *effect.tolist())
        return worst


def _runs(rows: np.ndarray):
    """Yield `(low, high)` of each run of consecutive row numbers, in order."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    for run in np.split(rows, cuts):
        yield int(run[0]), int(run[-1]) + 1


class DiskRows:
    """One array of a `Source`, as an argument of a model; made by `nutfree.rows`."""

    def __init__(self, source: Source, name: str):
        self.source, self.name = source, name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.readers[self.name].shape

    @property
    def dtype(self) -> np.dtype:
        return self.source.readers[self.name].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DiskRows({self.name!r}, shape={self.shape}, dtype={self.dtype})"

    def __array__(self, *args, **kwargs):
        raise InvalidData(
            f"'{self.name}' stays on disk. Pass it to nutfree.sample with a kernel of "
            "the SGLD family; for the others load it, numpy.load(...)."
        )

    __jax_array__ = __array__


def rows(
    parquet: str | os.PathLike | None = None,
    *,
    window_rows: int | None = None,
    block_rows: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    **arrays: Any,
) -> dict[str, DiskRows]:
    """Open arrays that stay on disk, to pass to `nutfree.sample` as arguments.

    Args:
        parquet: a Parquet file; then each array names a column, or a list of columns
            that become those of a matrix. Needs pyarrow.
        window_rows: rows in memory at once; a quarter of a million, or 64 MiB of them,
            if None. Where there are no more than these, they are simply loaded.
        block_rows: neighbouring rows that are read in one go; a chunk of the storage,
            or 1,024, if None. Smaller is slower to read; but where neighbours are
            alike, in sorted data, larger blocks make noisier windows.
        devices: over which rows are spread; all local ones if None.
        **arrays: the path of a `.npy` file or of a Zarr array, or an array that reads
            its rows by slices: a `numpy.memmap`, a Zarr array, an HDF5 data set.

    Raises:
        InvalidData: if the arrays differ in their number of rows, are none, are no
            real and finite numbers, or cannot be read; with file and row.

    Example:
        >>> import tempfile, numpy as np
        >>> folder = tempfile.mkdtemp()
        >>> np.save(f"{folder}/y.npy", np.arange(10.0))
        >>> rows(y=f"{folder}/y.npy")["y"].shape
        (10,)
    """
    if not arrays:
        raise InvalidData('Name the arrays: nutfree.rows(X="X.npy", y="y.npy").')
    if parquet is not None:
        readers = open_parquet(parquet, arrays)
    else:
        readers = {name: open_array(name, value) for name, value in arrays.items()}
    source = Source(readers, window_rows, block_rows, devices)
    return {name: DiskRows(source, name) for name in readers}
