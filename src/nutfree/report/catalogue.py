"""The kernels and their options as people read them, made out of specs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from nutfree import registry
from nutfree.registry import KernelSpec

if TYPE_CHECKING:
    import pandas


def options_table(spec: KernelSpec) -> pandas.DataFrame:
    """A table of one kernel's options: default, range, whether tuned, help."""
    import pandas as pd

    rows = []
    for f in fields(spec.options):
        default = "" if f.default is MISSING else f.default
        tuned = f.metadata["tuned"]
        shown = "found in warm-up" if tuned and default is None else default
        rows.append((f.name, shown, f.metadata["help"]))
    if spec.exact_form is not None:
        what = f"draw with the exact kernel '{spec.exact_form}', and with its options"
        rows.append(("exact", False, what))
    # as objects: pandas would make NaN of a default that is None
    table = pd.DataFrame(rows, columns=["option", "default", "help"], dtype=object)
    return table.set_index("option")


def documentation() -> str:
    """The page of all kernels and their options, in Markdown."""
    columns = ("kernel", "family", "what it is", "needs", "draws", "promise")
    lines = ["# Kernels", "", "Written by `nutfree kernels --markdown`.", ""]
    lines += [_row(columns), _row("---" for _ in columns)]
    for s in registry.specs().values():
        needs = ", ".join(s.needs)
        lines.append(_row((s.name, s.family, s.summary, needs, s.draws, s.guarantee)))
    for s in registry.specs().values():
        lines += ["", f"## {s.name}", "", f"{_sentence(s.summary)} {s.paper}."]
        if s.bias:
            lines += ["", f"Bias: {s.bias}."]
        table = options_table(s)
        if len(table):
            lines += ["", _row(("option", "default", "what it is")), _row(["---"] * 3)]
            for name, default, help in table.itertuples():
                lines.append(_row((f"`{name}`", default, help)))
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"
