"""A comparison as one self-contained HTML page: verdict, settings, draws, details."""

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from nutfree.report.words import (
    LEGEND,
    every_figure,
    parameters,
    remarks,
    shares_of_modes,
    summary,
)

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from nutfree.report.findings import Findings

__all__ = ["at_a_glance", "render"]

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1000px;
       margin: 1.5rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .8rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1rem; }
.best { border-left: 4px solid #0072b2; background: #eef5fa; padding: .7rem 1rem;
        margin: 0 0 1rem; }
.best.none { border-color: #d55e00; background: #fdf1ea; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: right; vertical-align: top;
         border-bottom: 1px solid #ddd; overflow-wrap: normal; }
td { white-space: nowrap; }
thead th { font-weight: 600; vertical-align: bottom; max-width: 8rem; }
th.name, td.words, td.word { text-align: left; }
th.name, td.words { white-space: normal; }
th.name { font-weight: 600; }
tr.best-row > * { background: #eef5fa; }
figure { margin: 1rem 0; }
.panels { display: flex; flex-wrap: wrap; gap: .5rem 1rem; }
.panels figure { flex: 1 1 400px; min-width: 0; max-width: 490px; margin: 0; }
 figcaption, .note { color: #555; font-size: .9rem; }
img { max-width: 100%; height: auto; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .87rem; }
summary { cursor: pointer; font-weight: 600; }
"""
PACKAGES = ("nutfree", "numpyro", "jax", "blackjax", "arviz", "numpy")
#: Parameters in the table of a run; the rest are counted.
MAX_PARAMETERS = 60


def _table(frame: "pd.DataFrame", best: str | None = None, words: str = "") -> str:
    """A table with its index in front; the row `best` is marked."""
    columns = [(str(c), "word" if str(c) == words else "num") for c in frame.columns]
    heads = "".join(
        f'<th class="{"name" if kind == "word" else kind}">{escape(c)}</th>'
        for c, kind in columns
    )
    rows = []
    for name, row in frame.iterrows():
        cells = "".join(
            f'<td class="{kind}">{escape(str(value))}</td>'
            for (_, kind), value in zip(columns, row, strict=True)
        )
        mark = ' class="best-row"' if name == best else ""
        rows.append(f'<tr{mark}><th class="name">{escape(str(name))}</th>{cells}</tr>')
    head = (
        f'<tr><th class="name">{escape(str(frame.index.name or ""))}</th>{heads}</tr>'
    )
    return (
        f'<div class="wide"><table><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _pairs(cells: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th class="name">{escape(name)}</th>'
        f'<td class="words">{escape(text)}</td></tr>'
        for name, text in cells.items()
    )
    return f'<div class="wide"><table>{rows}</table></div>'


def _figure(figure: "Figure", caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    data = base64.b64encode(buffer.getvalue()).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"{below}</figure>"
    )


def at_a_glance(found: "Findings") -> str:
    """The recommendation, the figures that decide, and what was not checked."""
    best = found.best
    said = "".join(
        f"<li><b>{escape(name)}</b>: {escape(' '.join(sentences))}</li>"
        for name, sentences in remarks(found).items()
    )
    head = f"<b>Use {escape(best)}.</b><br>" if best else ""
    return (
        f'<p class="best{"" if best else " none"}">{head}'
        f"{escape(found.recommendation)}</p>"
        f"{_table(summary(found), best, 'verdict')}"
        f"<ul>{said}</ul>"
    )


def _setup(found: "Findings") -> str:
    setup = found.setup
    options = {
        name: json.dumps(dict(chosen), default=repr) if chosen else "defaults"
        for name, chosen in found.options.items()
    }
    rows = {"model": setup.title}
    rows |= {f"argument {name}": text for name, text in setup.arguments.items()}
    names = {"num_warmup": "warm-up transitions a chain"}
    names |= {"num_samples": "draws a chain", "num_chains": "chains", "seed": "seed"}
    rows |= {
        words: f"{setup.settings[name]:,}"
        for name, words in names.items()
        if name in setup.settings
    }
    rows |= {f"options of {name}": text for name, text in options.items()}
    rows["versions"] = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    specs = found.specs
    kernels = {
        k: specs[k].name if k in specs else k for k in map(str, found.table.index)
    }
    code = setup.code(kernels, found.options)
    return f"{_pairs(rows)}<pre>{escape(code)}</pre>"


def _parameters(found: "Findings") -> str:
    names = [found.best] if found.best else list(found.trees)
    parts = []
    for name in names:
        table = parameters(found.trees[name])
        rest = len(table) - MAX_PARAMETERS
        parts.append(f"<h3>By {escape(name)}</h3>")
        if name not in found.verdicts or not found.verdicts[name].sound:
            parts.append('<p class="note">This run was set aside or not checked.</p>')
        parts.append(_table(table.head(MAX_PARAMETERS)))
        if rest > 0:
            parts.append(f"<p>… and {rest:,} more parameters.</p>")
    return "".join(parts)


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


def _details(found: "Findings") -> str:
    tuned = {name: _tuned(tree) for name, tree in found.trees.items()}
    tuned = {name: text for name, text in tuned.items() if text}
    parts = [_table(every_figure(found))]
    parts.append(
        '<p class="note">Evaluations are totals over chains, warm-up included where '
        "the kernel counts it; seconds include compilation.</p>"
    )
    if tuned:
        parts += ["<h3>Found in warm-up, a number a chain</h3>", _pairs(tuned)]
    for name, text in found.errors.items():
        summary_ = f"<summary>Traceback of {escape(name)}</summary>"
        parts.append(f"<details>{summary_}<pre>{escape(text)}</pre></details>")
    return "".join(parts)


def render(found: "Findings") -> str:
    """The whole page as a string; nothing in it is loaded from elsewhere."""
    from nutfree.report.overview import plot_panels
    from nutfree.report.plots import plot_draws, plot_ess

    panels = "".join(_figure(panel, "") for panel in plot_panels(found))
    hatched = any(not verdict.sound for verdict in found.verdicts.values())
    note = '<p class="note">Hatched: set aside, or not checked.</p>' if hatched else ""
    glance = f'<div class="panels">{panels}</div>{note}'
    draws = "".join(
        _figure(plot_draws(tree, title=name), f"Draws of {name}, a colour a chain.")
        for name, tree in found.trees.items()
    )
    cost = _figure(plot_ess(found.trees), "Effective draws against gradients spent.")
    modes = ""
    if found.modes.shape[1] > 1:
        shares = _table(shares_of_modes(found), found.best)
        modes = f"<h3>Share of the draws in each mode</h3>{shares}"
    title = f"Which kernel for {escape(found.setup.title)}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
{at_a_glance(found)}
<p class="note">{escape(LEGEND)}</p>
{modes}{glance}
<h2>Model, data and settings</h2>
{_setup(found)}
<h2>Parameters</h2>
{_parameters(found)}
<h2>Draws</h2>
{draws}
<h2>Every figure</h2>
{_details(found)}
{cost}
</body></html>
"""
