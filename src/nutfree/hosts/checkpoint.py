"""A run is kept on disk piece by piece: a killed process loses at most one piece.

A checkpoint is a folder: `state.npz`, the sampler's state after the last whole piece
with a header that says of which run, and `draws-00000.npz` and so on, the draws that
each piece made, with their place in the run (`nutfree.hosts.archive`). The header has a
digest of all pieces. A lock keeps a second run out, for as long as a process lives.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.errors import CheckpointMismatch
from nutfree.hosts.archive import read, write
from nutfree.numerics.programs import arrays_in

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no such lock
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import xarray

FORMAT = 2
_HEADER = "header"
_LOCK = ".lock"


class Checkpoint:
    """The folder in which a run is kept; nobody else's until `close`.

    Args:
        path: the folder; made if there is none.
        run: what the run is, a dict of what JSON can hold. A folder of another run is
            refused.

    Raises:
        CheckpointMismatch: if the folder is of another run, is no checkpoint, is
            damaged, or belongs to a run under way.
    """

    def __init__(self, path: str | os.PathLike, run: Mapping[str, Any]):
        self.path = Path(path)
        self.run = json.loads(json.dumps({"format": FORMAT, **run}, default=repr))
        _refuse_foreign(self.path)
        self._lock = _locked(self.path)
        try:
            self._found = _read_header(self.path)
            if self._found is not None:
                self._check(self._found["run"])
        except BaseException:
            self.close()
            raise
        self.id = secrets.token_hex(8) if self._found is None else self._found["id"]
        for left in self.path.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others have the folder."""
        self._lock.close()

    def _check(self, found: Mapping[str, Any]) -> None:
        for name in {**self.run, **found}:
            if found.get(name) != self.run.get(name):
                raise CheckpointMismatch(
                    f"The checkpoint '{self.path}' is of another run: its {name} is "
                    f"{found.get(name)!r}, here it is {self.run.get(name)!r}. Run with "
                    "the same, or take another folder; "
                    "nutfree.read_checkpoint(path) has its draws."
                )

    @property
    def progress(self) -> dict[str, Any] | None:
        """What the last `save` was given as `done`, or None for a new run."""
        return None if self._found is None else self._found["done"]

    def state(self, like: Any) -> Any:
        """Return the state, in the structure of `like`.

        Args:
            like: a state of this run, or its `jax.ShapeDtypeStruct`s.

        Raises:
            CheckpointMismatch: if the state on disk has another structure.
        """
        paths, treedef = jax.tree_util.tree_flatten_with_path(like)
        named = {_name(path): leaf for path, leaf in paths}
        wanted = {name: _stored_as(leaf) for name, leaf in named.items()}
        stored = read(
            self.path / "state.npz", lambda *a: a[0] == _HEADER or _fits(wanted, *a)
        )
        absent = set(named) - set(stored)
        if absent:
            raise CheckpointMismatch(
                f"The state in '{self.path}' has no '{sorted(absent)[0]}'. Take "
                "another checkpoint=... ."
            )
        leaves = [_as_leaf(stored[name], leaf) for name, leaf in named.items()]
        return jax.tree_util.tree_unflatten(treedef, leaves)

    def draws(self, like: Any) -> list[Any]:
        """Return the draws of each piece, in the structure of `like`.

        Raises:
            CheckpointMismatch: if a piece is not the one that was kept.
        """
        if self._found is None:
            return []
        paths, treedef = jax.tree_util.tree_flatten_with_path(like)
        named = {_name(path): leaf for path, leaf in paths}

        def accepts(name, shape, dtype):
            if name not in named:
                return name == _HEADER
            wanted = _stored_as(named[name])
            # of each chain as many as there are
            wanted = (wanted[0][:1] + shape[1:2] + wanted[0][2:], wanted[1])
            return _fits({name: wanted}, name, shape, dtype)

        pieces = _read_pieces(self.path, self._found, accepts)
        if any(set(made) != set(named) for made in pieces):
            raise CheckpointMismatch(
                f"The draws in '{self.path}' are of other fields than this run's. Take "
                "another checkpoint=... ."
            )
        return [
            jax.tree_util.tree_unflatten(
                treedef, [_as_leaf(made[name], leaf) for name, leaf in named.items()]
            )
            for made in pieces
        ]

    def save(
        self, state: Any, draws: Mapping[str, np.ndarray] | None, *, done: Any = None
    ) -> None:
        """Keep a piece: its draws, if it made any, and the state after it.

        Raises:
            OSError: if the disk does not take them.
        """
        before = self._found or {"pieces": 0, "draws": 0, "digest": ""}
        found = {
            **{name: before[name] for name in ("pieces", "draws", "digest")},
            **{"run": self.run, "id": self.id, "done": done},
        }
        if draws is not None:
            made = dict(_flat(draws))
            count = next(iter(made.values())).shape[1]
            place = _place(self.id, found["pieces"], found["draws"], count)
            write(_piece(self.path, found["pieces"]), {**made, _HEADER: _json(place)})
            found["digest"] = _digest(found["digest"], place, made)
            found["pieces"] += 1
            found["draws"] += count
        write(self.path / "state.npz", {**dict(_flat(state)), _HEADER: _json(found)})
        self._found = found


def _locked(path: Path) -> IO:
    """Open the lock of a folder, which is made if there is none.

    Raises:
        CheckpointMismatch: if another run has it, or the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        flags = os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
        lock = os.fdopen(os.open(path / _LOCK, flags, 0o666), "r+")
    except OSError as error:
        raise CheckpointMismatch(
            f"No run can be kept in '{path}': {error}. Take another folder."
        ) from error
    if fcntl is None:
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = lock.read(200).strip() or "another process"
        lock.close()
        raise CheckpointMismatch(
            f"The checkpoint '{path}' belongs to a run under way, of {owner}. Wait "
            "until it has ended, or take another folder; "
            "nutfree.read_checkpoint(path) has its draws so far."
        ) from None
    except OSError:
        return lock  # a file system that has no locks
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock


def fingerprint(fn: Callable, *args: Any, data: Any = ()) -> tuple[str, bool]:
    """Return a digest of a traced program and of the arrays in it and in `data`.

    Args:
        fn: what is traced, on `args` or their `jax.ShapeDtypeStruct`s.
        data: a pytree; leaves that are no array count by their `repr`.

    Returns:
        `(digest, calls back)`; a program that calls back to Python may be another one
        in spite of its digest.
    """
    program = jax.make_jaxpr(fn)(*args)
    # addresses of Python objects differ from one process to the next
    text = re.sub(r"0x[0-9a-f]+", "", str(program.jaxpr))
    digest = hashlib.sha256(text.encode())
    inside = arrays_in(program.jaxpr)
    for leaf in (*program.consts, *inside, *jax.tree.leaves(data)):
        if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
            value = _plain(leaf)
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).view(np.uint8).data)
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest(), "callback" in text


def versions() -> dict[str, str]:
    """Return the versions that must not change within a run."""
    return {name: version(name) for name in ("nutfree", "numpyro", "jax")}


def read_checkpoint(path: str | os.PathLike) -> xarray.DataTree:
    """Read the draws that a run has kept so far, for ArviZ.

    Args:
        path: what the run was given as `checkpoint` or `store`; it may be over,
            interrupted, or still under way.

    Returns:
        An `xarray.DataTree` with groups posterior and sample_stats, the latter with
        what the run is as attributes. That of a store reads what is asked for.

    Raises:
        CheckpointMismatch: if there is no checkpoint, it has no draws yet, or it is
            damaged.
    """
    import xarray as xr

    path = Path(path)
    if (path / "zarr.json").exists():
        # a store whose first piece is not whole yet has no consolidated metadata
        try:
            tree = xr.open_datatree(
                path, engine="zarr", chunks=None, cache=False, consolidated=True
            )
            return tree["posterior"].root
        except (KeyError, ValueError, OSError) as error:
            raise CheckpointMismatch(
                f"There are no draws in '{path}' that can be read ({error}). Wait "
                "until its run has drawn some, or take another folder."
            ) from error
    _refuse_foreign(path)
    header = _read_header(path)
    draws = [] if header is None else _read_pieces(path, header)
    if header is None or not draws:
        raise CheckpointMismatch(
            f"There are no draws in '{path}'. Pass the folder that nutfree.sample was "
            "given as checkpoint=..., after its warm-up."
        )
    groups: dict[str, dict] = {"posterior": {}, "sample_stats": {}}
    field = header["run"]["sample_field"]
    try:
        whole = {k: np.concatenate([d[k] for d in draws], axis=1) for k in draws[0]}
    except (KeyError, ValueError) as error:
        raise CheckpointMismatch(
            f"The pieces in '{path}' do not fit together: {error}. Take another folder."
        ) from error
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


def _place(run: str, number: int, first: int, count: int) -> dict[str, Any]:
    return {"run": run, "piece": number, "first draw": first, "draws": count}


def _json(value: Any) -> np.ndarray:
    return np.asarray(json.dumps(value))


def _digest(before: str, place: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(f"{before}{json.dumps(place)}".encode())
    for name, value in sorted(made.items()):
        digest.update(f"{name}{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return digest.hexdigest()


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "leaf"


def _plain(leaf: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _flat(tree: Any):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield _name(path), _plain(leaf)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored_as(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type of a leaf on disk."""
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return tuple(leaf.shape), np.dtype(leaf.dtype)


def _fits(wanted: Mapping[str, tuple], name: str, shape: tuple, dtype) -> bool:
    if name not in wanted or shape != wanted[name][0]:
        return False
    # what numpy makes of bfloat16 and its like
    same_size = dtype.kind == "V" and dtype.itemsize == wanted[name][1].itemsize
    return dtype == wanted[name][1] or same_size


def _as_leaf(value: np.ndarray, like: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(value), impl=like.dtype._impl.name)
    return value.view(like.dtype) if value.dtype.kind == "V" else value


def _refuse_foreign(path: Path) -> None:
    """Refuse a file, or a folder of something else, before anything is written."""
    if not path.exists() or (path / "state.npz").exists():
        return
    if not path.is_dir() or any(map(_is_foreign, path.iterdir())):
        raise CheckpointMismatch(
            f"'{path}' is there and is no checkpoint. Take another folder."
        )


def _is_foreign(file: Path) -> bool:
    """Say whether it cannot have been left by a process killed in its first piece."""
    ours = file.suffix == ".tmp" or file.name.startswith("draws-")
    return not ours and file.name != _LOCK


def _read_header(path: Path) -> dict[str, Any] | None:
    """Return what `state.npz` says of its run, or None where there is no file yet."""
    file = path / "state.npz"
    if not file.exists():
        return None
    header = _header_of(read(file), file)
    kinds = {
        **{"run": dict, "id": str, "pieces": int, "draws": int, "digest": str},
        "done": object,
    }
    found: dict[str, Any] = {name: header.get(name) for name in kinds}
    wrong = [k for k, kind in kinds.items() if not isinstance(found[k], kind)]
    old = isinstance(header.get("run"), dict) and header["run"].get("format") != FORMAT
    if wrong or old or not 0 <= found["pieces"] <= found["draws"]:
        what = "is of another version of nutfree" if old else "has no readable header"
        raise CheckpointMismatch(f"'{file}' {what}. Take another folder.")
    if not isinstance(found["run"].get("sample_field"), str | None):
        raise CheckpointMismatch(
            f"'{file}' has no readable header. Take another folder."
        )
    return found


def _header_of(stored: Mapping[str, np.ndarray], file: Path) -> dict[str, Any]:
    try:
        header = json.loads(str(stored[_HEADER]))
        if isinstance(header, dict):
            return header
    except (KeyError, ValueError, RecursionError):
        pass
    raise CheckpointMismatch(f"'{file}' has no readable header. Take another folder.")


def _read_pieces(path: Path, header: Mapping[str, Any], accepts=None) -> list[dict]:
    """Read the draws of every piece, and see that they are those that were kept."""
    pieces: list[dict[str, np.ndarray]] = []
    digest, first = "", 0
    for number in range(header["pieces"]):
        file = _piece(path, number)
        made = read(file, accepts)
        found = _header_of(made, file)
        made.pop(_HEADER)
        counts = {value.shape[1] if value.ndim > 1 else 0 for value in made.values()}
        count = min(counts, default=0)
        place = _place(header["id"], number, first, count)
        if found != place or len(counts) != 1 or not count:
            raise CheckpointMismatch(
                f"'{file}' is not piece {number} of this run: it has {found}, and "
                f"{place} is due. Take another folder."
            )
        digest, first = _digest(digest, place, made), first + count
        pieces.append(made)
    if (digest, first) != (header["digest"], header["draws"]):
        raise CheckpointMismatch(
            f"The draws in '{path}' are not those that were kept there. Take another "
            "folder."
        )
    return pieces
