"""A run under way: how far it is, how it goes, and how much it makes at a time."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from typing import Any

import jax
import numpy as np
import xarray as xr

from nutfree.diagnostics.convergence import convergence
from nutfree.errors import CheckpointMismatch, warn
from nutfree.hosts.checkpoint import Checkpoint
from nutfree.hosts.draws import Draws
from nutfree.hosts.program import has_field
from nutfree.hosts.progress import Progress

#: What a piece should take: an interrupt waits for its end, and a crash loses it.
PIECE_SECONDS = 2.0
#: A piece is at most so many times as long as the one before.
_GROWTH = 8


class Pace:
    """How many transitions, or draws, a piece should make.

    Args:
        most: as many as a piece can hold.
        timed: whether time decides; without it every piece is as long as it can be.
    """

    def __init__(self, most: int, timed: bool):
        self._most, self._timed = most, timed
        self._last, self._seconds = 0, 0.0

    def next(self, left: int) -> int:
        n = min(self._most, left)
        if not self._timed or math.isinf(PIECE_SECONDS):
            return n
        wanted = _GROWTH * self._last or 1
        if self._seconds:
            wanted = min(wanted, int(PIECE_SECONDS / self._seconds))
        return max(1, min(n, wanted))

    def took(self, n: int, seconds: float) -> None:
        self._last, self._seconds = n, seconds / n

    @property
    def seconds(self) -> float:
        """What one takes; 0 where that is not known yet."""
        return self._seconds


@dataclass
class Done:
    """How far a run is: transitions of warm-up, draws, and what they took.

    `seconds` is wall time in all, `setup_seconds` until the first transition, and the
    other two are that of the transitions of either kind.
    """

    warmup: int = 0
    draws: int = 0
    warmup_steps: float = 0.0
    warmup_grad_evals: float = math.nan
    seconds: float = 0.0
    setup_seconds: float = 0.0
    warmup_seconds: float = 0.0
    sampling_seconds: float = 0.0
    feeds: int = 0

    @classmethod
    def kept(cls, done: Any, path: Any, **most: int) -> Done:
        """Return what a checkpoint says, if that can be.

        Args:
            most: the largest that a number can be, by name.

        Raises:
            CheckpointMismatch: if it cannot.
        """
        known = {f.name: f.type for f in fields(cls)}
        if isinstance(done, dict) and set(done) == set(known):
            fits = (
                type(value) is int and 0 <= value <= most.get(name, value)
                if known[name] == "int"
                else type(value) in (int, float) and not value < 0
                for name, value in done.items()
            )
            if all(fits):
                return cls(**done)
        raise CheckpointMismatch(
            f"The checkpoint '{path}' says that it is where no run can be: {done}. "
            "Take another folder."
        )


@dataclass
class Run:
    """A run under way.

    state
        That of all chains after the last transition.
    draws
        Those made so far.
    progress
        How far it is.
    checkpoint
        Where it is kept; None where it is not, or no longer.
    bar
        How far it is, for the user to see.
    started
        When it would have started on this clock, without an interruption.
    """

    state: Any
    draws: Draws
    progress: Done
    checkpoint: Checkpoint | None
    bar: Progress
    started: float

    def keep(self, made: dict[str, Any] | None, feeds: int) -> None:
        """Keep what is new on disk, if a run is kept at all."""
        self.progress.seconds = time.perf_counter() - self.started
        self.progress.feeds = feeds
        if self.checkpoint is None:
            return
        try:
            kept = None if made is None else self.draws.on_disk(made)
            self.checkpoint.save(self.state, kept, done=asdict(self.progress))
        except OSError as error:
            warn(
                f"The run cannot be kept in '{self.checkpoint.path}' any longer: "
                f"{error}. It goes on in memory; when there is room again, the same "
                "call goes on from the last piece on disk."
            )
            self.checkpoint.close()
            self.checkpoint = None


def how_it_goes(run: Run, field: str) -> dict[str, str]:
    """Return what to tell of a run while it goes on, by name.

    Args:
        field: of the draws, that which is the position.
    """
    said: dict[str, str] = {}
    for number, name in (
        ("adapt_state.step_size", "step size"),
        ("mean_accept_prob", "acceptance"),
    ):
        if has_field(run.state, number):
            value = float(np.mean(attrgetter(number)(run.state)))
            said |= {} if math.isnan(value) else {name: f"{value:.2g}"}
    if run.draws:
        said["divergences"] = str(run.draws.diverging)
        if (whole := run.draws.to_look_at(field)) is not None:
            said |= _agreement(whole)
    return said


def _agreement(whole: Any) -> dict[str, str]:
    """Say how many effective draws there are so far, and how well chains agree."""
    sites = {
        f"x{i}": (("chain", "draw", *(f"x{i}_{k}" for k in range(leaf.ndim - 2))), leaf)
        for i, leaf in enumerate(jax.tree.leaves(whole))
    }
    found = convergence(xr.Dataset(sites))
    return {"ESS": f"{found.ess_bulk:.0f}", "R-hat": f"{found.r_hat:.3f}"}
