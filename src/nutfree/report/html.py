"""A comparison as one self-contained HTML page."""

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from nutfree.report.findings import Findings

__all__ = ["render", "table_html"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1100px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.best { border-left: 4px solid #0072b2; background: #eef5fa; padding: .7rem 1rem; }
.best.none { border-color: #d55e00; background: #fdf1ea; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th { font-weight: 600; white-space: nowrap; }
td.text, th.text { text-align: left; min-width: 16rem; }
th.name { text-align: left; }
tr.best-row { background: #eef5fa; }
img { max-width: 100%; } code { font-size: .92em; }
"""
PACKAGES = ("nutfree", "numpyro", "jax", "blackjax", "arviz")


def _cell(value: object) -> str:
    if isinstance(value, str):
        return escape(value)
    number = float(value)  # type: ignore[arg-type]
    if number != number:
        return "–"
    whole = number == round(number) and abs(number) < 1e9
    return f"{number:,.0f}" if whole else f"{number:.3g}"


def table_html(table: "pd.DataFrame", best: str | None = None) -> str:
    """The table, with columns that no kernel fills left out."""
    shown = table.dropna(axis=1, how="all")
    columns = [("text" if c == "verdict" else "num", str(c)) for c in shown.columns]
    head = "".join(f'<th class="{kind}">{escape(c)}</th>' for kind, c in columns)
    rows = []
    for name, row in shown.iterrows():
        cells = "".join(
            f'<td class="{kind}">{_cell(row[column])}</td>' for kind, column in columns
        )
        mark = ' class="best-row"' if name == best else ""
        label = f'<th class="name">{escape(str(name))}</th>'
        rows.append(f"<tr{mark}>{label}{cells}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th class="name">kernel</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure_html(figure: "Figure", alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _rows(cells: Mapping[str, str]) -> str:
    return "".join(
        f"<tr><th class='name'>{escape(name)}</th><td class='text'>"
        f"<code>{escape(text)}</code></td></tr>"
        for name, text in cells.items()
    )


def _tuned(tree: "xr.DataTree") -> str:
    """What warm-up found, each number once a chain."""
    found = json.loads(tree["sample_stats"].attrs.get("tuned", "{}"))
    each = (
        f"{name} {' '.join(f'{v:.3g}' for v in values)}"
        for name, values in found.items()
    )
    return "; ".join(each)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def render(comparison: "Findings") -> str:
    """The whole page as a string; nothing in it is loaded from elsewhere."""
    from nutfree.report.overview import plot_comparison
    from nutfree.report.plots import plot_draws, plot_ess

    plots = [
        ("The comparison at a glance", plot_comparison(comparison)),
        ("Effective sample against gradients", plot_ess(comparison.trees)),
    ]
    plots += [
        (f"Draws of {name}", plot_draws(tree, title=name))
        for name, tree in comparison.trees.items()
    ]
    figures = "".join(
        f"<h2>{escape(title)}</h2>{_figure_html(figure, title)}"
        for title, figure in plots
    )
    options = {
        name: json.dumps(chosen, default=repr) if chosen else "defaults"
        for name, chosen in comparison.options.items()
    }
    tuned = {name: _tuned(tree) for name, tree in comparison.trees.items()}
    tuned = {name: text for name, text in tuned.items() if text}
    caveats = "".join(
        f"<li><b>{escape(name)}</b>: {escape(text)}.</li>"
        for name, text in comparison.caveats.items()
    )
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    best = comparison.best
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nutfree comparison</title><style>{STYLE}</style></head><body>
<h1>Kernels compared</h1>
<p class="best{"" if best else " none"}">{escape(comparison.recommendation)}</p>
{table_html(comparison.table, best)}
<p>Effective sample sizes and R-hat are those of the worst parameter. The kernel Stein
discrepancy (ksd) and the disagreement of mode weights between chains (mode_tv) each
stand beside the value that exact draws stay below nineteen times in twenty.
Evaluations are totals over chains, warm-up included where the kernel counts it; seconds
include compilation.</p>
{f"<h2>Bias</h2><ul>{caveats}</ul>" if caveats else ""}
{figures}
<h2>Options</h2><table>{_rows(options)}</table>
{f"<h2>Found in warm-up, by chain</h2><table>{_rows(tuned)}</table>" if tuned else ""}
<h2>Versions</h2><p>{escape(versions)}</p>
</body></html>
"""
