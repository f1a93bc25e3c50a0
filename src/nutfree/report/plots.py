"""Pictures of draws; each function returns a matplotlib figure.

Colours are those of Okabe and Ito, which colour-blind readers tell apart.
"""

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nutfree.errors import NutfreeError
from nutfree.target import LogDensity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["plot_draws", "plot_ess", "plot_rank", "plot_trace"]

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#F0E442",
)
GREY = "#9a9a9a"


def check_matplotlib() -> None:
    """Refuse to plot where there is nothing to plot with.

    Raises:
        NutfreeError: with what to install.
    """
    if find_spec("matplotlib") is None:
        raise NutfreeError(
            "Plots and reports need matplotlib: pip install matplotlib, or nutfree's "
            "extra [plots]."
        )


def blank_figure(width: float, height: float) -> "Figure":
    """A figure that no window and no global list holds on to, and notebooks show."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that a notebook shows without `%matplotlib inline`."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=100)
            return buffer.getvalue()

    figure = Picture(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend_of_chains(figure: "Figure", chains: int) -> None:
    from matplotlib.lines import Line2D

    if not 1 < chains <= len(PALETTE):
        return
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, label=f"chain {i + 1}")
        for i, color in enumerate(PALETTE[:chains])
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )


def tidy(axes: "Axes", *, grid: str | None = None) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    if grid:
        axes.grid(axis=grid, color="#e6e6e6", linewidth=0.8)  # type: ignore[arg-type]
        axes.set_axisbelow(True)


def _scalars(tree: xr.DataTree, var_names: Sequence[str] | None) -> dict[str, Any]:
    """Scalar components of the posterior by label, each ``(chain, draw)``."""
    posterior = tree["posterior"].to_dataset()
    if var_names is not None:
        posterior = posterior[list(var_names)]
    found = {}
    for name, values in posterior.items():
        array = values.values
        for index in np.ndindex(array.shape[2:]):
            label = f"{name}[{', '.join(map(str, index))}]" if index else str(name)
            found[label] = array[(..., *index)]
    return found


def _kernel(tree: xr.DataTree) -> str:
    return str(tree["sample_stats"].attrs.get("kernel", ""))


def plot_draws(
    tree: xr.DataTree,
    var_names: Sequence[str] | None = None,
    *,
    logdensity_fn: LogDensity | None = None,
    max_draws: int = 2000,
    max_vars: int = 4,
    title: str | None = None,
) -> "Figure":
    """Draws of up to four scalar parameters, in pairs, coloured by chain.

    Args:
        tree: a run.
        var_names: which sites; the first scalars of the posterior when None.
        logdensity_fn: with exactly two scalars, a log density of a ``(2,)`` vector on
            the same space, drawn as contours beneath.
        max_draws: draws shown over all chains.
        max_vars: scalars shown.
        title: of the figure; the kernel's name when None.
    """
    scalars = _scalars(tree, var_names)
    names = list(scalars)[:max_vars]
    chains, draws = scalars[names[0]].shape
    step = max(1, chains * draws // max_draws)
    title = _kernel(tree) if title is None else title
    if len(names) <= 2:
        figure = blank_figure(5.4, 4.2)
        axes = figure.subplots()
        if len(names) == 1:
            _density(axes, scalars[names[0]], names[0])
        else:
            _scatter(axes, scalars, names[0], names[1], step, size=16)
            if logdensity_fn is not None:
                _contours(axes, logdensity_fn)
        figure.suptitle(title, fontsize=11)
        _legend_of_chains(figure, chains)
        return figure
    count = len(names)
    figure = blank_figure(2.1 * count, 2.1 * count)
    grid = figure.subplots(count, count, sharex="col", squeeze=False)
    for row, down in enumerate(names):
        for column, across in enumerate(names):
            axes = grid[row, column]
            if column > row:
                axes.set_visible(False)
            elif column == row:
                _density(axes, scalars[down], across)
            else:
                _scatter(axes, scalars, across, down, step, size=9)
            axes.set_xlabel(across if row == count - 1 else "", fontsize=9)
            shown = down if column == 0 and row > 0 else ""
            axes.set_ylabel(shown, fontsize=9)
            axes.tick_params(labelsize=8, labelbottom=row == count - 1)
            if column and column != row:
                axes.tick_params(labelleft=False)
    rest = len(scalars) - count
    more = f" (first {count} of {len(scalars)} parameters)" if rest else ""
    figure.suptitle(f"{title}{more}", fontsize=11)
    _legend_of_chains(figure, chains)
    return figure


def _density(axes: "Axes", values: Any, name: str) -> None:
    edges = np.histogram_bin_edges(values[np.isfinite(values)], bins=40)
    for chain, drawn in enumerate(values):
        axes.hist(
            drawn,
            bins=list(edges),
            histtype="step",
            density=True,
            linewidth=1.2,
            color=PALETTE[chain % len(PALETTE)],
        )
    axes.set_yticks([])
    axes.set_xlabel(name)
    tidy(axes)
    axes.spines["left"].set_visible(False)


def _scatter(
    axes: "Axes",
    scalars: Mapping[str, Any],
    across: str,
    down: str,
    step: int,
    *,
    size: float,
) -> None:
    for chain, (x, y) in enumerate(zip(scalars[across], scalars[down])):
        axes.plot(
            x[::step],
            y[::step],
            ".",
            markersize=size**0.5 * 1.2,
            alpha=0.45,
            markeredgewidth=0,
            color=PALETTE[chain % len(PALETTE)],
            rasterized=True,
        )
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    tidy(axes)


def _contours(axes: "Axes", logdensity_fn: LogDensity) -> None:
    import jax
    import jax.numpy as jnp

    x = np.linspace(*axes.get_xlim(), 120)
    y = np.linspace(*axes.get_ylim(), 120)
    points = jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(-1, 2)
    heights = np.asarray(jax.vmap(logdensity_fn)(points)).reshape(120, 120)
    levels = np.nanmax(heights) - 0.5 * np.array([16.0, 9.0, 4.0, 1.0])
    axes.contour(
        x,
        y,
        heights,
        levels=levels,
        colors=GREY,
        linewidths=0.9,
        linestyles="solid",
        zorder=0,
    )


def plot_trace(
    tree: xr.DataTree, var_names: Sequence[str] | None = None, *, max_vars: int = 6
) -> "Figure":
    """Traces of the first scalar parameters, a line per chain.

    Raises:
        ValueError: for a kernel whose draws are not a chain; their order means nothing.
    """
    _only_chains(tree, "plot_trace")
    scalars = _scalars(tree, var_names)
    names = list(scalars)[:max_vars]
    figure = blank_figure(8.0, 1.5 * len(names) + 0.6)
    for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names):
        for chain, values in enumerate(scalars[name]):
            color = PALETTE[chain % len(PALETTE)]
            axes.plot(values, linewidth=0.6, alpha=0.8, color=color)
        axes.set_ylabel(name, fontsize=9)
        tidy(axes)
    axes.set_xlabel("draw")
    figure.suptitle(_kernel(tree), fontsize=11)
    return figure


def plot_rank(
    tree: xr.DataTree, var_names: Sequence[str] | None = None, *, max_vars: int = 6
) -> "Figure":
    """ArviZ's rank plot: chains that agree stay flat, and black marks where one
    does not.

    Raises:
        ValueError: for a kernel whose draws are not a chain.
    """
    check_matplotlib()
    import arviz_plots

    _only_chains(tree, "plot_rank")
    names = list(tree["posterior"].data_vars) if var_names is None else list(var_names)
    collection = arviz_plots.plot_rank(
        tree, var_names=names[:max_vars], backend="matplotlib"
    )
    return collection.viz["figure"].item()


def _only_chains(tree: xr.DataTree, what: str) -> None:
    from nutfree import registry

    spec = registry.specs().get(_kernel(tree))
    if spec is not None and spec.draws != "chain":
        raise ValueError(
            f"{what} follows a chain, and the draws of '{spec.name}' are "
            f"{spec.draws}: their order means nothing. Use plot_draws."
        )


def plot_ess(trees: Mapping[str, xr.DataTree] | xr.DataTree) -> "Figure":
    """Smallest bulk ESS against gradients spent, a line per run.

    A line begins where warm-up ended. Runs that count no gradients are drawn against
    density evaluations, and say so in the legend.
    """
    from arviz_stats.base import array_stats

    if isinstance(trees, xr.DataTree):
        trees = {_kernel(trees): trees}
    figure = blank_figure(6.4, 4.0)
    axes = figure.subplots()
    for color, (name, tree) in zip(PALETTE * 9, trees.items()):
        scalars = np.stack(list(_scalars(tree, None).values()), axis=-1)[..., :20]
        draws = scalars.shape[1]
        spent, unit = _spent(tree, draws)
        counts = np.unique(np.linspace(max(8, draws // 10), draws, 10).astype(int))
        with np.errstate(all="ignore"):
            sizes = [
                np.nanmin(array_stats.ess(scalars[:, :n], chain_axis=0, draw_axis=1))
                for n in counts
            ]
        label = name if unit == "gradients" else f"{name} ({unit})"
        axes.plot(
            spent[counts - 1], sizes, "o-", markersize=4, color=color, label=label
        )
    axes.set_xlabel("full-data gradients, all chains")
    axes.set_ylabel("bulk ESS, worst parameter")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=9)
    tidy(axes, grid="y")
    return figure


def _spent(tree: xr.DataTree, draws: int) -> tuple[np.ndarray, str]:
    """Evaluations spent until each draw, and what they are."""
    stats = tree["sample_stats"]
    for name, total, unit in (
        ("num_grad_evals", "num_grad_evals", "gradients"),
        ("n_steps", "num_grad_evals", "gradients"),
        ("num_density_evals", "num_density_evals", "density evaluations"),
    ):
        if name in stats and float(stats[name].sum()) > 0:
            each = np.cumsum(stats[name].sum("chain").to_numpy())
            before = float(stats.attrs.get(total, each[-1])) - float(each[-1])
            return each + max(before, 0.0), unit
    return np.arange(1, draws + 1) * stats.sizes.get("chain", 1), "draws"
