"""Arrays in a file that is whole or absent, and that is read without trust.

A file is an uncompressed `.npz`, which numpy reads without this library. It is written
aside, under a random name that follows no link, and then moved into place. A reader
looks at shapes and types before it takes memory, and unpickles nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nutfree.errors import CheckpointMismatch

#: Bytes of an array's own header, at most; numpy's limit.
MAX_HEADER = 10_000


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write the arrays of a file.

    Raises:
        OSError: if they cannot be; then whatever was there before is still there.
    """
    aside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(aside, flags, 0o666), "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def read(
    path: Path, accepts: Callable[[str, tuple[int, ...], np.dtype], bool] | None = None
) -> dict[str, np.ndarray]:
    """Read the arrays of a file, by name.

    Args:
        accepts: `accepts(name, shape, dtype)`, asked before an array is read.

    Raises:
        CheckpointMismatch: if the file is absent or damaged, or an array is not
            accepted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({m.filename for m in members}) != len(members):
                raise ValueError("an array is there twice")
            size = path.stat().st_size
            return dict(_array(archive, m, size, accepts) for m in members)
    # a damaged file ends in BadZipFile, KeyError, NotImplementedError, ValueError and
    # others, by where the damage is; each means that it is no checkpoint
    except Exception as error:
        raise CheckpointMismatch(
            f"'{path}' is damaged, or is no file of this checkpoint "
            f"({type(error).__name__}: {error}). Take another path."
        ) from error


def _array(archive, member, size: int, accepts) -> tuple[str, np.ndarray]:
    name = member.filename.removesuffix(".npy")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
        raise ValueError(f"'{name}' is compressed, or larger than the file")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, fortran, dtype = readers[version](file, max_header_size=MAX_HEADER)
        if dtype.hasobject or dtype.names is not None:
            raise ValueError(f"'{name}' has no numbers but {dtype}")
        length = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or file.tell() + length != member.file_size:
            raise ValueError(f"'{name}' is not as long as its shape says")
        if accepts is not None and not accepts(name, shape, dtype):
            raise ValueError(f"'{name}' has shape {shape} and type {dtype}")
        value = np.frombuffer(file.read(), dtype)  # to the end, where the sum is
    return name, value.reshape(shape, order="F" if fortran else "C")
