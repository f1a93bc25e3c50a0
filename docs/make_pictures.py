"""Make the pictures of the README and of the documentation: `python docs/make_pictures.py`.

The pictures are kept beside this file, in `img/`, and are made again when what they
show has changed.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from matplotlib.figure import Figure

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
            held = (draws[..., 1] > 0).mean()
            held = held if place > 0 else 1 - held
            axes.text(
                0.48, place, f"{100 * held:.0f} % of the draws, {100 * share:.0f} % right",
                ha="center", fontsize=9,
            )  # fmt: skip
        chains = np.sort((draws[..., 1] > 0).mean(-1))
        moves = "each chain stays in one" if set(chains) <= {0, 1} else "all chains in both"
        axes.set_title(f"{name}: {moves}", fontsize=11)
        axes.set_xlabel("ship[0]")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ship[1]")
    figure.savefig(IMG / "two_modes.png", dpi=110)


if __name__ == "__main__":
    IMG.mkdir(exist_ok=True)
    two_modes()
