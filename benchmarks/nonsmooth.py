"""Kinks and bounds: the Bregman kernels beside NUTS with diagonal and dense matrices.

Effective draws per 1,000 gradients (a prox or a force counts as one) without warm-up,
the least over coordinates: of the coordinate, and of its squared deviation, whose mean
is the variance. All kernels with default options in one run.

The widths of a horseshoe have no variance: there, both are of normal scores of ranks.
A row whose R-hat is above 1.05 is of chains that have not converged, and is rough.
Seconds are those of the draws, and mean a ratio between the rows of a target.

On a picture a step is compared with the longest that subgradients allow, which is that
of the same trajectories without any smoothing: "3 x that step" is three times as long.
"""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from scipy.stats import norm, rankdata

import models
import nutfree as nf
from benchmarks.common import gradients, matrix, sample


def anisotropic_laplace(scale):
    numpyro.sample("x", dist.Laplace(0.0, scale).to_event(1))


def _laplace(d: int) -> tuple[Any, dict]:
    return anisotropic_laplace, {"scale": jnp.logspace(-1, 1, d)}


def total_variation(y, scale=0.1, noise=0.5):
    x = numpyro.sample("x", dist.Normal(0, 10).expand(y.shape).to_event(y.ndim))
    for axis in range(y.ndim):
        nf.nonsmooth(f"tv{axis}", jnp.diff(x, axis=axis), scale)
    numpyro.sample("y", dist.Normal(x, noise).to_event(y.ndim), obs=y)


def _steps(n: int) -> tuple[Any, dict]:
    """Four plateaus of n / 4 points, and noise."""
    noise = 0.5 * np.random.default_rng(0).normal(size=n)
    return total_variation, {"y": np.repeat([0.0, 2.0, -1.0, 1.0], n // 4) + noise}


def _picture(n: int) -> tuple[Any, dict]:
    """A square on a ground, a corner of both darker, and noise."""
    y = np.zeros((n, n))
    y[n // 4 : 3 * n // 4, n // 4 : 3 * n // 4] = 2.0
    y[: n // 3, : n // 3] -= 1.0
    return total_variation, {
        "y": y + 0.5 * np.random.default_rng(0).normal(size=y.shape)
    }


def quantile_regression(X, y, quantile=0.9):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    level = numpyro.sample("level", dist.Normal(0, 1))
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    with numpyro.plate("rows", len(y)):
        law = dist.AsymmetricLaplaceQuantile(X @ beta + level, scale, quantile)
        numpyro.sample("y", law, obs=y)


def sparse_logistic(X, y, scale=0.5):
    beta = numpyro.sample(
        "beta", dist.Laplace(0, scale).expand([X.shape[1]]).to_event(1)
    )
    level = numpyro.sample("level", dist.Normal(0, 2))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=X @ beta + level), obs=y)


def horseshoe(X, y):
    tau = numpyro.sample("tau", dist.HalfCauchy(0.1))
    with numpyro.plate("columns", X.shape[1]):
        width = numpyro.sample("width", dist.HalfCauchy(1))
        z = numpyro.sample("z", dist.Normal(0, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    beta = numpyro.deterministic("beta", tau * width * z)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def _on(model: Any, name: str) -> tuple[Any, dict]:
    """Another model on the data of one of the zoo."""
    data = models.load(name).data()
    return model, {"X": data["X"], "y": data["y"]}


def _zoo(name: str) -> tuple[Any, dict]:
    zoo = models.load(name)
    return zoo.model, zoo.data()


#: The target that has a matrix of a size that no kernel here adapts.
PICTURE = "total variation, 128 x 128"
#: Model and data by name.
TARGETS = {
    "anisotropic Laplace, d = 10": lambda: _laplace(10),
    "anisotropic Laplace, d = 100": lambda: _laplace(100),
    "lasso on diabetes": lambda: _zoo("lasso_diabetes"),
    "total variation, n = 200": lambda: _steps(200),
    PICTURE: lambda: _picture(128),
    "quantile regression on diabetes": lambda: _on(
        quantile_regression, "lasso_diabetes"
    ),
    "sparse logistic on sonar": lambda: _on(sparse_logistic, "sonar"),
    "sparse logistic on ionosphere": lambda: _on(sparse_logistic, "ionosphere"),
    "horseshoe on diabetes": lambda: _on(horseshoe, "lasso_diabetes"),
    "positive regression": lambda: _zoo("positive_regression"),
    "sparse Dirichlet, d = 41": lambda: _zoo("sparse_dirichlet"),
}
#: Kernel and options by name; one step of MAMYULA is proximal MALA.
KERNELS: dict[str, tuple[str, dict]] = {
    "NUTS, diagonal": ("nuts", {}),
    "NUTS, dense": ("nuts", {"dense_mass": True}),
    "marbmumla": ("marbmumla", {}),
    "myula": ("myula", {}),
    "proximal MALA": ("mamyula", {"num_steps": 1}),
}
#: No smoothing to speak of.
SUBGRADIENT = "marbmumla, subgradient"
KERNELS_OF_PICTURE = {
    **{k: v for k, v in KERNELS.items() if k in ("NUTS, diagonal", "marbmumla")},
    SUBGRADIENT: ("marbmumla", {"smoothing": 1e-3}),
    "marbmumla, 3 x that step": ("marbmumla", {}),
}
#: Targets that are ranked.
HEAVY_TAILED = ("horseshoe on diabetes",)
#: Targets and kernels of the quick form.
QUICK_TARGETS = (
    "anisotropic Laplace, d = 100",
    "lasso on diabetes",
    "horseshoe on diabetes",
    "sparse Dirichlet, d = 41",
)
QUICK_KERNELS = ("NUTS, diagonal", "NUTS, dense", "marbmumla")
#: Most coordinates whose effective draws are counted, evenly spaced.
MOST = 2048
#: Sizes of a run.
FULL = {"num_warmup": 1000, "num_samples": 2000, "num_chains": 4}
QUICK = {"num_warmup": 300, "num_samples": 300, "num_chains": 2}
OF_PICTURE = {"num_warmup": 100, "num_samples": 100, "num_chains": 1}


def run(quick: bool, only: str = "") -> pd.DataFrame:
    rows = []
    for label in QUICK_TARGETS if quick else TARGETS:
        if only not in label:
            continue
        kernels = KERNELS_OF_PICTURE if label == PICTURE else KERNELS
        size = QUICK if quick else OF_PICTURE if label == PICTURE else FULL
        allowed = float("nan")
        for name in QUICK_KERNELS if quick else kernels:
            kernel, options = kernels[name]
            if name.endswith("that step"):
                options = {**options, "step_size": 3 * allowed}
            row = _row(label, name, kernel, options, size)
            rows.append(row)
            print(row, flush=True)
            if name == SUBGRADIENT:
                allowed = row["step"]
    table = pd.DataFrame(rows)
    for column in ("ESS / 1,000 gradients", "of the square", "ESS / s"):
        nuts = table[table["kernel"].str.startswith("NUTS")]
        best = table["target"].map(nuts.groupby("target")[column].max())
        table[f"{column} / NUTS"] = table[column] / best
    return table


def _row(label: str, name: str, kernel: str, options: dict, size: dict) -> dict:
    model, data = TARGETS[label]()
    tree = sample(kernel, model, data, options=options, **size)
    stats, draws = tree["sample_stats"], matrix(tree)
    if draws.shape[-1] > MOST:
        draws = draws[..., :: -(-draws.shape[-1] // MOST)]
    of_x, of_square, r_hat = _effective(draws, label in HEAVY_TAILED)
    thousands = gradients(tree, warmup=False) / 1000
    rate = "acceptance_rate" if "acceptance_rate" in stats else "accept_prob"
    tuned = json.loads(stats.attrs.get("tuned", "{}"))
    return {
        "target": label,
        "kernel": name,
        "ESS / 1,000 gradients": of_x / thousands,
        "of the square": of_square / thousands,
        "ESS / s": of_x / stats.attrs["sampling_seconds"],
        "R-hat": r_hat,
        "divergences": int(stats["diverging"].sum()),
        "step": float(np.mean(tuned.get("step_size", np.nan))),
        "acceptance": float(stats[rate].mean()) if rate in stats else np.nan,
        "s": stats.attrs["seconds"],
    }


def _effective(draws: np.ndarray, ranked: bool) -> tuple[float, float, float]:
    """Least bulk ESS of a coordinate, and of a squared deviation from its mean; and the
    largest R-hat.

    Args:
        draws: `(chains, draws, d)`.
        ranked: whether normal scores of ranks stand for the draws.
    """
    from arviz_stats.base import array_stats

    axes = {"chain_axis": 0, "draw_axis": 1}
    if ranked:
        ranks = rankdata(draws.reshape(-1, draws.shape[-1]), axis=0)
        draws = norm.ppf((ranks - 0.5) / len(ranks)).reshape(draws.shape)
    squares = (draws - draws.mean((0, 1))) ** 2
    of_x, of_square = (
        float(np.min(array_stats.ess(x, method="mean", **axes)))
        for x in (draws, squares)
    )
    return of_x, of_square, float(np.max(array_stats.rhat(draws, **axes)))
