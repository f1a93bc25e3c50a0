"""Draws go to disk as they are made, in the layout in which ArviZ reads Zarr.

A store is a Zarr folder with ArviZ's groups, whose arrays grow along `draw`. The
consolidated metadata, one file of the root, are replaced as a whole after every piece:
whoever reads the store sees whole pieces, while the run goes on and after a crash. What
a run goes on from is in `.nutfree` inside of it, see `nutfree.hosts.checkpoint`.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpyro.infer import MCMC

from nutfree.diagnostics.convert import posterior_attrs, stats_attrs
from nutfree.diagnostics.groups import groups_of, named_dims, sites_of
from nutfree.errors import CheckpointMismatch, InvalidOption, needed, warn
from nutfree.hosts.draws import Draws, run_of
from nutfree.numerics.programs import TRACING

if TYPE_CHECKING:
    import xarray as xr

#: Bytes of a chunk of an array, before it is compressed.
CHUNK_BYTES = 1 << 20
#: Bytes of the draws of a piece, and of draws that are read back at once, about.
BLOCK_BYTES = 32 << 20
#: Where the state of the sampler is.
STATE = ".nutfree"
#: Groups that a run itself makes, and those that are evaluated for every draw.
_DRAWN = ("posterior", "sample_stats")
_OF_DRAWS = ("posterior_predictive", "log_likelihood", "log_prior")


class Store:
    """A Zarr folder that the draws of a run are written to.

    Args:
        path: the folder; made if there is none.
        coords, dims: of the draws, as for `nutfree.to_arviz`.

    Raises:
        NutfreeError: if zarr is not installed.
        CheckpointMismatch: if something else is there.
    """

    def __init__(self, path: str | os.PathLike, coords=None, dims=None):
        self._zarr = needed("zarr", "store=...", "zarr")
        self.path = Path(path)
        self._coords, self._dims = coords, dims
        self._plates: dict[str, list[str]] | None = None
        self._sites: list[str] = []
        self._arrays: dict[str, Any] = {}
        self.run = ""
        is_ours = not self.path.exists() or self.state.exists()
        if not is_ours and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise CheckpointMismatch(
                f"'{self.path}' is there and is no store of a run. Take another "
                "store=... ."
            )

    @property
    def state(self) -> Path:
        """The folder with the state of the sampler."""
        return self.path / STATE

    def draws(self, mcmc: MCMC, run: str, number: int, total: int) -> StoredDraws:
        """Return the draws of a run, of which the first `number` are in the store.

        Raises:
            CheckpointMismatch: if they are not.
        """
        self.run = run
        diverging = self._diverging(number) if number else 0
        return StoredDraws(self, mcmc, number, total, diverging)

    def _diverging(self, number: int) -> int:
        try:
            root = self._zarr.open_group(self.path, mode="r+", use_consolidated=False)
            draws = {name: root[name]["draw"].shape for name in _DRAWN}
            fits = root.attrs["nutfree_run"] == self.run
            fits = fits and all(shape >= (number,) for shape in draws.values())
            stats = root["sample_stats"]
            found = (
                np.sum(stats["diverging"][:, :number]) if "diverging" in stats else 0
            )
        # Zarr raises errors of many kinds, by where a store is damaged; each means that
        # it is not the one that was written, and is chained
        except Exception as error:
            raise CheckpointMismatch(
                f"The store '{self.path}' is damaged ({type(error).__name__}: "
                f"{error}). Take another store=... ."
            ) from error
        if not fits:
            raise CheckpointMismatch(
                f"The store '{self.path}' has not the {number} draws of each chain "
                "that its run has made. Take another store=... ."
            )
        return int(found)

    def groups(self, mcmc: MCMC, made: Mapping[str, Any]) -> dict[str, xr.Dataset]:
        """Return the groups posterior and sample_stats of some draws."""
        piece = run_of(mcmc, made)
        with TRACING:
            if self._plates is None:
                self._plates = named_dims(piece)
                self._sites = sites_of(piece)
            dims = {**self._plates, **(self._dims or {})}
            return groups_of(piece, coords=self._coords, dims=dims, with_model=False)

    def append(self, groups: Mapping[str, xr.Dataset], first: int, total: int) -> None:
        """Write draws from the place `first` on, and let nothing be behind them.

        Args:
            groups: with dimensions chain, draw and others.
            total: how many draws a run is going to make.

        Raises:
            OSError: if the disk does not take them.
        """
        with _quiet():
            if first == 0:
                root = self._zarr.open_group(self.path, mode="a", zarr_format=3)
                if root.attrs.get("nutfree_run") != self.run:
                    about = {"nutfree_run": self.run, "sites": self._sites}
                    root.attrs.update(about)
            for name, dataset in groups.items():
                draw = first + np.arange(dataset.sizes["draw"])
                dataset = dataset.assign_coords(draw=draw)
                if first == 0:
                    self._create(name, dataset, total)
                else:
                    self._extend(name, dataset, first)

    def clear(self) -> None:
        """Remove what a run that was killed in its first piece has left half written.

        Raises:
            OSError: if the disk does not let it.
        """
        for path in self.path.iterdir():
            if path == self.state:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _create(self, name: str, dataset: xr.Dataset, total: int | None = None) -> None:
        # a checksum tells a damaged chunk from a whole one
        codec = self._zarr.codecs.ZstdCodec(level=1, checksum=True)
        encoding = {
            key: {
                "compressors": [codec],
                **({} if total is None else {"chunks": _chunks(variable, total)}),
            }
            for key, variable in dataset.variables.items()
            if variable.dtype.kind in "biufc"
        }
        dataset.to_zarr(
            self.path,
            group=name,
            mode="w",
            encoding=encoding,
            consolidated=False,
            zarr_format=3,
        )
        self._arrays.pop(name, None)

    def _extend(self, name: str, dataset: xr.Dataset, first: int) -> None:
        if name not in self._arrays:
            group = self._zarr.open_group(
                self.path, path=name, mode="r+", use_consolidated=False
            )
            self._arrays[name] = dict(group.arrays())
        for key, array in self._arrays[name].items():
            dims = array.metadata.dimension_names or ()
            if "draw" not in dims:
                continue
            axis, new = dims.index("draw"), dataset[key].values
            shape = list(array.shape)
            shape[axis] = first + new.shape[axis]
            array.resize(tuple(shape))
            array[(*(slice(None),) * axis, slice(first, None))] = new

    def put(self, groups: Mapping[str, xr.Dataset]) -> None:
        """Write groups as a whole."""
        with _quiet():
            for name, dataset in groups.items():
                self._create(name, dataset)

    def describe(self, attrs: Mapping[str, Mapping[str, Any]]) -> None:
        """Add attributes to groups."""
        with _quiet():
            root = self._zarr.open_group(self.path, mode="r+", use_consolidated=False)
            for name, values in attrs.items():
                root[name].attrs.update(values)

    def commit(self) -> None:
        """Let readers see all that was written."""
        with _quiet():
            self._zarr.consolidate_metadata(self.path)

    def blocks(self, tree: xr.DataTree, mcmc: MCMC, all_draws: bool) -> Iterator[dict]:
        """Yield the draws as `MCMC` keeps them, some at a time, or but the first."""
        posterior = tree["posterior"].to_dataset()
        root = self._zarr.open_group(self.path, mode="r", use_consolidated=False)
        names = {name: name.replace("/", ".") for name in root.attrs["sites"]}
        total, size = posterior.sizes["draw"], 1
        if all_draws:
            of_one = sum(posterior[key].nbytes for key in names.values()) // total
            size = max(1, BLOCK_BYTES // of_one)
        for first in range(0, total if all_draws else 1, size):
            some = posterior.isel(draw=slice(first, first + size))
            yield {
                mcmc.sampler.sample_field: {
                    name: some[key].values for name, key in names.items()
                }
            }

    def tree(self) -> xr.DataTree:
        """Return what readers see, of which nothing is in memory."""
        import xarray as xr

        return xr.open_datatree(self.path, engine="zarr", chunks=None, cache=False)


class StoredDraws(Draws):
    """The draws of a run, which are in a store and not in memory."""

    def __init__(self, store: Store, mcmc, number: int, total: int, diverging: int):
        super().__init__([])
        self._store, self._mcmc, self._total = store, mcmc, total
        self.number, self.diverging = number, diverging

    def add(self, made):
        try:
            groups = self._store.groups(self._mcmc, made)
            if not self.number:
                self._store.clear()
            self._store.append(groups, self.number, self._total)
            self._store.commit()
        except OSError as error:
            if not self.number:
                raise
            warn(
                f"The store '{self._store.path}' takes no more draws: {error}. The run "
                "ends here; when there is room again, the same call goes on from the "
                "last piece."
            )
            return False
        self._count(made)
        return True

    def on_disk(self, made):
        return None

    def whole(self):
        return None

    def to_look_at(self, field):
        return None

    def tree(self, mcmc, **groups):
        return finished(self._store, mcmc, **groups)


def check_store(checkpoint: Any, posterior_predictive: Any) -> None:
    """Refuse what a store does not go together with.

    Raises:
        InvalidOption: with what to write instead.
    """
    if checkpoint is not None:
        raise InvalidOption(
            "A store is a checkpoint, too, from which the same call goes on. Leave "
            "checkpoint=... out."
        )
    if isinstance(posterior_predictive, Mapping):
        raise InvalidOption(
            "Predictions are written to a store a part at a time. Write "
            "posterior_predictive=True, or add your own to the store afterwards."
        )


def finished(
    store: Store,
    mcmc: MCMC,
    *,
    attrs: Mapping[str, Any],
    log_likelihood: bool,
    posterior_predictive: bool,
    leave_out: tuple[str, ...],
    **once: Any,
) -> xr.DataTree:
    """Add to a store what comes from the model, and return its tree.

    Args:
        attrs, log_likelihood, posterior_predictive, **once: as for `nutfree.to_arviz`.
        leave_out: groups that are not to be written.
    """
    asked: dict[str, Any] = {
        "log_likelihood": log_likelihood,
        "posterior_predictive": posterior_predictive,
    }
    try:
        tree = store.tree()
        number = tree["posterior"].sizes["draw"]
        first = 0
        for made in store.blocks(tree, mcmc, any(asked.values())):
            # what does not depend on the draws is made with the first ones
            more = once if first == 0 else {k: once.get(k) for k in ("coords", "dims")}
            run = run_of(mcmc, made)
            found = groups_of(run, seed=1 + first, **asked, **more)
            drawn = {k: found.pop(k) for k in _OF_DRAWS if k in found}
            store.append(drawn, first, number)
            if first == 0:
                store.put(
                    {
                        k: v
                        for k, v in found.items()
                        if k not in (*_DRAWN, *leave_out) and v.sizes
                    }
                )
            first += np.shape(jax.tree.leaves(made)[0])[1]
        stats = tree["sample_stats"].to_dataset()
        store.describe(
            {
                "posterior": posterior_attrs(stats, attrs),
                "sample_stats": stats_attrs(mcmc, stats, attrs),
            }
        )
        store.commit()
    except OSError as error:
        warn(
            f"The store '{store.path}' takes nothing more: {error}. Its draws are "
            "whole; the same call adds the rest when there is room again."
        )
    return store.tree()


def _chunks(variable: xr.Variable, total: int) -> tuple[int, ...]:
    """Return how many numbers a chunk has along each dimension."""
    sizes = dict(variable.sizes)
    if "draw" not in sizes:
        return tuple(sizes.values())
    del sizes["draw"]
    of_one = math.prod(sizes.values()) * variable.dtype.itemsize
    if of_one > CHUNK_BYTES and "chain" in sizes:
        of_one //= sizes.pop("chain")
        sizes["chain"] = 1
    sizes["draw"] = max(1, min(total, CHUNK_BYTES // max(of_one, 1)))
    return tuple(sizes[dim] for dim in variable.dims)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing about consolidated metadata and what is in `.nutfree`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        warnings.filterwarnings("ignore", "Object at")
        yield
