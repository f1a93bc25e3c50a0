"""Multimodal: weights of the modes, shape, evidence, and gradients, at equal gradients.

Every sampler gets the same number of gradients over four chains, pilots and warm-up
included, and makes of it as many draws as it can; at most 32,000 of them, evenly
thinned, are kept, and 8,000 of those judged. `tv / floor` and `W2 / floor` up to 1.2
are as good as exact draws of that number: a floor is the 95 % quantile over exact
samples. There are as many effective draws as the bulk ESS, of those kept, over all
chains, of the worst mode says, but no more than exact draws would be whose total
variation is that far off in one case of twenty:
particles of one run of SMC share an error that no autocorrelation shows. A mode that
should have ten draws and has none makes them zero. The evidence is of those samplers
that estimate one and those targets that have a known one.
"""

from itertools import combinations
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

import nutfree as nf
from benchmarks.common import gradients, sample
from benchmarks.modes import (
    Multimodal,
    eight_gaussians,
    funnel,
    galaxies,
    many_well,
    mixture,
    rings,
    student_mixture,
)
from benchmarks.tempering import ladder, parallel_tempering
from nutfree.diagnostics.modes import thin
from nutfree.report import entropic_w2, total_variation

OURS = ("multiscale", "multalmc", "multcdiff", "clc")
PEERS = ("blackjax.tempered_smc", "parallel tempering", "nuts")
NUM_CHAINS, MAX_DRAWS, JUDGED = 4, 8000, 8000


class Run(NamedTuple):
    """Draws by site `(chains, draws, ...)`, gradients, and log evidence or NaN."""

    draws: dict[str, np.ndarray]
    gradients: float
    log_evidence: float


def targets(quick: bool) -> dict[str, Multimodal]:
    if quick:
        return {
            "40 Gaussians, d = 10": mixture(10),
            "40 unequal Gaussians, d = 10": mixture(10, unequal=True),
            "galaxies, K = 3": galaxies(3),
        }
    found = {}
    for seed in range(3):
        for dim in (2, 10, 50):
            of = f"d = {dim}, seed {seed}"
            found[f"40 Gaussians, {of}"] = mixture(dim, seed=seed)
            found[f"40 unequal Gaussians, {of}"] = mixture(dim, unequal=True, seed=seed)
    return found | {
        "8 Gaussians": eight_gaussians(),
        "rings": rings(),
        "funnel, d = 10": funnel(),
        "many wells, d = 32": many_well(),
        "Student mixture, d = 10": student_mixture(),
        "galaxies, K = 3": galaxies(3),
        "galaxies, K = 4": galaxies(4),
    }


def run_kernel(name: str, target: Multimodal, budget: float, first: int) -> Run:
    """A run of `first` draws tells the cost of one; the second has the budget."""

    def attempt(num_draws: int):
        thinning = -(-num_draws // MAX_DRAWS)
        settings: dict[str, Any] = {"num_samples": num_draws, "thinning": thinning}
        if "smc" in name:  # its particles are its draws
            settings = {"num_samples": num_draws, "options": {}}
            settings["options"]["num_particles"] = num_draws
        return sample(
            name,
            target.model,
            target.data,
            num_warmup=500,
            num_chains=NUM_CHAINS,
            **settings,
        )

    tree = attempt(first)
    before = gradients(tree) - gradients(tree, warmup=False)
    if "smc" in name:
        before = 0.0
    each = (gradients(tree) - before) / (NUM_CHAINS * first)
    affordable = int((budget - before) / (NUM_CHAINS * each))
    if affordable > 1.5 * first:
        tree = attempt(affordable)
    posterior = tree["posterior"]
    draws = {target.site: posterior[target.site].values}
    evidence = float(posterior.attrs.get("log_evidence", np.nan))
    return Run(draws, gradients(tree), evidence)


def run_tempering(target: Multimodal, budget: float) -> Run:
    """A fifth of the budget is warm-up."""
    posterior = nf.model_target(target.model, kwargs=target.data)
    dim = sum(np.size(leaf) for leaf in jax.tree.leaves(posterior.position))
    levels = ladder(target.spread, dim)
    steps = int(budget / (NUM_CHAINS * 6 * (len(levels) - 1)))
    num_samples = 4 * steps // 5
    thinning = -(-num_samples // MAX_DRAWS)
    found = parallel_tempering(
        posterior,
        levels,
        num_warmup=steps // 5,
        num_samples=num_samples // thinning,
        thinning=thinning,
        num_chains=NUM_CHAINS,
    )
    return Run({target.site: found.draws[target.site]}, found.gradients, np.nan)


def effective_draws(parts: np.ndarray, weights: np.ndarray) -> float:
    """Bulk ESS of the worst part, from memberships `(chains, draws, parts)`."""
    from arviz_stats.base import array_stats

    count = parts.shape[0] * parts.shape[1]
    found = []
    for k, weight in enumerate(weights / weights.sum()):
        if count * weight < 10:
            continue
        if np.ptp(parts[..., k]) == 0:
            return 0.0
        found.append(
            array_stats.ess(
                parts[..., k], chain_axis=0, draw_axis=1, method="mean"
            ).item()
        )
    return float(np.min(found))


class Exact(NamedTuple):
    """An exact sample, and the floor of the transport distance from it."""

    draws: np.ndarray
    w2_floor: float


def exact_sample(target: Multimodal, size: int) -> Exact | None:
    """None where a target has none."""
    if target.exact is None:
        return None
    rng = np.random.default_rng(0)
    samples = [target.exact(rng, size)[target.site] for _ in range(5)]
    between = [entropic_w2(a, b) for a, b in combinations(samples, 2)]
    return Exact(samples[0], float(np.quantile(between, 0.95)))


def judge(target: Multimodal, run: Run, exact: Exact | None) -> dict[str, float]:
    """Figures of a run."""
    flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in run.draws.items()}
    shape = next(iter(run.draws.values())).shape[:2]
    parts = target.assign(flat)

    def distance(parts):
        share, floor = parts.mean(0), target.tv_floor(len(parts))
        return share, total_variation(share, target.weights), floor

    _, apart, floor = distance(parts)
    ess = effective_draws(parts.reshape(*shape, -1), target.weights)
    ess = min(ess, len(parts) * (floor / max(apart, 1e-9)) ** 2)
    judged = thin(parts, JUDGED)
    count = len(judged)
    share, tv, floor = distance(judged)
    figures = {
        "tv": tv,
        "tv / floor": tv / floor,
        "missed": int((share < target.weights / 20).sum()),
        "W2 / floor": np.nan,
        "log Z error": np.nan,
        "gradients": run.gradients,
        "per draw": run.gradients / count,
        "per effective draw": run.gradients / ess if ess else np.inf,
    }
    if exact is not None:
        draws = thin(flat[target.site], len(exact.draws))
        figures["W2 / floor"] = entropic_w2(draws, exact.draws) / exact.w2_floor
    if target.log_evidence is not None:
        figures["log Z error"] = run.log_evidence - target.log_evidence
    return figures


def run(quick: bool, only: str = "") -> pd.DataFrame:
    budget = 1e6 if quick else 4e6
    names = ("multiscale", "multalmc", *PEERS) if quick else (*OURS, *PEERS)
    rows = []
    for label, target in targets(quick).items():
        if only not in label:
            continue
        exact = exact_sample(target, 500 if quick else 1000)
        for name in names:
            if name == "parallel tempering":
                found = run_tempering(target, budget)
            else:
                found = run_kernel(name, target, budget, first=200)
            figures = judge(target, found, exact)
            rows.append({"target": label, "sampler": name, **figures})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    peers = table[table["sampler"].isin(PEERS)]
    best = peers.groupby("target")["per effective draw"].min()
    ratio = table["per effective draw"] / table["target"].map(best)
    return table.assign(**{"/ best peer": ratio})
