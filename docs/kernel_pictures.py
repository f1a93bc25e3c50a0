"""A picture of each kernel's draws, for its page.

`python docs/kernel_pictures.py NAME...` makes some of them again. Each family has a
posterior of two dimensions of the kind that it is made for. A colour is a chain, grey
lines are the density. Pictures are kept in `img/kernels/`.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from make_pictures import COLORS, IMG, save, ship
from matplotlib.figure import Figure

import nutfree as nf
from nutfree import registry


class Posterior(NamedTuple):
    """A model of a site `x` of shape (2,), its arguments, and where it has its mass."""

    model: Callable
    args: tuple
    low: tuple[float, float]
    high: tuple[float, float]
    site: str = "x"


def lasso(y):
    x = numpyro.sample("x", dist.Laplace(0, 0.4).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x, 1).to_event(1), obs=y)


def logistic(X, y):
    x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("rows", len(X)):
        rows = numpyro.subsample(X, event_dim=1)
        labels = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=rows @ x), obs=labels)


def rows(number: int, shift: float = 0.0) -> dict:
    rng = np.random.default_rng(number)
    X = rng.normal(size=(number, 2)) @ [[1, 0.6], [0, 0.8]] + shift
    y = rng.uniform(size=number) < 1 / (1 + np.exp(-X @ [1, -1]))
    return {"X": X.astype(np.float32), "y": y.astype(int)}


def posterior_of(spec: registry.KernelSpec) -> Posterior:
    if "shards" in spec.needs:
        owners = [rows(600, -0.5), rows(900, 0.5)]
        return Posterior(nf.federated(logistic), (owners,), (0.6, -1.4), (1.4, -0.6))
    if "minibatch" in spec.needs:
        args = tuple(rows(20_000).values())
        return Posterior(logistic, args, (0.85, -1.15), (1.15, -0.85))
    if "split" in spec.needs:
        return Posterior(lasso, (np.array([1.2, 0.4]),), (-1.6, -1.6), (2.6, 2.2))
    return Posterior(ship, (np.array([1.9, 1.3]),), (-1.6, -2), (1.6, 2), "ship")


def picture(spec: registry.KernelSpec) -> None:
    model, args, low, high, site = posterior_of(spec)
    tree = nf.sample(
        nf.kernel(spec.name, model),
        *args,
        num_warmup=300,
        num_samples=300,
        progress_bar=False,
    )
    target = nf.model_target(model, args)
    x, y = (np.linspace(*ends, 80) for ends in zip(low, high))
    grid = jnp.stack(jnp.meshgrid(x, y), -1).reshape(-1, 2)
    height = np.asarray(jax.lax.map(lambda p: target({site: p}), grid)).reshape(80, 80)
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    levels = height.max() - 0.5 * np.array([16.0, 9.0, 4.0, 1.0])
    axes.contour(x, y, height, levels=levels, colors="#9a9a9a", linewidths=0.8)
    for chain, color in zip(tree["posterior"][site].values, COLORS):
        axes.plot(*chain.T, ".", ms=3, alpha=0.6, color=color)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set_title(f"{spec.name}: 300 draws of each of 4 chains", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, f"kernels/{spec.name}.png")


if __name__ == "__main__":
    (IMG / "kernels").mkdir(parents=True, exist_ok=True)
    specs = registry.specs()
    for name in sys.argv[1:] or specs:
        print(name, flush=True)
        picture(specs[name])
