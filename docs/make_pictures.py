"""The pictures of the README and of the documentation.

`python docs/make_pictures.py` makes them. They are kept beside this file, in `img/`,
and are made again when what they show has changed.
"""

import io
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from matplotlib.figure import Figure
from PIL import Image

import nutfree as nf

IMG = Path(__file__).parent / "img"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
beacons = np.array([[-1.0, 0.0], [1.0, 0.0]])


def ship(distances):
    """The model of the README."""
    ship = numpyro.sample("ship", dist.Normal(jnp.array([0.0, 1.0]), 2).to_event(1))
    away = jnp.linalg.norm(ship - beacons, axis=-1)
    numpyro.sample("distances", dist.Normal(away, 0.15).to_event(1), obs=distances)


def two_modes() -> None:
    """NUTS beside multiscale on the README's model, a colour a chain."""
    distances = np.array([1.9, 1.3])
    target = nf.model_target(ship, (distances,))
    x, y = np.linspace(-1.6, 1.6, 160), np.linspace(-2, 2, 160)
    grid = jnp.stack(jnp.meshgrid(x, y), -1).reshape(-1, 2)
    height = np.asarray(jax.vmap(lambda p: target({"ship": p}))(grid)).reshape(160, 160)
    mass = np.exp(height - height.max())
    above = mass[y > 0].sum() / mass.sum()
    runs = {
        "nuts": dict(num_warmup=500, num_samples=1000),
        "multiscale": dict(num_warmup=500, num_samples=1000),
    }
    figure = Figure(figsize=(8.2, 3.6), layout="constrained")
    for axes, (name, settings) in zip(
        figure.subplots(1, 2, sharex=True, sharey=True), runs.items()
    ):
        tree = nf.sample(
            nf.kernel(name, ship), distances, progress_bar=False, **settings
        )
        draws = tree["posterior"]["ship"].values
        axes.contour(
            x,
            y,
            height,
            levels=height.max() - 0.5 * np.array([16.0, 9.0, 4.0, 1.0]),
            colors="#9a9a9a",
            linewidths=0.8,
        )
        for chain, color in zip(draws, COLORS):
            axes.plot(*chain[::5].T, ".", ms=3, alpha=0.7, color=color)
        axes.plot(*beacons.T, "k^", ms=7)
        for share, place in zip((above, 1 - above), (1.75, -1.9)):
            held = ((draws[..., 1] > 0) == (place > 0)).mean()
            said = f"{100 * held:.0f} % of the draws, {100 * share:.0f} % right"
            axes.text(0.48, place, said, ha="center", fontsize=9)
        chains = np.sort((draws[..., 1] > 0).mean(-1))
        moves = (
            "each chain stays in one" if set(chains) <= {0, 1} else "all chains in both"
        )
        axes.set_title(f"{name}: {moves}", fontsize=11)
        axes.set_xlabel("ship[0]")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ship[1]")
    save(figure, "two_modes.png")


def _grid(low: float, high: float) -> tuple:
    ticks = np.linspace(low, high, 300)
    return (ticks, *np.meshgrid(ticks, ticks))


def _filled(axes, ticks, log, **options) -> None:
    height = np.exp(np.clip(log - np.nanmax(log), -30, 0))
    axes.contourf(ticks, ticks, height, levels=10, cmap="Blues", **options)


def _modes(axes) -> None:
    ticks, x, y = _grid(-3, 3)
    centres = [(-1.6, -1.2, 1.0), (1.5, -0.6, 0.6), (0.2, 1.7, 0.8)]
    parts = [np.log(w) - 4 * ((x - a) ** 2 + (y - b) ** 2) for a, b, w in centres]
    _filled(axes, ticks, np.logaddexp.reduce(parts))


def _no_gradient(axes) -> None:
    ticks, x, y = _grid(-3, 3)
    log = -0.5 * ((x - 0.3 * y**2 + 1) ** 2 / 0.5 + y**2 / 1.5)
    _filled(axes, ticks, np.round(log * 1.5) / 1.5)  # a simulator that rounds


def _kinks(axes) -> None:
    ticks, x, y = _grid(-3, 3)
    log = -2.5 * (np.abs(x) + np.abs(y)) - 0.3 * ((x - 2) ** 2 + (y - 1.5) ** 2)
    _filled(axes, ticks, log)


def _bounds(axes) -> None:
    ticks, x, y = _grid(0.002, 1)
    with np.errstate(all="ignore"):
        rest = 1 - x - y
        log = np.where(
            rest > 0, -0.6 * np.log(x) - 0.6 * np.log(y) + np.log(rest), -np.inf
        )
    _filled(axes, ticks, np.minimum(log, 3.5))
    axes.plot([0, 1, 0, 0], [0, 0, 1, 0], color="#9a9a9a")


def _rows(axes) -> None:
    ticks, x, y = _grid(-3, 3)
    _filled(axes, ticks, -6 * (x**2 - 1.2 * x * y + y**2))
    rng = np.random.default_rng(0)
    path = np.array([[-2.5, 2.0]])
    for _ in range(24):  # a climb by gradients of few rows each
        pull = -0.12 * (2 * path[-1] - 1.2 * path[-1][::-1])
        path = np.vstack([path, path[-1] + pull + 0.22 * rng.normal(size=2)])
    axes.plot(*path.T, "-o", ms=2.5, lw=0.8, color=COLORS[1])


def _owners(axes) -> None:
    ticks, x, y = _grid(-3, 3)
    owners = [(-1.3, 0.8, 0.3, 3.0), (1.2, 0.6, 3.0, 0.4), (0.2, -1.0, 1.2, 1.2)]
    logs = [-0.5 * ((x - a) ** 2 / v + (y - b) ** 2 / w) for a, b, v, w in owners]
    _filled(axes, ticks, sum(logs))
    for log, color in zip(logs, COLORS[1:]):
        axes.contour(ticks, ticks, log, levels=[-1.0], colors=color, linestyles="solid")


HARD = {
    "separate modes": _modes,
    "no gradient": _no_gradient,
    "kinks": _kinks,
    "a bound": _bounds,
    "a million rows": _rows,
    "several owners": _owners,
}


def hard_posteriors() -> None:
    """A picture of each kind of posterior that NUTS is not made for."""
    figure = Figure(figsize=(8.2, 5.6), layout="constrained")
    for axes, (name, draw) in zip(figure.subplots(2, 3).flat, HARD.items()):
        draw(axes)
        axes.set_title(name, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
    save(figure, "hard_posteriors.png")


def save(figure: Figure, name: str) -> None:
    """Few colours are enough for these, and make small files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    picture = Image.open(buffer).convert("RGB").quantize(64)
    picture.save(IMG / name, optimize=True)


if __name__ == "__main__":
    IMG.mkdir(exist_ok=True)
    chosen = sys.argv[1:] or ["two_modes", "hard_posteriors"]
    for name in chosen:
        globals()[name]()
