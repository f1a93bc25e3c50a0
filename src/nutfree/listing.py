"""Data frames of sentences, which pandas would cut short."""

import io
import shutil
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of characters up to which a cell is a name, whose line is not broken.
MAX_NAME = 28
#: Columns of characters that sentences have at least.
MIN_SENTENCE = 36


class Listing(pd.DataFrame):
    """A data frame that prints its sentences in full, in as many lines as they take.

    Columns that a narrow terminal has no place for are named below, the last ones
    first; empty ones, and a plain range as index, are not printed.

    Example:
        >>> Listing({"kernel": ["mala"], "why": ["smooth, and one mode was found"]})
        kernel  why
        mala    smooth, and one mode was found
    """

    @property
    def _constructor(self) -> type["Listing"]:
        return Listing

    def __repr__(self) -> str:
        from rich.console import Console

        width = shutil.get_terminal_size().columns
        console = Console(file=io.StringIO(), width=width, color_system=None)
        show(self, console)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.splitlines())

    def _repr_html_(self) -> str | None:
        with pd.option_context("display.max_colwidth", None):
            return super()._repr_html_()  # type: ignore[operator]


def show(frame: pd.DataFrame, console: "Console") -> None:
    """Print a data frame of words as `Listing` does."""
    from rich.table import Table
    from rich.text import Text

    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    cells = {str(c): [_word(v) for v in frame[c]] for c in frame.columns}
    cells = {c: words for c, words in cells.items() if any(words)}
    if not cells:
        console.print(f"(no rows; columns {', '.join(map(str, frame.columns))})")
        return
    widths = {c: max(map(len, [c, *words])) for c, words in cells.items()}
    least = {c: w if w <= MAX_NAME else MIN_SENTENCE for c, w in widths.items()}
    shown = list(cells)
    while len(shown) > 1 and sum(least[c] + 2 for c in shown) - 2 > console.width:
        shown.pop()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in shown:
        table.add_column(Text(column), no_wrap=widths[column] <= MAX_NAME)
    for row in zip(*(cells[c] for c in shown), strict=True):
        table.add_row(*map(Text, row))
    console.print(table)
    left_out = [c for c in cells if c not in shown]
    if left_out:
        console.print(Text(f"(not shown: {', '.join(left_out)})", style="dim"))


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
