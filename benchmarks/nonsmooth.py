"""Kinks and bounds: the Bregman kernels beside NUTS with diagonal and dense matrices.

Effective draws per 1,000 gradients (a prox or a force counts as one) without warm-up,
the least over coordinates: of the coordinate, and of its squared deviation, whose mean
is the variance. All kernels with default options in one run.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

import models
from benchmarks.common import gradients, matrix, sample


def anisotropic_laplace(scale):
    numpyro.sample("x", dist.Laplace(0.0, scale).to_event(1))


def _laplace(d: int) -> tuple[Any, dict]:
    return anisotropic_laplace, {"scale": jnp.logspace(-1, 1, d)}


def _zoo(name: str) -> tuple[Any, dict]:
    zoo = models.load(name)
    return zoo.model, zoo.data()


#: Model and data by name.
TARGETS = {
    "anisotropic Laplace, d = 10": lambda: _laplace(10),
    "anisotropic Laplace, d = 100": lambda: _laplace(100),
    "lasso on diabetes": lambda: _zoo("lasso_diabetes"),
    "positive regression": lambda: _zoo("positive_regression"),
    "sparse Dirichlet, d = 41": lambda: _zoo("sparse_dirichlet"),
}
#: Kernel and options by name; one step of MAMYULA is proximal MALA.
KERNELS: dict[str, tuple[str, dict]] = {
    "NUTS, diagonal": ("nuts", {}),
    "NUTS, dense": ("nuts", {"dense_mass": True}),
    "marbmumla": ("marbmumla", {}),
    "mamyula": ("mamyula", {}),
    "myula": ("myula", {}),
    "proximal MALA": ("mamyula", {"num_steps": 1}),
}
#: Targets and kernels of the quick form.
QUICK_TARGETS = tuple(name for name in TARGETS if name != "positive regression")
QUICK_KERNELS = ("NUTS, diagonal", "NUTS, dense", "marbmumla")


def run(quick: bool, only: str = "") -> pd.DataFrame:
    rows = []
    for label in QUICK_TARGETS if quick else TARGETS:
        if only not in label:
            continue
        model, data = TARGETS[label]()
        for name in QUICK_KERNELS if quick else KERNELS:
            kernel, options = KERNELS[name]
            tree = sample(
                kernel,
                model,
                data,
                options=options,
                num_warmup=300 if quick else 1000,
                num_samples=300 if quick else 2500,
                num_chains=2 if quick else 4,
            )
            of_x, of_square = _effective(matrix(tree))
            thousands = gradients(tree, warmup=False) / 1000
            rows.append(
                {
                    "target": label,
                    "kernel": name,
                    "ESS / 1,000 gradients": of_x / thousands,
                    "of the square": of_square / thousands,
                    "divergences": int(tree["sample_stats"]["diverging"].sum()),
                    "s": tree["sample_stats"].attrs["seconds"],
                }
            )
    table = pd.DataFrame(rows)
    for column in ("ESS / 1,000 gradients", "of the square"):
        nuts = table[table["kernel"].str.startswith("NUTS")]
        best = table["target"].map(nuts.groupby("target")[column].max())
        table[f"{column} / NUTS"] = table[column] / best
    return table


def _effective(draws: np.ndarray) -> tuple[float, float]:
    """Least bulk ESS of a coordinate, and of a squared deviation from its mean.

    Args:
        draws: `(chains, draws, d)`.
    """
    from arviz_stats.base import array_stats

    squares = (draws - draws.mean((0, 1))) ** 2
    least = [
        np.min(array_stats.ess(x, chain_axis=0, draw_axis=1, method="mean"))
        for x in (draws, squares)
    ]
    return float(least[0]), float(least[1])
