"""How far a run is: a bar in a terminal, with a table in a notebook; lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm.auto import tqdm

#: Seconds between two lines of a log file.
LINE_SECONDS = 30.0
#: Seconds between two looks at the draws made so far.
LOOK_SECONDS = 10.0


class Progress:
    """The bar of a run, from its first second on.

    Args:
        total: transitions of the whole run.
        shown: whether anything is shown.
    """

    def __init__(self, total: int, shown: bool):
        self._lines = shown and not (sys.stderr.isatty() or _in_notebook())
        self._total, self._done, self._began = total, 0, time.monotonic()
        self._last = self._looked = self._began
        self._phase = ""
        self._table: Any = None
        self.shown = shown
        self._bar = tqdm(
            total=total,
            disable=not shown or self._lines,
            dynamic_ncols=True,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
            "[{elapsed}<{remaining}{postfix}]",
        )

    def phase(self, name: str) -> None:
        """Say what the run does now; what it took before counts for no rate."""
        self._phase = name
        self._bar.set_description(name)
        if not self._bar.disable:
            self._bar.unpause()
            self._bar.refresh()
        self._line(force=True)

    def skip(self, done: int) -> None:
        """Count transitions that were made before."""
        self._done += done
        if not self._bar.disable:
            self._bar.initial = done
            self._bar.n += done

    def update(
        self, made: int, says: Callable[[], Mapping[str, str]] | None = None
    ) -> None:
        """Count transitions just made.

        Args:
            says: what they were like, by name; asked now and then.
        """
        self._done += made
        now = time.monotonic()
        if says is not None and self.shown and now - self._looked > LOOK_SECONDS:
            found = says()
            if _in_notebook():
                self._tabulate(found)
            else:
                self._bar.set_postfix_str(_in_words(found), refresh=False)
            self._looked = now
        self._bar.update(made)
        self._line(says=says)

    def close(self) -> None:
        self._bar.close()

    def _line(self, force: bool = False, says: Any = None) -> None:
        now = time.monotonic()
        if not self._lines or not (force or now - self._last > LINE_SECONDS):
            return
        self._last = now
        words = f", {_in_words(says())}" if says is not None else ""
        print(
            f"nutfree: {self._phase}, {self._done} of {self._total} transitions after "
            f"{now - self._began:.0f} s{words}",
            file=sys.stderr,
            flush=True,
        )

    def _tabulate(self, found: Mapping[str, str]) -> None:
        """Show a table below the bar, in place of the one before."""
        from IPython.display import display
        from rich.table import Table

        table = Table("phase", "transitions", *found)
        table.add_row(self._phase, f"{self._done:,}", *found.values())
        if self._table is None:
            self._table = display(table, display_id=True)
        else:
            self._table.update(table)


def _in_words(found: Mapping[str, str]) -> str:
    units = {"divergences": "{1} {0}"}
    return ", ".join(units.get(k, "{0} {1}").format(k, v) for k, v in found.items())


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    # a shell in a terminal has no kernel, and a library may import IPython for itself
    return hasattr(shell, "kernel")
