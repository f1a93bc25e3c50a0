"""Federated: rounds and bytes until the posterior of very different owners is known.

Logistic regression on 10,000 rows of owners whose predictors have different means and
scales and whose labels follow different coefficients. With conducive gradients, without
them (which is DSGLD), and NUTS on the pooled rows, which no owner would allow. A round
is a message to an owner and one back, of d numbers each. Errors are the largest over
means and over sds, in posterior sds, against importance sampling at the pooled mode.
Goals: errors of FSGLD at most 1.5 times their floor; a tenth of DSGLD's rounds.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

import nutfree as nf
from benchmarks.common import (
    gradients,
    laplace_reference,
    matrix,
    moment_errors,
    moment_floor,
    sample,
    settled,
    slope,
    smallest_ess,
)

DIM, ROWS, TOLERANCE = 10, 10_000, 0.15
CONTENDERS = {
    "fsgld": ("fsgld", {}),
    "fsgld, not conducive": ("fsgld", {"conducive": False}),
    "nuts, pooled": ("nuts", {}),
}


def owner_model(X, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        rows = numpyro.subsample(X, event_dim=1)
        labels = None if y is None else numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=rows @ beta), obs=labels)


def owners(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=DIM) / np.sqrt(DIM)
    shards = []
    for _ in range(count):
        centre, scale = rng.normal(size=DIM), rng.uniform(0.5, 2, size=DIM)
        X = centre + scale * rng.normal(size=(ROWS // count, DIM))
        beta = common + 0.3 * rng.normal(size=DIM)
        y = rng.uniform(size=len(X)) < 1 / (1 + np.exp(-X @ beta))
        shards.append({"X": X.astype(np.float32), "y": y.astype(int)})
    return shards


def draws_of(label: str, quick: bool) -> int:
    """Without conducive gradients a draw is a hundred rounds, not two."""
    if label.endswith("not conducive"):
        return 200 if quick else 4000
    return 1000 if quick else 4000


def run(quick: bool) -> pd.DataFrame:
    counts = (10,) if quick else (5, 10, 20, 40)
    model = nf.federated(owner_model)
    rows = []
    for count in counts:
        data = {"owners": owners(count)}
        target = nf.model_target(model, (data["owners"],))
        mean, sd, ess_reference = laplace_reference(target, 20_000)
        for label, (name, options) in CONTENDERS.items():
            federated = name == "fsgld"
            # one chain after the other: vmapped chains compute every owner at a visit
            tree = sample(
                name,
                model,
                {},
                args=(data["owners"],),
                num_warmup=20 if federated else 500,
                num_samples=draws_of(label, quick),
                num_chains=1,
                options=options,
            )
            draws = matrix(tree)[0]
            ess = smallest_ess(tree)
            mean_error, sd_error = moment_errors(draws, mean, sd)
            mean_floor, sd_floor = moment_floor(ess, ess_reference, DIM)
            stats = tree["sample_stats"]
            when = settled(draws, mean, sd, TOLERANCE)
            needed = float("nan")
            if federated and when is not None:
                needed = float(stats["num_rounds"].values[0, :when].sum())
            rows.append(
                {
                    "owners": count,
                    "kernel": label,
                    "ESS": ess,
                    "mean error": mean_error,
                    "its floor": mean_floor,
                    "sd error": sd_error,
                    "sd floor": sd_floor,
                    "rounds needed": needed,
                    "MB needed": needed * 2 * DIM * 4 / 1e6,
                    "rounds": float(stats["num_rounds"].sum())
                    if federated
                    else float("nan"),
                    "passes": gradients(tree),
                }
            )
    table = pd.DataFrame(rows)
    if len(counts) > 1:
        for label, group in table.groupby("kernel"):
            growth = slope(group["owners"], group["rounds"] / group["ESS"])
            table.loc[table["kernel"] == label, "growth of rounds / ESS"] = growth
    return table
