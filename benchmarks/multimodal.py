"""Multimodal: mode weights' total variation, with its floor, and gradients per draw.

Forty Gaussians, whose weights are known, and the galaxies mixture, whose K! labellings
weigh the same. `tv / floor` at most 1.2 is as good as exact independent draws; the
goal is that with at most half of tempered SMC's gradients. Gradients are counted from
the start, pilots and warm-up included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np
import pandas as pd

import models
from benchmarks.common import gradients, sample, tv_floor
from nutfree.report import total_variation

KERNELS = ("multiscale", "clc", "blackjax.tempered_smc", "nuts")


@dataclass(frozen=True)
class Multimodal:
    """A posterior, what its modes weigh, and the weights that draws give them."""

    model: Callable
    data: dict
    weights: np.ndarray
    weigh: Callable


def mixture(dim: int, unequal: bool = False) -> Multimodal:
    zoo = models.load("gaussian_mixture_40")
    data = zoo.data(dim=dim, unequal=unequal)

    def weigh(posterior):
        draws = posterior["x"].values.reshape(-1, dim)
        return zoo.mode_weights(draws, **data)

    return Multimodal(zoo.model, data, data["weights"], weigh)


def labelling_weights(mu: np.ndarray) -> np.ndarray:
    """Share of the draws `(n, K)` that put the components in each order."""
    orders = [tuple(row) for row in np.argsort(mu, axis=1)]
    every = permutations(range(mu.shape[1]))
    return np.array([orders.count(order) for order in every]) / len(orders)


def galaxies() -> Multimodal:
    zoo = models.load("galaxies")
    count = factorial(3)

    def weigh(posterior):
        return labelling_weights(posterior["mu"].values.reshape(-1, 3))

    return Multimodal(zoo.model, zoo.data(), np.full(count, 1 / count), weigh)


def run(quick: bool) -> pd.DataFrame:
    targets = {
        "40 Gaussians, d = 2": mixture(2),
        "40 Gaussians, d = 10": mixture(10),
        "galaxies": galaxies(),
    }
    if not quick:
        targets["40 Gaussians, d = 50"] = mixture(50)
        targets["40 Gaussians, unequal, d = 10"] = mixture(10, unequal=True)
    num_samples = 300 if quick else 2000
    rows = []
    for label, target in targets.items():
        for name in KERNELS:
            # every particle becomes a draw, so that none is paid for in vain
            smc = {"num_particles": num_samples} if "smc" in name else {}
            tree = sample(
                name,
                target.model,
                target.data,
                num_warmup=100 if quick else 500,
                num_samples=num_samples,
                num_chains=4,
                options=smc,
            )
            posterior = tree["posterior"]
            draws = posterior.sizes["chain"] * posterior.sizes["draw"]
            weights = target.weigh(posterior)
            tv = total_variation(weights, target.weights)
            floor = tv_floor(target.weights, draws)
            rows.append(
                {
                    "target": label,
                    "kernel": name,
                    "tv": tv,
                    "floor": floor,
                    "tv / floor": tv / floor,
                    "modes missed": int((weights < target.weights / 20).sum()),
                    "gradients per draw": gradients(tree) / draws,
                    "s": tree["sample_stats"].attrs["seconds"],
                }
            )
    table = pd.DataFrame(rows)
    peer = table[table["kernel"] == "blackjax.tempered_smc"]
    peer = peer.set_index("target")["gradients per draw"]
    cost = table["gradients per draw"] / table["target"].map(peer)
    table.insert(len(table.columns) - 1, "gradients / SMC", cost)
    return table
