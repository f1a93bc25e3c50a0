"""A run is kept on disk piece by piece: a killed process loses at most one piece.

A checkpoint is a folder: `state.npz`, the sampler's state after the last whole piece
with a header that says of which run, and `draws-00000.npz` and so on, the draws that
each piece made, which numpy reads without this library. No file is ever unpickled. A
file is written aside and then moved into place, so it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.errors import CheckpointMismatch

if TYPE_CHECKING:
    import xarray

FORMAT = 1
_HEADER = "header"


class Checkpoint:
    """The folder in which a run is kept.

    Args:
        path: the folder; made when the first piece is written.
        run: what the run is, a dict of what JSON can hold. A folder of another run is
            refused.

    Raises:
        CheckpointMismatch: if the folder is of another run, or is no checkpoint.
    """

    def __init__(self, path: str | os.PathLike, run: Mapping[str, Any]):
        self.path = Path(path)
        self.run = json.loads(json.dumps({"format": FORMAT, **run}, default=repr))
        self._found = _read_header(self.path)
        if self._found is not None:
            self._check(self._found["run"])

    def _check(self, found: Mapping[str, Any]) -> None:
        for name in {**self.run, **found}:
            if found.get(name) != self.run.get(name):
                raise CheckpointMismatch(
                    f"The checkpoint '{self.path}' is of another run: its {name} is "
                    f"{found.get(name)!r}, here it is {self.run.get(name)!r}. Run with "
                    "the same, or take another checkpoint=...; "
                    "nutfree.read_checkpoint(path) has its draws."
                )

    @property
    def progress(self) -> dict[str, Any] | None:
        """What was passed to the last `save` as progress, or None for a new run."""
        return None if self._found is None else self._found["progress"]

    def state(self, like: Any) -> Any:
        """Return the state, in the structure of `like`.

        Args:
            like: a state of this run, or its `jax.ShapeDtypeStruct`s.

        Raises:
            CheckpointMismatch: if the state on disk has another structure.
        """
        with _open(self.path / "state.npz") as stored:
            paths, treedef = jax.tree_util.tree_flatten_with_path(like)
            named = {_name(path): leaf for path, leaf in paths}
            names = {n for n in stored.files if n != _HEADER}
            if names != set(named):
                odd = sorted(names ^ set(named))[0]
                raise CheckpointMismatch(
                    f"The state in '{self.path}' has another structure than this run's "
                    f"(at '{odd}'). Take another checkpoint=... ."
                )
            leaves = [self._leaf(n, stored[n], leaf) for n, leaf in named.items()]
        return jax.tree_util.tree_unflatten(treedef, leaves)

    def draws(self, like: Any) -> list[Any]:
        """Return the draws of each piece, in the structure of `like`."""
        paths, treedef = jax.tree_util.tree_flatten_with_path(like)
        pieces = 0 if self.progress is None else self.progress["pieces"]
        return [
            jax.tree_util.tree_unflatten(treedef, [made[_name(p)] for p, _ in paths])
            for made in _read_draws(self.path, pieces)
        ]

    def _leaf(self, name: str, value: np.ndarray, like: Any) -> Any:
        typed_key = jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key)
        shape, dtype = like.shape, like.dtype
        if typed_key:
            data = jax.eval_shape(jax.random.key_data, like)
            shape, dtype = data.shape, data.dtype
        if value.dtype.kind == "V":  # what numpy makes of bfloat16 and its like
            value = value.view(dtype)
        if value.shape != shape or value.dtype != dtype:
            raise CheckpointMismatch(
                f"'{name}' of the state in '{self.path}' has shape {value.shape} and "
                f"type {value.dtype}; this run's has {shape} and {dtype}. Take another "
                "checkpoint=... ."
            )
        if typed_key:
            return jax.random.wrap_key_data(
                jnp.asarray(value), impl=like.dtype._impl.name
            )
        return value

    def save(
        self, state: Any, draws: Mapping[str, np.ndarray] | None, **progress: Any
    ) -> None:
        """Keep a piece: its draws, if it made any, and the state after it."""
        self.path.mkdir(parents=True, exist_ok=True)
        pieces = 0 if self.progress is None else self.progress["pieces"]
        if draws is not None:
            _write(_piece(self.path, pieces), dict(_flat(draws)))
            pieces += 1
        progress = {**progress, "pieces": pieces}
        self._found = {"run": self.run, "progress": progress}
        header = np.asarray(json.dumps(self._found))
        _write(self.path / "state.npz", {**dict(_flat(state)), _HEADER: header})


def fingerprint(fn: Callable, *args: Any, data: Any = ()) -> str:
    """Return a digest of a traced program and of the arrays in it and in `data`.

    Args:
        fn: what is traced, on `args` or their `jax.ShapeDtypeStruct`s.
        data: a pytree; leaves that are no array count by their `repr`.
    """
    program = jax.make_jaxpr(fn)(*args)
    # addresses of Python objects differ from one process to the next
    text = re.sub(r"0x[0-9a-f]+", "", str(program.jaxpr))
    digest = hashlib.sha256(text.encode())
    for leaf in (*program.consts, *jax.tree.leaves(data)):
        if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
            value = _plain(leaf)
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).view(np.uint8).data)
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that must not change within a run."""
    return {name: version(name) for name in ("nutfree", "numpyro", "jax")}


def read_checkpoint(path: str | os.PathLike) -> xarray.DataTree:
    """Read the draws that a run with `checkpoint=path` has kept so far, for ArviZ.

    Args:
        path: the folder; its run may be over, interrupted, or still under way.

    Returns:
        An `xarray.DataTree` with groups posterior and sample_stats, the latter with
        what the run is as attributes.

    Raises:
        CheckpointMismatch: if there is no checkpoint, or it has no draws yet.
    """
    import xarray as xr

    path = Path(path)
    header = _read_header(path)
    draws = [] if header is None else _read_draws(path, header["progress"]["pieces"])
    if header is None or not draws:
        raise CheckpointMismatch(
            f"There are no draws in '{path}'. Pass the folder that nutfree.sample was "
            "given as checkpoint=..., after its warm-up."
        )
    whole = {k: np.concatenate([d[k] for d in draws], axis=1) for k in draws[0]}
    groups: dict[str, dict] = {"posterior": {}, "sample_stats": {}}
    field = header["run"]["sample_field"]
    for name, value in whole.items():
        is_site = name == field or name.startswith(f"{field}.")
        group = groups["posterior" if is_site else "sample_stats"]
        if is_site:
            name = name.removeprefix(field).removeprefix(".").replace("/", ".") or "x"
        dims = [f"{name}_dim_{i}" for i in range(value.ndim - 2)]
        group[name] = (["chain", "draw", *dims], value)
    tree = xr.DataTree.from_dict({k: xr.Dataset(v) for k, v in groups.items()})
    attrs = header["run"].items()
    kept = {k: v for k, v in attrs if isinstance(v, str | int | float)}
    tree["sample_stats"].attrs.update(kept)
    return tree


def _piece(path: Path, number: int) -> Path:
    return path / f"draws-{number:05d}.npz"


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "leaf"


def _plain(leaf: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _flat(tree: Any):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield _name(path), _plain(leaf)


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    aside = path.with_suffix(".tmp")
    with aside.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _open(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointMismatch(
            f"'{path}' is not a file of a checkpoint: {error} Take another "
            "checkpoint=... ."
        ) from error


def _read_header(path: Path) -> dict[str, Any] | None:
    """Return what `state.npz` says of its run, or None where there is no file yet."""
    file = path / "state.npz"
    if not file.exists():
        if path.exists() and (not path.is_dir() or any(map(_foreign, path.iterdir()))):
            raise CheckpointMismatch(
                f"'{path}' is there and is no checkpoint. Take another checkpoint=... ."
            )
        return None
    with _open(file) as stored:
        try:
            header = json.loads(str(stored[_HEADER]))
            return {"run": header["run"], "progress": header["progress"]}
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointMismatch(
                f"'{file}' has no readable header. Take another checkpoint=... ."
            ) from error


def _foreign(file: Path) -> bool:
    """Whether it cannot have been left by a process killed in its first piece."""
    return not (file.suffix == ".tmp" or file.name.startswith("draws-"))


def _read_draws(path: Path, pieces: int) -> list[dict[str, np.ndarray]]:
    draws = []
    for number in range(pieces):
        with _open(_piece(path, number)) as stored:
            draws.append({name: stored[name] for name in stored.files})
    return draws
