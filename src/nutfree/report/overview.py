"""A comparison at a glance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nutfree.report.plots import PALETTE, blank_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nutfree.report.findings import Findings


def plot_comparison(comparison: "Findings") -> "Figure":
    """Four panels: speed, gradients, fit to the score, shares of the modes.

    Kernels that were set aside are hatched.
    """
    names = list(comparison.trees)
    table = comparison.table.loc[names]
    sound = [comparison.verdicts[name].sound for name in names]
    figure = blank_figure(11.0, 1.0 + 2 * (1.1 + 0.42 * len(names)))
    (speed, cost), (fit, modes) = figure.subplots(2, 2)
    _bars(speed, names, table["seconds_to_400"], sound)
    speed.set_title("seconds to the first 400 effective draws, all told", fontsize=10)
    _bars(cost, names, 1000 * table["ess_per_grad"], sound)
    cost.set_title("effective draws per 1,000 gradients", fontsize=10)
    _bars(fit, names, table["ksd"] / table["ksd_floor"], sound)
    fit.axvline(1.0, color="black", linewidth=1.0, linestyle="--")
    fit.set_title("Stein discrepancy over its floor (exact: below 1)", fontsize=10)
    shares = np.stack([comparison.verdicts[name].mode_shares for name in names])
    _stacked(modes, names, shares)
    figure.suptitle(
        f"Use {comparison.best}" if comparison.best else "No run can be trusted",
        fontsize=12,
        fontweight="bold",
    )
    if not all(sound):
        figure.supxlabel("hatched: set aside", fontsize=9, color="#555555")
    return figure


def _bars(
    axes: "Axes", names: Sequence[str], values: Any, sound: Sequence[bool]
) -> None:
    heights = np.nan_to_num(np.asarray(values, dtype=float))
    bars = axes.barh(range(len(names)), heights, height=0.6)
    for bar, color, good in zip(bars, PALETTE * 9, sound):
        bar.set_facecolor(color if good else "white")
        bar.set_edgecolor(color)
        bar.set_hatch("" if good else "////")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    labels = ["–" if np.isnan(v) else f"{v:.3g}" for v in np.asarray(values, float)]
    axes.bar_label(bars, labels=labels, padding=4, fontsize=9, bbox=box)
    axes.set_xlim(0, 1.18 * max(heights.max(), 1e-12))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    tidy(axes, grid="x")


def _stacked(axes: "Axes", names: Sequence[str], shares: np.ndarray) -> None:
    left = np.zeros(len(names))
    count = shares.shape[1]
    for mode in range(count):
        color = PALETTE[mode % len(PALETTE)]
        axes.barh(
            range(len(names)),
            shares[:, mode],
            left=left,
            height=0.6,
            color=color,
            alpha=0.85,
            edgecolor="white",
            linewidth=1.0,
        )
        left += shares[:, mode]
    axes.set_xlim(0, 1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    found = "1 mode" if count == 1 else f"{count} modes"
    axes.set_title(f"share of draws in each mode ({found})", fontsize=10)
    tidy(axes)
