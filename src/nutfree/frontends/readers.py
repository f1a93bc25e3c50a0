"""Arrays on disk that are read by ranges of rows: `.npy`, Zarr, Parquet, HDF5."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nutfree.errors import InvalidData, NutfreeError, needed

#: What of this module needs other packages.
READING = "Reading these rows"


class Reader:
    """An array on disk, read by ranges of rows.

    Args:
        read: `read(low, high)`, rows low to high - 1 as a numpy array.
        shape: of the array, rows first.
        edges: where its storage chunks begin, and its end: `(0, ..., num_rows)`; two
            numbers where any rows are read as easily as any others.
        name: of the array, for messages.
    """

    def __init__(
        self,
        read: Callable,
        shape: Sequence[int],
        dtype: Any,
        edges=None,
        name: str = "rows",
    ):
        self.name = name
        self.shape = tuple(shape)
        self.dtype = jax.dtypes.canonicalize_dtype(dtype)
        self.edges = np.asarray([0, shape[0]] if edges is None else edges, np.int64)
        self._read = read
        self._chunk: tuple[int, Any] = (-1, None)

    def __call__(self, low: int, high: int) -> np.ndarray:
        if len(self.edges) == 2:
            return self._numbers(low, high)
        parts = []
        while low < high:
            chunk = int(np.searchsorted(self.edges, low, "right")) - 1
            begin, end = int(self.edges[chunk]), int(self.edges[chunk + 1])
            if self._chunk[0] != chunk:  # a chunk is decoded once for its many blocks
                value = self._numbers(begin, end)
                self._chunk = (chunk, value)
            parts.append(self._chunk[1][low - begin : min(high, end) - begin])
            low = min(high, end)
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _numbers(self, low: int, high: int) -> np.ndarray:
        try:
            source = np.asarray(self._read(low, high))
        except InvalidData:
            raise
        # a chunk is damaged or gone, which HDF5, Zarr and Arrow each say by errors of
        # their own; the rows are named, and the cause is chained
        except Exception as error:
            raise InvalidData(
                f"Rows {low} to {high - 1} of '{self.name}' cannot be read: {error}. "
                "Write the file anew."
            ) from error
        with np.errstate(over="ignore"):
            rows = np.asarray(source, self.dtype)
        check_finite(self.name, rows, low, source)
        return rows


def open_array(name: str, value: Any) -> Reader:
    """Open the array that is called `name`, from its path or by its slices.

    Raises:
        InvalidData: if it is neither, or has no rows.
    """
    if isinstance(value, str | os.PathLike):
        value = _opened(name, Path(value))
    if not all(hasattr(value, a) for a in ("shape", "dtype", "__getitem__")):
        raise InvalidData(
            f"'{name}' is a {type(value).__name__}. Pass the path of a .npy file or of "
            "a Zarr array, or an array that reads its rows by slices."
        )
    if not value.shape or not value.shape[0]:
        raise InvalidData(
            f"'{name}' has no rows: its shape is {value.shape}. Pass an array with a "
            "row for each observation."
        )
    check_numbers(name, value.dtype)
    if isinstance(value, np.memmap) and _is_whole(value):
        return Reader(_pread(value), value.shape, value.dtype, name=name)
    chunks = getattr(value, "chunks", None)
    edges = None
    if chunks and chunks[0] < value.shape[0]:
        edges = [*range(0, value.shape[0], chunks[0]), value.shape[0]]
    return Reader(
        lambda low, high: value[low:high], value.shape, value.dtype, edges, name
    )


def _opened(name: str, path: Path) -> Any:
    """Open a file or folder of rows.

    Raises:
        InvalidData: if it is absent, damaged, or of another kind.
    """
    if not path.exists():
        raise InvalidData(
            f"'{name}' is to be read from '{path}', where there is nothing. Write the "
            "path of a .npy file or of a Zarr array."
        )
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        return needed("zarr", READING, "zarr").open_array(path, mode="r")
    except NutfreeError:
        raise
    # NumPy and Zarr raise errors of many kinds, by where a file is damaged; each means
    # that it cannot be read, and is chained
    except Exception as error:
        # numpy advises to trust a file of objects, which this library never does
        objects = any(word in str(error) for word in ("pickle", "Python objects"))
        why = "it holds Python objects" if objects else str(error).rstrip(".")
        raise InvalidData(
            f"'{name}' cannot be read from '{path}': {why}. Write it anew, by "
            "numpy.save or zarr.save_array, as an array of numbers."
        ) from error


def check_numbers(name: str, dtype: Any) -> None:
    """Refuse rows that are no real numbers.

    Raises:
        InvalidData: with the type that they have.
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf":
        raise InvalidData(
            f"'{name}' is of type {dtype}. Pass real numbers: encode categories as "
            "integers, dates as numbers of days, and complex numbers as two columns."
        )


def check_finite(name: str, rows: np.ndarray, low: int, source: np.ndarray) -> None:
    """Refuse rows that are not finite, or are not in the precision of the run.

    Args:
        rows: in the precision of the run.
        low: number of the first of them.
        source: as they are on disk.

    Raises:
        InvalidData: with the first such row.
    """
    if rows.dtype.kind != "f":
        if not np.array_equal(rows, source):
            raise InvalidData(
                f"'{name}' has integers near row {low} that {rows.dtype} cannot hold. "
                'Set jax.config.update("jax_enable_x64", True).'
            )
        return
    good = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if good.all():
        return
    row = int(np.flatnonzero(~good)[0])
    what = "a number too large for " + str(rows.dtype)
    if not np.isfinite(source[row]).all():
        what = "a NaN or an infinity"
    raise InvalidData(
        f"'{name}' has {what} in row {low + row}. Drop or repair such rows before they "
        "are written."
    )


def _is_whole(value: np.memmap) -> bool:
    """Say whether the array is its file from `offset` on, not a part of the mapping."""
    return (
        isinstance(value.base, mmap.mmap)
        and value.filename is not None
        and value.flags.c_contiguous
        and value.offset + value.nbytes == os.path.getsize(value.filename)
    )


def _pread(value: np.memmap) -> Callable:
    """Make a `read` into memory of its own; pages of a mapping would pile up."""
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


def open_parquet(
    path: str | os.PathLike, columns: Mapping[str, Any]
) -> dict[str, Reader]:
    """Open columns of a Parquet file: each name has a column, or several as a matrix.

    Raises:
        InvalidData: if the file does not have a column.
    """
    parquet = needed("pyarrow.parquet", READING, "parquet")
    try:
        file = parquet.ParquetFile(path)
    # pyarrow raises errors of its own and the system's; each means that the file cannot
    # be read, and is chained
    except Exception as error:
        raise InvalidData(
            f"'{path}' cannot be read as Parquet: {error}. Write it anew, or pass the "
            "path of a Parquet file."
        ) from error
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

        if not meta.num_rows:
            raise InvalidData(
                f"'{path}' has no rows. Pass a file with a row for each observation."
            )
        few = read(0, 1)
        check_numbers(name, few.dtype)
        shape = (meta.num_rows, *few.shape[1:])
        return Reader(read, shape, few.dtype, edges, name)

    return {name: reader(name, wanted) for name, wanted in columns.items()}
