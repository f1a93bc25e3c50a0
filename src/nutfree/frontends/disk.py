"""Data whose rows stay on disk: what reads them, in order and at random.

A window is a number of rows that are in memory at once, made of blocks of neighbouring
rows. A block begins at a row drawn uniformly from all N, and goes on from the first
row of its storage chunk where that ends; so whatever the chunks, each place of a window
holds each row with probability 1/N, and a gradient from rows drawn out of it is
unbiased.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nutfree.errors import InvalidData, NutfreeError

#: What a window and what a block of a pass over all rows hold, unless told otherwise.
WINDOW_ROWS, WINDOW_BYTES = 2**18, 2**26
BLOCK_ROWS, PASS_ROWS, PASS_BYTES = 1024, 2**15, 2**24
#: Blocks that a window has at least.
MIN_BLOCKS = 16


class Reader:
    """One array on disk.

    Args:
        read: `read(low, high)`, rows low to high - 1 as a numpy array.
        shape: of the array, rows first.
        edges: where its storage chunks begin, and its end: `(0, ..., num_rows)`; two
            numbers where any rows are read as easily as any others.
    """

    def __init__(self, read: Callable, shape: Sequence[int], dtype: Any, edges=None):
        self.shape = tuple(shape)
        self.dtype = jax.dtypes.canonicalize_dtype(dtype)
        self.edges = np.asarray([0, shape[0]] if edges is None else edges, np.int64)
        self._read = read
        self._chunk: tuple[int, Any] = (-1, None)

    def __call__(self, low: int, high: int) -> np.ndarray:
        if len(self.edges) == 2:
            return np.asarray(self._read(low, high), self.dtype)
        parts = []
        while low < high:
            chunk = int(np.searchsorted(self.edges, low, "right")) - 1
            begin, end = int(self.edges[chunk]), int(self.edges[chunk + 1])
            if self._chunk[0] != chunk:  # a chunk is decoded once for its many blocks
                value = np.asarray(self._read(begin, end), self.dtype)
                self._chunk = (chunk, value)
            parts.append(self._chunk[1][low - begin : min(high, end) - begin])
            low = min(high, end)
        return np.concatenate(parts) if len(parts) != 1 else parts[0]


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
        self._worker = ThreadPoolExecutor(1, "nutfree-rows")
        self._ahead: dict[tuple[int, int], Future] = {}
        self._lock = threading.Lock()

    def read(self, low: int, high: int) -> dict[str, np.ndarray]:
        return {name: reader(low, high) for name, reader in self.readers.items()}

    def window_blocks(self, seed: Sequence[int], number: int) -> np.ndarray:
        """Row numbers of a window, shape `(blocks, block_rows)`."""
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
        """The rows of window `number`: the same for the same seed, `(window_rows,)`."""
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
        """`window`, read by the loader's thread."""
        return self._worker.submit(self.window, seed, number)

    def in_order(self, start: int, size: int) -> dict[str, np.ndarray]:
        """Rows `start` to `start + size - 1`; the last one is repeated beyond the end.

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
        """How much more the mean of a window varies than that of as many single rows.

        The variance of block means over that of rows divided by the block's size, for
        the column where this is largest: one where rows are in random order, and up to
        `block_rows` where neighbours are alike.
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
    """`(low, high)` of each run of consecutive row numbers, in order."""
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
    """Arrays that stay on disk, to pass to `nutfree.sample` as a model's arguments.

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
        InvalidData: if the arrays differ in their number of rows, or are none.

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
        readers = _parquet(parquet, arrays)
    else:
        readers = {name: _reader(name, value) for name, value in arrays.items()}
    source = Source(readers, window_rows, block_rows, devices)
    return {name: DiskRows(source, name) for name in readers}


def _reader(name: str, value: Any) -> Reader:
    if isinstance(value, str | os.PathLike):
        path = Path(value)
        if path.suffix == ".npy":
            value = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            value = _needed("zarr").open_array(path, mode="r")
    if not all(hasattr(value, a) for a in ("shape", "dtype", "__getitem__")):
        raise InvalidData(
            f"'{name}' is a {type(value).__name__}. Pass the path of a .npy file or of "
            "a Zarr array, or an array that reads its rows by slices."
        )
    if not value.shape or not value.shape[0]:
        raise InvalidData(f"'{name}' has no rows: its shape is {value.shape}.")
    if isinstance(value, np.memmap) and _is_whole(value):
        return Reader(_pread(value), value.shape, value.dtype)
    chunks = getattr(value, "chunks", None)
    edges = None
    if chunks and chunks[0] < value.shape[0]:
        edges = [*range(0, value.shape[0], chunks[0]), value.shape[0]]
    return Reader(lambda low, high: value[low:high], value.shape, value.dtype, edges)


def _is_whole(value: np.memmap) -> bool:
    """Whether the array is its file from `offset` on, and not a part of the mapping."""
    return (
        isinstance(value.base, mmap.mmap)
        and value.filename is not None
        and value.flags.c_contiguous
        and value.offset + value.nbytes == os.path.getsize(value.filename)
    )


def _pread(value: np.memmap) -> Callable:
    """Reads into memory of its own: pages of a mapping would pile up in the process."""
    path = Path(str(value.filename))
    file = path.open("rb", buffering=0)  # for as long as the reader
    offset, shape, dtype = value.offset, value.shape[1:], value.dtype
    row_bytes = dtype.itemsize * int(np.prod(shape))

    def read(low: int, high: int) -> np.ndarray:
        found = np.empty((high - low, *shape), dtype)
        at, left = offset + low * row_bytes, memoryview(found).cast("B")
        while left.nbytes:
            got = os.preadv(file.fileno(), [left], at)
            if not got:
                raise InvalidData(f"'{value.filename}' ends before its last row.")
            at, left = at + got, left[got:]
        return found

    return read


def _parquet(path: str | os.PathLike, columns: Mapping[str, Any]) -> dict[str, Reader]:
    file = _needed("pyarrow.parquet", "parquet").ParquetFile(path)
    meta = file.metadata
    sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    edges = np.concatenate([[0], np.cumsum(sizes)])

    def reader(name: str, wanted: str | Sequence[str]) -> Reader:
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        absent = [n for n in names if n not in file.schema_arrow.names]
        if absent:
            listed = ", ".join(file.schema_arrow.names)
            raise InvalidData(f"'{path}' has no column '{absent[0]}', only {listed}.")

        def read(low: int, high: int) -> np.ndarray:
            first, last = np.searchsorted(edges, [low, high - 1], "right") - 1
            groups = list(range(int(first), int(last) + 1))
            table = file.read_row_groups(groups, columns=names)
            table = table.slice(low - int(edges[first]), high - low)
            found = [table.column(n).to_numpy() for n in names]
            return found[0] if isinstance(wanted, str) else np.stack(found, axis=1)

        few = read(0, 1)
        return Reader(read, (meta.num_rows, *few.shape[1:]), few.dtype, edges)

    return {name: reader(name, wanted) for name, wanted in columns.items()}


def _needed(module: str, extra: str | None = None) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        how = f'pip install "nutfree[{extra}]"' if extra else f"pip install {package}"
        raise NutfreeError(
            f"Reading these rows needs {package}, which is not installed: {how}."
        ) from error
