"""Owners whose arguments have one structure become one log density of their data.

A program over such owners goes from one to the next instead of holding each of them, so
that it compiles in the time of one. Owners with fewer rows than the largest are filled
up with rows that count nothing, which needs a data plate with `numpyro.subsample`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.util import potential_energy

from nutfree.frontends.handlers import full_data, prior_only
from nutfree.frontends.plates import row_terms
from nutfree.numerics.programs import jitted
from nutfree.target import OwnersAlike


@dataclass(frozen=True)
class Plan:
    """How owners' arguments become one function's data; see `plan_owners`.

    Args:
        model: of one owner's data.
        structure: of an owner's arguments.
        static: what of them is the same for all and no array; None for the rest.
        ragged: which leaves have as many rows as their owner.
        is_array: which are arrays, or numbers that differ.
        sizes: rows of each owner; zeros where they are not known.
        plate: the data plate, or None.
        count: number of owners.
    """

    model: Callable
    structure: Any
    static: tuple[Any, ...]
    ragged: tuple[bool, ...]
    is_array: tuple[bool, ...]
    sizes: tuple[int, ...]
    plate: str | None
    count: int

    def stack(self, owners: Sequence[Any]) -> OwnersAlike:
        """Return what these owners have in common; traceable in their arrays."""
        capacity, plate = max(self.sizes), self.plate
        columns = zip(*(jax.tree.leaves(owner) for owner in owners))
        stacked = [
            jnp.stack([_filled(leaf, capacity, ragged) for leaf in column])
            for column, array, ragged in zip(columns, self.is_array, self.ragged)
            if array
        ]

        def whole(position, one):
            args, kwargs = self.arguments(one[0])
            seeded = full_data(handlers.seed(self.model, 0))
            value = -potential_energy(seeded, args, kwargs, position)
            return value - self.left_to_others(position, args, kwargs)

        def terms(position, indices, one):
            args, kwargs = self.arguments(one[0])
            of_rows = row_terms(self.model, plate, capacity, args, kwargs)
            outside, rows = of_rows(position, indices)
            return outside - self.left_to_others(position, args, kwargs), rows

        def filled(position, one):
            outside, rows = terms(position, None, one)
            is_row = jnp.arange(capacity) < one[1]
            return outside + jnp.sum(jnp.where(is_row, rows, 0))

        by_row = plate is not None
        sizes = jnp.asarray(self.sizes)
        return OwnersAlike(
            (stacked, sizes),
            filled if any(self.ragged) else whole,
            terms if by_row else None,
            sizes if by_row else None,
            capacity if by_row else 0,
        )

    def arguments(self, arrays: Sequence[Any]) -> tuple[tuple, dict]:
        """Return the model's arguments for an owner's arrays."""
        rest = iter(arrays)
        values = [
            next(rest) if array else value
            for array, value in zip(self.is_array, self.static)
        ]
        owner = jax.tree.unflatten(self.structure, values)
        return ((), dict(owner)) if isinstance(owner, Mapping) else (owner, {})

    def left_to_others(self, position, args, kwargs) -> jax.Array:
        """Return the part of the prior that an owner's log density does not have."""
        prior = prior_only(full_data(handlers.seed(self.model, 0)))
        value = -potential_energy(prior, args, kwargs, position)
        return (1.0 - 1.0 / self.count) * value


def plan_owners(model: Callable, owners: Sequence[Any], frontend: Any) -> Plan | None:
    """Return how owners are one log density of their data, or None where they are not.

    Args:
        model: of one owner's data.
        owners: each owner's arguments, a dict or a tuple, with their values.
        frontend: the `ModelFrontend` of the owner with the most rows.
    """
    leaves = [jax.tree.flatten(owner) for owner in owners]
    structure: Any = leaves[0][1]
    columns = list(zip(*(values for values, _ in leaves)))
    if any(treedef != structure for _, treedef in leaves):
        return None
    if not all(_match(column) for column in columns):
        return None
    is_array = [_is_array(column[0]) or _is_number(column) for column in columns]
    ragged = [
        array and len({np.shape(leaf) for leaf in column}) > 1
        for array, column in zip(is_array, columns)
    ]
    sizes = _sizes(columns, ragged, frontend, len(owners))
    if sizes is None:
        return None
    static = [None if a else column[0] for column, a in zip(columns, is_array)]
    plan = Plan(
        model,
        structure,
        tuple(static),
        tuple(ragged),
        tuple(is_array),
        tuple(sizes),
        frontend.plate,
        len(owners),
    )
    return plan if _agrees(plan, owners, frontend) else None


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | jax.Array) and np.ndim(leaf) > 0


def _is_number(column: Sequence[Any]) -> bool:
    """Say whether owners have different numbers, such as their places in a list."""
    kind = type(column[0])
    return (
        kind in (int, float)
        and all(type(leaf) is kind for leaf in column)
        and len(set(column)) > 1
    )


def _match(column: Sequence[Any]) -> bool:
    """Say whether owners' values of an argument differ in rows, or a number, alone."""
    first = column[0]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in column):
        return False
    if _is_array(first):
        return all(
            _is_array(leaf)
            and leaf.dtype == first.dtype
            and leaf.dtype.kind in "fiub"
            and np.ndim(leaf) == np.ndim(first)
            and leaf.shape[1:] == first.shape[1:]
            for leaf in column
        )
    return _is_number(column) or all(
        type(leaf) is type(first) and isinstance(leaf, bool | int | float | str)
        and leaf == first
        for leaf in column
    )  # fmt: skip


def _sizes(columns, ragged, frontend, num_owners: int) -> list[int] | None:
    """Return the rows of each owner; None where they are not known and differ."""
    different = [column for column, r in zip(columns, ragged) if r]
    if not different:
        return [frontend.num_data if frontend.plate else 0] * num_owners
    if frontend.plate is None:
        return None
    sizes = [leaf.shape[0] for leaf in different[0]]
    for column in different:
        if [leaf.shape[0] for leaf in column] != sizes:
            return None
    return sizes if max(sizes) == frontend.num_data else None


def _filled(leaf: Any, capacity: int, ragged: bool) -> jax.Array:
    """Return the array with its first row in place of those that it lacks."""
    leaf = jnp.asarray(leaf)
    if not ragged:
        return leaf
    order = np.arange(capacity)
    return leaf[np.where(order < len(leaf), order, 0)]


def _agrees(plan: Plan, owners: Sequence[Any], frontend: Any) -> bool:
    """Say whether the owner with the fewest rows has its own log density.

    It does not where the model computes something of all rows, such as their mean.
    """
    s = int(np.argmin(plan.sizes))
    alike, owner = plan.stack(owners), owners[s]
    args, kwargs = ((), owner) if isinstance(owner, Mapping) else (owner, {})
    seeded = full_data(handlers.seed(plan.model, 0))
    one = jax.tree.map(lambda leaf: leaf[s], alike.data)
    rng = np.random.default_rng(0)
    position = {
        name: jnp.asarray(rng.normal(0, 0.3, shape), jnp.result_type(float))
        for name, shape in frontend.shapes.items()
    }

    def both(position, one):
        own = -potential_energy(seeded, args, kwargs, position)
        left = plan.left_to_others(position, args, kwargs)
        return own - left, alike.logdensity(position, one)

    try:
        own, shared = jitted(both)(position, one)
    except (TypeError, ValueError, IndexError):  # a model that looks at its data
        return False
    return bool(np.allclose(own, shared, rtol=1e-4, atol=1e-3, equal_nan=True))
