"""Constrained and non-smooth: the Bregman kernels against NUTS and MALA.

Effective draws of the worst coordinate per gradient (of the draws, without warm-up),
and the bias: largest error of a mean and of a standard deviation, in posterior standard
deviations, against a long run of NUTS. Each error has its floor, which is that of an
exact sample of the run's own effective size. Goal: three times the best peer's
effective draws per gradient where the posterior is not smooth, errors at their floor.
"""

import pandas as pd

import models
from benchmarks.common import (
    gradients,
    matrix,
    moment_errors,
    moment_floor,
    sample,
    smallest_ess,
)

TARGETS = ("lasso_diabetes", "positive_regression", "simplex_regression")
OURS = ("marbmumla", "mamyula", "rbmumla", "myula")
PEERS = ("nuts", "mala")


def run(quick: bool) -> pd.DataFrame:
    num_samples = 1000 if quick else 10_000
    rows = []
    for label in TARGETS:
        zoo = models.load(label)
        data = zoo.data()
        reference = sample(
            "nuts",
            zoo.model,
            data,
            num_warmup=1000,
            num_samples=2500 if quick else 25_000,
            num_chains=4,
            seed=1,
        )
        sites = list(reference["posterior"].data_vars)
        exact = matrix(reference, sites)
        exact = exact.reshape(-1, exact.shape[-1])
        mean, sd = exact.mean(0), exact.std(0, ddof=1)
        ess_reference = smallest_ess(reference, sites)
        for name in (*OURS, *PEERS):
            # MALA spends one by one about the gradients of a draw of the others
            per_draw = 16 if name == "mala" else 1
            tree = sample(
                name,
                zoo.model,
                data,
                num_warmup=1000 * per_draw,
                num_samples=num_samples * per_draw,
                num_chains=4,
            )
            draws = matrix(tree, sites)
            ess = smallest_ess(tree, sites)
            flat = draws.reshape(-1, draws.shape[-1])
            mean_error, sd_error = moment_errors(flat, mean, sd)
            mean_floor, sd_floor = moment_floor(ess, ess_reference, flat.shape[1])
            rows.append(
                {
                    "target": label,
                    "kernel": name,
                    "min ESS": ess,
                    "ESS / 1,000 gradients": 1000 * ess / gradients(tree, warmup=False),
                    "mean error": mean_error,
                    "its floor": mean_floor,
                    "sd error": sd_error,
                    "sd floor": sd_floor,
                    "s": tree["sample_stats"].attrs["seconds"],
                }
            )
    table = pd.DataFrame(rows)
    peers = table[table["kernel"].isin(PEERS)]
    best = peers.groupby("target")["ESS / 1,000 gradients"].max()
    ratio = table["ESS / 1,000 gradients"] / table["target"].map(best)
    table.insert(4, "over best peer", ratio)
    return table
