"""A comparison in a terminal of 80 columns: which kernel, why, and what was not
checked."""

import io
import textwrap
from typing import TYPE_CHECKING

from nutfree.report.words import remarks, shares_of_modes, summary

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from nutfree.report.findings import Findings

#: Columns of a terminal.
WIDTH = 80
#: Columns of words, which begin at the left.
WORDS = ("kernel", "verdict")
#: Columns that a narrow terminal leaves out, in this order.
DROPPED = ("gradients", "seconds to 400 effective draws")
#: Columns of modes that fit beside the names.
MAX_MODES = 8


def show(found: "Findings", console: "Console", *, title: str = "") -> None:
    """Print the recommendation, the figures that decide, and what else is known."""
    from rich.text import Text

    if title:
        console.print(Text(title, style="dim"))
    console.print(Text(found.recommendation, style="bold"), end="\n\n")
    show_table(summary(found).reset_index(), console)
    shares = shares_of_modes(found)
    if shares.shape[1] > 1:
        shown = shares.iloc[:, :MAX_MODES].reset_index()
        rest = shares.shape[1] - MAX_MODES
        console.print("\nShare of the draws in each mode" + _first(rest, MAX_MODES))
        show_table(shown, console)
    console.print()
    for name, sentences in remarks(found).items():
        console.print(Text.assemble((f"{name}: ", "bold"), " ".join(sentences)))


def _first(rest: int, shown: int) -> str:
    return f" (the first {shown} of {shown + rest})" if rest > 0 else ""


def show_table(frame: "pd.DataFrame", console: "Console") -> None:
    """Print a table of words and figures; what does not fit is left out, and said."""
    from rich.table import Table
    from rich.text import Text

    heads = {str(c): _broken(str(c)) for c in frame.columns}
    widths = {
        c: max(map(len, [*head.split("\n"), *map(str, frame[c])]))
        for c, head in heads.items()
    }
    left_out = []
    for column in DROPPED:
        if sum(widths.values()) + 2 * len(widths) - 2 <= console.width:
            break
        if widths.pop(column, None) is not None:
            left_out.append(column)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in widths:
        words = column in WORDS
        table.add_column(
            Text(heads[column]), justify="left" if words else "right", vertical="bottom"
        )
    for _, row in frame.iterrows():
        table.add_row(*(Text(str(row[c])) for c in widths))
    console.print(table)
    if left_out:
        console.print(Text(f"(not shown: {', '.join(left_out)})", style="dim"))


def _broken(head: str) -> str:
    """A head over lines no longer than its longest word."""
    widest = max(len(word) for word in head.split())
    return textwrap.fill(head, max(widest, 9), break_long_words=False)


def as_text(found: "Findings", width: int = WIDTH) -> str:
    """What `show` prints, as a string without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None)
    show(found, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())
