"""A comparison at a glance."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from nutfree.report.plots import PALETTE, blank_figure, tidy
from nutfree.report.words import number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nutfree.report.findings import Findings

BLUE = PALETTE[0]


def plot_comparison(comparison: "Findings") -> "Figure":
    """Four panels: speed, gradients, fit to the score, shares of the modes.

    Kernels that were set aside are hatched.
    """
    figure = blank_figure(11.0, 1.0 + 2 * _height(comparison))
    for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        panel(axes, comparison)
    figure.suptitle(
        f"Use {comparison.best}" if comparison.best else "No run can be trusted",
        fontsize=12,
        fontweight="bold",
    )
    if not all(_sound(comparison)):
        figure.supxlabel("hatched: set aside", fontsize=9, color="#555555")
    return figure


def plot_panels(comparison: "Findings") -> "list[Figure]":
    """The panels of `plot_comparison`, each a figure of its own for narrow pages."""
    figures = []
    for panel in PANELS:
        figure = blank_figure(5.4, 0.4 + _height(comparison))
        panel(figure.subplots(), comparison)
        figures.append(figure)
    return figures


def _height(comparison: "Findings") -> float:
    return 1.1 + 0.42 * len(comparison.trees)


def _sound(comparison: "Findings") -> list[bool]:
    return [comparison.verdicts[name].sound for name in comparison.trees]


def _speed(axes: "Axes", found: "Findings") -> None:
    _bars(axes, found, lambda table: table["seconds_to_400"])
    axes.set_title("seconds to the first 400 effective draws, all told", fontsize=10)


def _cost(axes: "Axes", found: "Findings") -> None:
    _bars(axes, found, lambda table: 1000 * table["ess_per_grad"])
    axes.set_title("effective draws per 1,000 gradients", fontsize=10)


def _fit(axes: "Axes", found: "Findings") -> None:
    _bars(axes, found, lambda table: table["ksd"] / table["ksd_floor"])
    axes.axvline(1.0, color="black", linewidth=1.0, linestyle="--")
    axes.set_title("Stein discrepancy over its limit (exact: below 1)", fontsize=10)


def _modes(axes: "Axes", found: "Findings") -> None:
    names = list(found.trees)
    shares = np.stack([found.verdicts[name].mode_shares for name in names])
    left = np.zeros(len(names))
    count = shares.shape[1]
    for mode in range(count):
        axes.barh(
            range(len(names)),
            shares[:, mode],
            left=left,
            height=0.6,
            color=PALETTE[mode % len(PALETTE)],
            alpha=0.85,
            edgecolor="white",
            linewidth=1.0,
            label=f"mode {mode + 1}",
        )
        left += shares[:, mode]
    axes.set_xlim(0, 1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    counted = "1 mode" if count == 1 else f"{count} modes"
    axes.set_title(f"share of draws in each mode ({counted})", fontsize=10)
    if 1 < count <= len(PALETTE):
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
            ncols=4,
            fontsize=8,
            frameon=False,
        )
    tidy(axes)


def _bars(
    axes: "Axes", found: "Findings", values: "Callable[[pd.DataFrame], pd.Series]"
) -> None:
    names = list(found.trees)
    figures = np.asarray(values(found.table.loc[names]), dtype=float)
    heights = np.nan_to_num(figures)
    bars = axes.barh(range(len(names)), heights, height=0.6)
    for bar, good in zip(bars, _sound(found), strict=True):
        bar.set_facecolor(BLUE if good else "white")
        bar.set_edgecolor(BLUE)
        bar.set_hatch("" if good else "////")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    labels = [number(value) for value in figures]
    axes.bar_label(bars, labels=labels, padding=4, fontsize=9, bbox=box)
    axes.set_xlim(0, 1.18 * max(heights.max(), 1e-12))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    tidy(axes, grid="x")


PANELS = (_speed, _cost, _fit, _modes)
