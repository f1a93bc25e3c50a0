"""A model's arguments, as a compiled program takes them.

Numbers and arrays of numbers are fed to the program, so that it serves other data of
the same shapes; what a program is built for (counts, names, flags, and all that the
model treats as more than numbers) is part of its key.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from nutfree.frontends.windows import Window
from nutfree.numerics.programs import digest, digest_of

#: Largest number of an array in float64, in its standard deviations, up to which a
#: program in float32 may round it: beyond, what is less its mean loses digits.
MAX_LEVEL = 200.0


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of a model, as a program takes them.

    Args:
        fed: what the program is fed, a list of pytrees of arrays.
        rebuild: `rebuild(fed) -> (args, kwargs)`.
        key: what tells the program from others but for the shapes of what it is fed;
            None where nothing can, and the program is not shared.
    """

    fed: list
    rebuild: Callable[[list], tuple[tuple, dict]]
    key: Hashable = None

    @property
    def now(self) -> tuple[tuple, dict]:
        """The arguments as they are."""
        return self.rebuild(self.fed)


def constant(args: tuple = (), kwargs: Any = None) -> Arguments:
    """Return arguments that are part of the program, which is not shared."""
    split = _split((args, dict(kwargs or {})), lambda leaf: False)
    return replace(split, key=None)


def arguments(data: tuple[tuple, dict], computes: Callable, *inputs: Any) -> Arguments:
    """Return the arguments of a model, with as much of them fed as it allows.

    Args:
        data: `(args, kwargs)`.
        computes: `computes(args, kwargs, *inputs)` returns all that a program may ask
            of the model. It is traced, once or up to three times: models that differ
            in what they compute differ in it.
        inputs: shapes of the other inputs of `computes`.
    """
    for is_fed in (_is_number, _is_array, _is_window):
        split = _split(data, is_fed)

        def of_fed(fed, *inputs, split=split):
            return computes(*split.rebuild(fed), *inputs)

        try:
            traced = jax.make_jaxpr(of_fed, return_shape=True)
            program, shapes = traced(split.fed, *inputs)
        # a model is the user's own code, which may do with numbers what no trace can,
        # and raises whatever NumPy or its own checks do then. Nothing is hidden: it ran
        # on these arguments before, and is now given more of them as they are
        except Exception:
            continue
        computed = digest(program.jaxpr, program.consts)
        names = str(jax.tree.structure(shapes))
        return replace(split, key=both(split.key, computed, names))
    return replace(_split(data, _is_window), key=None)


def of_density(
    data: tuple[tuple, dict], logdensity_fn: Callable, parts: tuple, position: Any
) -> Arguments:
    """Return the arguments of a posterior that is given by its log density.

    Args:
        parts: what else of it a program may ask; hashable.
        position: where it is traced.
    """
    try:
        program = jax.make_jaxpr(jax.value_and_grad(logdensity_fn))(position)
        computed = digest(program.jaxpr, program.consts)
    # a density is the user's own code, too. Nothing is hidden: without a digest its
    # program is shared with none, and whatever is wrong is raised again where it runs
    except Exception:
        computed = None
    return Arguments([], lambda _: data, both(parts, computed))


def both(*keys: Hashable) -> Hashable:
    """Return the keys as one, which is None where any of them is."""
    return None if None in keys else keys


def _split(data: Any, is_fed: Callable[[Any], bool]) -> Arguments:
    """Return the arguments, of which the leaves that `is_fed` accepts are fed."""
    leaves, treedef = jax.tree.flatten(data, is_leaf=lambda x: isinstance(x, Window))
    places = [i for i, leaf in enumerate(leaves) if is_fed(leaf)]
    rest = [None if i in places else leaf for i, leaf in enumerate(leaves)]

    def rebuild(fed):
        whole = list(rest)
        for i, value in zip(places, fed, strict=True):
            whole[i] = value
        return jax.tree.unflatten(treedef, whole)

    static = both(*(static_key(leaf) for leaf in rest))
    key = both((treedef, tuple(places)), static)
    return Arguments([leaves[i] for i in places], rebuild, key)


def static_key(leaf: Any) -> Hashable:
    """Return what tells a leaf that is part of the program from another, or None."""
    if isinstance(leaf, np.ndarray | jax.Array):
        if isinstance(leaf, jax.core.Tracer) or leaf.dtype == object:
            return None
        return digest_of(type(leaf).__name__, [leaf])
    try:
        hash(leaf)
    except TypeError:
        return None
    return type(leaf), leaf


def span_processes(data: Any) -> bool:
    """Whether an array lies on devices of several processes of `jax.distributed`."""
    leaves = jax.tree.leaves(data)
    return not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves)


def _is_window(leaf: Any) -> bool:
    return isinstance(leaf, Window)


def _is_number(leaf: Any) -> bool:
    return type(leaf) is float or _is_array(leaf)


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, Window | jax.Array):
        return True
    return type(leaf) is np.ndarray and leaf.dtype.kind in "biuf" and _is_kept(leaf)


def _is_kept(x: np.ndarray) -> bool:
    """Whether a model may compute with the array in the types of a program.

    Outside of one NumPy's arrays are in float64, where differences of large numbers
    keep their digits.
    """
    narrow = jax.dtypes.canonicalize_dtype(x.dtype)
    if narrow == x.dtype or not x.size:
        return True
    if x.dtype.kind != "f":
        limits = np.iinfo(narrow)
        return bool(limits.min <= x.min() and x.max() <= limits.max)
    level, spread = np.max(np.abs(x)), np.std(x)
    return bool(level <= MAX_LEVEL * spread or np.array_equal(x, x.astype(narrow)))
