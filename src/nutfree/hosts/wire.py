"""What a federated run's server and its transport know of each other."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nutfree.errors import InvalidOption
from nutfree.kernels.federated.owners import shares_of


class Sent(NamedTuple):
    """A message to one owner: its name, arrays and facts."""

    owner: str
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


class Back(NamedTuple):
    """An owner's answer; `reason` says why there is none."""

    arrays: dict[str, np.ndarray]
    facts: Mapping[str, Any]
    reason: str = ""


#: `(kind, messages) -> answers`, one for each message.
Post = Callable[[str, list[Sent]], list[Back]]


@dataclass(frozen=True)
class Run:
    """What to run.

    Args:
        kernel: a federated kernel's name.
        options: its options.
        num_samples: draws of each chain.
        num_chains: chains, which travel in one message.
        seed: of everything that owners do not draw for themselves.
        delta: at which epsilon is stated where rows are clipped.
        checkpoint: a file from which an interrupted run goes on, or none.
        checkpoint_every: draws between two writings of it.
    """

    kernel: str = "fald"
    options: Mapping[str, Any] = field(default_factory=dict)
    num_samples: int = 1000
    num_chains: int = 4
    seed: int = 0
    delta: float = 1e-5
    checkpoint: str | os.PathLike | None = None
    checkpoint_every: int = 10

    def __post_init__(self):
        for name in ("num_samples", "num_chains", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} must be at least 1.")


@dataclass(frozen=True)
class Members:
    """The owners of a run, in the order of their names."""

    names: tuple[str, ...]
    num_rows: tuple[int, ...] | None
    template: str

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def shares(self) -> tuple[float, ...]:
        return shares_of(self.num_rows, self.count)


class Costs:
    """What has crossed the wire, counted where it does."""

    def __init__(self, post: Post):
        self._post = post
        self.messages = self.bytes = 0

    def __call__(self, kind: str, messages: list[Sent]) -> list[Back]:
        if not messages:
            return []
        answers = self._post(kind, messages)
        for part in (messages, [a for a in answers if not a.reason]):
            self.messages += len(part)
            self.bytes += sum(
                np.asarray(leaf).nbytes for m in part for leaf in m.arrays.values()
            )
        return answers
