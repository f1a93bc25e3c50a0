"""Chains over machines: each process of `jax.distributed` runs its own, and all have
the draws of all."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from nutfree.errors import InvalidData, InvalidOption

if TYPE_CHECKING:
    import xarray as xr

#: Groups that have chains, in the order in which processes exchange them.
GROUPS = ("posterior", "sample_stats", "log_likelihood")
#: Attributes of sample_stats that are totals over chains.
TOTALS = ("num_grad_evals", "num_density_evals", "warmup_grad_evals")


def gather_chains(tree: "xr.DataTree") -> "xr.DataTree":
    """Put the chains of all processes together, in each of them.

    Every process of a cluster that `jax.distributed.initialize` has joined samples with
    a seed of its own, and then calls this at the same place of the program.

    Args:
        tree: this process's run, from `nutfree.sample`.

    Returns:
        A tree with the chains of process 0, then those of process 1, and so on; the
        same in every process. Where a run was interrupted, all are cut to the fewest
        draws. Totals of evaluations are summed, and what else is told of a run is told
        of this process's. With one process, the tree itself.

    Raises:
        InvalidOption: where two processes have the same seed, whose chains would be
            the same.
        InvalidData: where the processes' trees have other variables, types or shapes.

    Example:
        >>> import xarray as xr
        >>> drawn = xr.Dataset({"x": (("chain", "draw"), np.zeros((1, 50)))})
        >>> tree = xr.DataTree.from_dict({"posterior": drawn})
        >>> gather_chains(tree).posterior.sizes["chain"]
        1
    """
    import xarray as xr

    if jax.process_count() == 1:
        return tree
    stats = tree["sample_stats"].attrs
    seeds = _exchanged(np.array([int(stats.get("seed", -1))]))
    if len({int(s[0]) for s in seeds}) < len(seeds):
        raise InvalidOption(
            "Two processes ran with the same seed, and so made the same chains. Write "
            "nutfree.sample(..., seed=jax.process_index())."
        )
    draws = min(int(n[0]) for n in _exchanged(_size(tree, "draw")))
    groups = {
        name: _gathered(tree[name].to_dataset().isel(draw=slice(draws)))
        for name in GROUPS
        if name in tree.children
    }
    for name in TOTALS:
        if name in stats:
            parts = _exchanged(np.array([float(stats[name])]))
            groups["sample_stats"].attrs[name] = float(sum(p[0] for p in parts))
    whole = {name: node.to_dataset() for name, node in tree.children.items()}
    return xr.DataTree.from_dict({**whole, **groups})


def _size(tree: "xr.DataTree", dim: str) -> np.ndarray:
    return np.array([tree["posterior"].sizes[dim]])


def _gathered(dataset: "xr.Dataset") -> "xr.Dataset":
    """The same variables with all processes' chains."""
    import xarray as xr

    arrays = {str(k): v for k, v in dataset.data_vars.items() if "chain" in v.dims}
    described = [(k, str(v.dtype), v.shape) for k, v in sorted(arrays.items())]
    mine = np.frombuffer(repr(described).encode().ljust(2**16)[: 2**16], np.uint8)
    if any(not np.array_equal(mine, theirs) for theirs in _exchanged(mine)):
        raise InvalidData(
            "The processes' runs have other variables or shapes. Run the same kernel "
            "on the same model with the same num_chains and num_samples in each."
        )
    found = {}
    for name, array in sorted(arrays.items()):
        values = np.ascontiguousarray(array.transpose("chain", ...).values)
        parts = _exchanged(values)
        dims = ("chain", *(d for d in array.dims if d != "chain"))
        found[name] = xr.DataArray(np.concatenate(parts), dims=dims, attrs=array.attrs)
    coords = {k: v for k, v in dataset.coords.items() if "chain" not in v.dims}
    chains = next(iter(found.values())).sizes["chain"] if found else 0
    return xr.Dataset(found, {**coords, "chain": np.arange(chains)}, dataset.attrs)


def _exchanged(values: np.ndarray) -> list[np.ndarray]:
    """Every process's values, by process, bit for bit: JAX would make floats single."""
    from jax.experimental.multihost_utils import process_allgather

    raw = np.frombuffer(values.tobytes(), np.uint8)
    parts = np.asarray(process_allgather(raw))
    return [
        np.frombuffer(p.tobytes(), values.dtype).reshape(values.shape) for p in parts
    ]
