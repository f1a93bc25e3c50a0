"""The verdict on one run: what was checked, what speaks against its draws, and what
an error would have had to be to show."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nutfree.diagnostics.convergence import ESS, FINITE, R_HAT, TAIL_ESS

if TYPE_CHECKING:
    import pandas as pd

#: What a check can come to.
RESULTS = ("fine", "caveat", "problem", "not checked")


class Check(NamedTuple):
    """One check of a run.

    name
        What is checked.
    value, limit
        The figure, and what it should not exceed (for effective samples, fall below);
        NaN where there is none.
    result
        One of `RESULTS`.
    said
        A clause for people to read; empty where all is fine.
    """

    name: str
    value: float
    limit: float
    result: str
    said: str = ""


@dataclass(frozen=True)
class Verdict:
    """What one run's draws are worth.

    Attributes:
        checks: every check, made or not.
        figures: the run's figures, by column of the comparison's table.
        power: what an error would have had to be to be seen, as a clause; empty where
            no check could have seen one.
        notes: what else a reader should know, such as what an unsound run saw.
        mode_shares: share of the draws in each mode found by all runs together.
    """

    checks: tuple[Check, ...]
    figures: dict[str, float] = field(default_factory=dict)
    power: str = ""
    notes: tuple[str, ...] = ()
    mode_shares: NDArray = field(default_factory=lambda: np.ones(1), repr=False)

    def _said(self, result: str) -> list[str]:
        return [check.said for check in self.checks if check.result == result]

    @property
    def problems(self) -> list[str]:
        """What speaks against the draws, worst first."""
        return self._said("problem")

    @property
    def caveats(self) -> list[str]:
        """What limits the use of draws against which nothing speaks."""
        return self._said("caveat")

    @property
    def not_checked(self) -> list[str]:
        """What was not, or could not be, checked, and why."""
        return self._said("not checked")

    @property
    def sound(self) -> bool:
        """Whether the checks that count were made, and nothing speaks against it."""
        unmade = {c.name for c in self.checks if c.result == "not checked"}
        return not self.problems and not unmade & ESSENTIAL

    @property
    def for_means_only(self) -> str:
        """Why the draws are usable for means and not for tails; empty where they are
        for both."""
        return next(
            (c.said for c in self.checks if (c.name, c.result) == (TAIL_ESS, "caveat")),
            "",
        )

    @property
    def word(self) -> str:
        """`set aside`, `not checked` or `sound`."""
        if self.problems:
            return "set aside"
        return "sound" if self.sound else "not checked"

    @property
    def table(self) -> "pd.DataFrame":
        """A row per check: value, limit, result, and what it says."""
        import pandas as pd

        columns = ["check", "value", "limit", "result", "said"]
        return pd.DataFrame(list(self.checks), columns=columns).set_index("check")

    def __str__(self) -> str:
        if self.problems:
            return "; ".join([f"set aside: {self.problems[0]}", *self.problems[1:]])
        clauses = [f"sound: {self.power}" if self.power else "sound"]
        if not self.sound:
            clauses = []
        if self.not_checked:
            clauses.append(f"not checked: {', '.join(self.not_checked)}")
        return "; ".join([*clauses, *self.caveats])


#: Checks without which a run is not called sound.
ESSENTIAL = frozenset({FINITE, R_HAT, ESS})
#: Checks of the modes.
SEARCH, SHARE = "modes that a search finds", "shares of the modes"
ACROSS = "shares of the modes against other runs"


def not_judged(why: str) -> Verdict:
    """The verdict on a run that was not judged."""
    nan = float("nan")
    return Verdict((Check(FINITE, nan, nan, "not checked", f"anything ({why})"),))
