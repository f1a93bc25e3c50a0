"""The draws of a run under way, kept in memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpyro.infer import MCMC

from nutfree.diagnostics.convergence import short_verdict
from nutfree.diagnostics.convert import to_arviz

if TYPE_CHECKING:
    import xarray as xr

#: Numbers in all draws up to which they are looked at while a run goes on.
_LOOKED_AT = 2_000_000


class Draws:
    """The draws that a run has made, an entry a piece.

    Args:
        pieces: fields of the state by name, each a pytree of arrays of shape
            `(chains, draws, ...)`.
    """

    def __init__(self, pieces: list[dict[str, Any]]):
        self.pieces = pieces
        self.number, self.diverging = 0, 0
        for made in pieces:
            self._count(made)

    def __bool__(self) -> bool:
        return self.number > 0

    def add(self, made: dict[str, Any]) -> bool:
        """Keep what a piece has made; False if there is no room for it."""
        self.pieces.append(made)
        self._count(made)
        return True

    def _count(self, made: dict[str, Any]) -> None:
        self.number += np.shape(jax.tree.leaves(made)[0])[1]
        self.diverging += int(np.sum(made.get("diverging", 0)))

    def on_disk(self, made: dict[str, Any]) -> dict[str, Any] | None:
        """Return what of a piece a checkpoint has to keep, None if nothing."""
        return made

    def whole(self) -> Any:
        """Return the fields of all draws."""
        return jax.tree.map(lambda *d: np.concatenate(d, axis=1), *self.pieces)

    def to_look_at(self, field: str) -> Any:
        """Return a field of all draws, or None where they are too many to look at."""
        numbers = sum(np.size(x) for x in jax.tree.leaves(self.pieces))
        if self.number < 20 or numbers > _LOOKED_AT:
            return None
        return jax.tree.map(
            lambda *d: np.concatenate(d, axis=1), *(made[field] for made in self.pieces)
        )

    def tree(
        self, mcmc: MCMC, *, leave_out: tuple[str, ...], **groups: Any
    ) -> xr.DataTree:
        """Return the tree of a finished run.

        Args:
            leave_out: groups that are not to be there.
            **groups: as for `nutfree.to_arviz`.
        """
        tree = to_arviz(mcmc, **groups)
        for name in leave_out:
            if name in tree:
                del tree[name]
        return tree

    def verdict(self, tree: xr.DataTree) -> str:
        """Return what the draws say against themselves, or nothing."""
        return short_verdict(tree)


def run_of(mcmc: MCMC, made: Mapping[str, Any]) -> MCMC:
    """Return a run that has made these draws only."""
    run = copy.copy(mcmc)
    run._states, run._states_flat = made, None
    return run
