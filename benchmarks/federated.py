"""Federated: rounds and bytes until the posterior of very different owners is known.

Ten owners of unequal sizes. Gaussian rows, whose pooled posterior is known; logistic
rows of which each owner has mostly one label; logistic rows of which each owner has its
own range of covariates; in full, a Bayesian network of one hidden layer, judged by what
it predicts. K local steps, with all of the owners in a round, half of them, and one.
`fald` and `fsgld` with surrogates, the papers' baselines without, and NUTS on the
pooled rows, which no owner would allow. Errors are the largest over means and over sds,
in posterior sds. Goals: within 0.1 and 8 % where the floor allows; a tenth of DSGLD's
rounds; at K = 10, under three rounds an effective draw.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from jax.nn import tanh

import nutfree as nf
from benchmarks.common import (
    laplace_reference,
    matrix,
    moment_errors,
    moment_floor,
    sample,
    settled,
    smallest_ess,
)

OWNERS, DIM, TOLERANCE = 10, 4, 0.15
SHARES = np.linspace(0.4, 1.6, OWNERS) / OWNERS


def gaussian_model(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([DIM]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        rows, y = numpyro.subsample(X, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(rows @ beta, 1.0), obs=y)


def logistic_model(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([DIM]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        rows, y = numpyro.subsample(X, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=rows @ beta), obs=y)


def network_model(X, y):
    inner = numpyro.sample("inner", dist.Normal(0, 1).expand([2, 3]).to_event(2))
    outer = numpyro.sample("outer", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        rows, y = numpyro.subsample(X, event_dim=1), numpyro.subsample(y, event_dim=0)
        mean = tanh(rows @ inner) @ outer
        numpyro.sample("y", dist.Normal(mean, 0.3), obs=y)


def split(X, y, order) -> list[dict[str, np.ndarray]]:
    """Cut rows in this order into owners of unequal sizes."""
    cuts = np.round(np.cumsum(SHARES) * len(y)).astype(int)[:-1]
    X, y = X[order].astype(np.float32), y[order]
    y = y.astype(np.float32 if y.dtype.kind == "f" else int)
    return [{"X": a, "y": b} for a, b in zip(np.split(X, cuts), np.split(y, cuts))]


def targets(quick: bool) -> dict[str, tuple[Any, list[dict[str, np.ndarray]]]]:
    rng = np.random.default_rng(0)
    n = 2_000
    X = np.column_stack([np.ones(n), rng.normal(size=(n, DIM - 1))])
    beta = rng.normal(size=DIM) / 2
    label = (rng.uniform(size=n) < 1 / (1 + np.exp(-X @ beta))).astype(int)
    y = X @ beta + rng.normal(size=n)
    by_covariate = np.argsort(X[:, 1])
    made = {
        "Gaussian": (gaussian_model, split(X, y, by_covariate)),
        "logistic, by label": (
            logistic_model,
            split(X, label, np.argsort(label + rng.normal(0, 0.3, n))),
        ),
    }
    if quick:
        return made
    made["logistic, by covariate"] = logistic_model, split(X, label, by_covariate)
    # ten rows a coordinate for the smallest owner, which may then send its curvature
    Z = np.column_stack([np.ones(2400), np.sort(rng.uniform(-2, 2, 2400))])
    wave = np.sin(Z[:, 1]) + 0.3 * rng.normal(size=2400)
    made["network"] = network_model, split(Z, wave, np.arange(2400))
    return made


def contenders(label: str, quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """Return kernels and options: baselines where they have been looked at before."""
    counts = (10,) if quick or label == "network" else (10, 100, 1)
    made: list[tuple[str, dict[str, Any]]] = [("nuts", {})]
    if label == "network":  # single steps of everybody need no surrogates
        made.append(("fald", {"num_local_steps": 1, "participation": 1.0}))
    for K in counts:
        made += [
            ("fald", {"num_local_steps": K, "participation": p})
            for p in ((1.0, 0.1) if quick else (1.0, 0.5, 0.1))
        ]
        made.append(("fsgld", {"num_local_steps": K}))
    if label in ("Gaussian", "logistic, by label"):
        made += [("dsgld", {"num_local_steps": K}) for K in counts if K < 100]
        made += [
            ("plain_fald", {"num_local_steps": 10, "participation": p})
            for p in ((1.0,) if quick else (1.0, 0.5))
        ]
    return made


def draws_of(kernel: str, options: dict[str, Any], label: str, quick: bool) -> int:
    """Where surrogates are none or bad, a draw is up to a hundred rounds, not two."""
    bad = label == "network" and options.get("num_local_steps", 1) > 1
    if bad or kernel in ("dsgld", "plain_fald"):
        return 10 if quick else 100
    return 300 if quick else 800


def known(model, owners) -> tuple[np.ndarray, np.ndarray, float]:
    """Moments of the pooled posterior: exact for Gaussian rows."""
    if model is gaussian_model:
        X, y = (np.concatenate([o[name] for o in owners]) for name in "Xy")
        covariance = np.linalg.inv(X.T @ X + np.eye(DIM))
        return covariance @ X.T @ y, np.sqrt(np.diag(covariance)), np.inf
    target = nf.model_target(nf.federated(model), (owners,))
    return laplace_reference(target, 20_000)


def predictions(tree) -> np.ndarray:
    """What draws of the network predict at five points, `(chains, draws, 5)`."""
    inner, outer = (tree["posterior"][name].values for name in ("inner", "outer"))
    Z = np.column_stack([np.ones(5), np.linspace(-1.5, 1.5, 5)])
    hidden = np.tanh(np.einsum("pi,cdij->cdpj", Z, inner))
    return np.einsum("cdpj,cdj->cdp", hidden, outer)


def warned(seen) -> str:
    """What a run itself has said against its draws, in a word each."""
    said = " ".join(str(warning.message) for warning in seen)
    words = {
        "mode was not found": "mode",
        "surrogates expect": "surrogates",
        "chains disagree": "R-hat",
    }
    return ", ".join(word for text, word in words.items() if text in said)


def ess_of(draws: np.ndarray) -> float:
    from arviz_stats.base import array_stats

    ess = array_stats.ess(draws, chain_axis=0, draw_axis=1, method="bulk")
    return float(np.min(ess))


def run(quick: bool, only: str = "") -> pd.DataFrame:
    return pd.DataFrame(
        row
        for label, (model, owners) in targets(quick).items()
        if only in label
        for row in rows_of(label, model, owners, contenders(label, quick), quick)
    )


def rows_of(label, model, owners, runs, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield a row of the table for each of the runs, of which NUTS is the first."""
    pooled, network = nf.federated(model), model is network_model
    reference = None if network else known(model, owners)
    for kernel, options in runs:
        federated = kernel != "nuts"
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            tree = sample(
                kernel,
                pooled,
                {},
                args=(owners,),
                num_warmup=5 if federated else 300,
                num_samples=draws_of(kernel, options, label, quick),
                num_chains=1 if quick else 2,
                options=options,
            )
        draws = predictions(tree) if network else matrix(tree)
        ess = ess_of(draws) if network else smallest_ess(tree)
        flat = draws.reshape(-1, draws.shape[-1])
        if reference is None:
            reference = flat.mean(0), flat.std(0), ess
        mean, sd, ess_reference = reference
        mean_error, sd_error = moment_errors(flat, mean, sd)
        mean_floor, sd_floor = moment_floor(ess, ess_reference, flat.shape[1])
        stats = tree["sample_stats"]

        def total(name, stats=stats, federated=federated):
            return float(stats[name].sum()) if federated else np.nan

        when = settled(draws[0], mean, sd, TOLERANCE)
        needed = np.nan
        if federated and when is not None:
            needed = float(stats["num_rounds"].values[0, :when].sum())
        yield {
            "target": label,
            "kernel": kernel,
            "K": options.get("num_local_steps", np.nan),
            "share": options.get("participation", np.nan),
            "ESS": ess,
            "mean error": mean_error,
            "its floor": mean_floor,
            "sd error": sd_error,
            "sd floor": sd_floor,
            "rounds / ESS": total("num_rounds") / ess,
            "messages / ESS": total("num_messages") / ess,
            "kB / ESS": total("num_bytes") / ess / 1e3,
            "rounds needed": needed,
            "warns of": warned(seen),
        }
