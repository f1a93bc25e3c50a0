"""What a run's draws are worth, and what speaks against them.

A run is valid when nothing speaks against it. What can: chains that disagree (R-hat),
divergences, a score that does not fit the draws (kernel Stein discrepancy, score
moments), chains that weigh the modes differently, and modes that another valid run
holds and this one never visited. The thresholds are the constants below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from nutfree.diagnostics.discrepancies import (
    kernel_stein_discrepancy,
    score_moments,
    scores,
)
from nutfree.diagnostics.draws import latent_posterior, unconstrained_draws
from nutfree.diagnostics.evidence import pareto_k
from nutfree.diagnostics.modes import find_modes, mode_weights
from nutfree.diagnostics.subsample import MANY_ROWS, minibatch_scores, surrogate
from nutfree.target import Target

MAX_R_HAT = 1.05
MAX_DIVERGENT = 0.01
MAX_KSD_RATIO = 1.5
#: Standard errors; exact draws are beyond it once in 1e4 posteriors of 90 dimensions.
MAX_SCORE_Z = 5.0
MAX_MODE_RATIO = 1.25
#: Importance ratios with a heavier tail have no mean: there are regions of the
#: posterior that the proposal never enters. Above the other, their mean converges too
#: slowly to be trusted, which an evidence made of them inherits, and a chain that is
#: right by its other moves does not (Vehtari et al. 2024, arXiv 1507.02646).
MAX_PARETO_K = 1.0
MAX_EVIDENCE_PARETO_K = 0.7
MIN_ESS = 50.0
#: A predicted error of variances that is worth a word.
MAX_INFLATION = 0.1
#: A mode counts as missed where another run holds at least this share in it.
MISSED_WEIGHT = 0.05


@dataclass
class Evidence:
    """Figures of one run, and the sentences that speak against it.

    Problems set a run aside; caveats are of figures that are not its draws.
    """

    figures: dict[str, float]
    problems: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mode_shares: NDArray = field(default_factory=lambda: np.ones(1))
    """Share of the run's draws in each mode found by all runs together."""
    missed: dict[str, NDArray] = field(default_factory=dict)
    """By other run: which of its modes this one misses, or all but misses."""

    @property
    def valid(self) -> bool:
        return not self.problems


def _effective(posterior: xr.Dataset) -> dict[str, float]:
    import arviz_stats

    def worst(dataset: xr.Dataset, pick: Any) -> float:
        values = np.concatenate([v.values.ravel() for v in dataset.values()])
        values = values[~np.isnan(values)]
        return float(pick(values)) if values.size else float("nan")

    with np.errstate(all="ignore"):
        return {
            "ess_bulk": worst(arviz_stats.ess(posterior, method="bulk"), np.min),
            "ess_tail": worst(arviz_stats.ess(posterior, method="tail"), np.min),
            "r_hat": worst(arviz_stats.rhat(posterior), np.max),
        }


def _figures(tree: xr.DataTree, target: Target) -> dict[str, float]:
    nan = float("nan")
    stats = tree["sample_stats"]
    attrs = {**tree["posterior"].attrs, **stats.attrs}
    figures = _effective(latent_posterior(tree, target))
    figures["divergences"] = (
        float(stats["diverging"].sum()) if "diverging" in stats else nan
    )
    figures["grad_evals"] = float(attrs.get("num_grad_evals", nan))
    figures["density_evals"] = float(attrs.get("num_density_evals", nan))
    figures["seconds"] = float(attrs.get("seconds", nan))
    for per, cost in (("grad", "grad_evals"), ("second", "seconds")):
        spent = figures[cost]
        figures[f"ess_per_{per}"] = figures["ess_bulk"] / spent if spent > 0 else nan
    figures["predicted_inflation"] = figures["ess_exact"] = nan
    if "predicted_inflation" in stats:
        inflation = float(stats["predicted_inflation"].max())
        figures["predicted_inflation"] = inflation
        figures["ess_exact"] = exact_draws(figures["ess_bulk"], inflation)
    figures["pareto_k"] = nan
    if "proposal_log_importance" in stats:
        figures["pareto_k"] = pareto_k(np.asarray(stats["proposal_log_importance"]))
    figures["log_evidence"] = float(attrs.get("log_evidence", nan))
    figures["log_evidence_se"] = float(attrs.get("log_evidence_se", nan))
    return figures


def exact_draws(ess: float, inflation: float) -> float:
    """How many exact draws give a mean and a sd that are as accurate.

    Variances too large by a fraction v leave the mean of n effective draws the error
    of n/(1 + v); that of the sd has a bias b = (1 + v)^(1/2) - 1 besides, so that in
    mean square it is that of 1/(2 b^2 + (1 + v)/n) exact draws, which is the smaller
    number.

    Args:
        ess: effective number of draws n, which knows nothing of the bias.
        inflation: fraction v, negative for variances that are too small.

    Example:
        >>> exact_draws(1000.0, 0.0), round(exact_draws(1000.0, 0.1))
        (1000.0, 171)
    """
    if not inflation > -1:
        return float("nan")
    bias = np.sqrt(1 + inflation) - 1
    return float(1 / (2 * bias**2 + (1 + inflation) / ess))


def _many_rows(target: Target) -> bool:
    """Whether a check of each draw against all rows is worth avoiding."""
    rows = target.minibatch
    return rows is not None and rows.num_data >= MANY_ROWS and rows.in_order is None


def _stein(tree: xr.DataTree, target: Target, ess: float) -> dict[str, float]:
    """What the score says of as many draws as the run is worth."""
    chains = tree["posterior"].sizes["chain"]
    worth = int(np.clip(np.nan_to_num(ess, nan=MIN_ESS), MIN_ESS, 1000))
    positions, vectors = unconstrained_draws(tree, target, -(-worth // chains))
    vectors = vectors.reshape(-1, vectors.shape[-1])
    many = _many_rows(target)
    if many:
        s = minibatch_scores(vectors, target)
    else:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), positions)
        s = scores(flat, target.logdensity_fn)
    found = kernel_stein_discrepancy(vectors, s, noisy=many)
    moments = score_moments(vectors, s)
    return {"ksd": found.ksd, "ksd_floor": found.floor, "score_z": moments.worst}


def judge(
    trees: Mapping[str, xr.DataTree], target: Target, *, max_draws: int = 500
) -> dict[str, Evidence]:
    """Weigh the runs of several kernels on one posterior.

    Args:
        trees: runs by label.
        target: the posterior, with ``position`` set.
        max_draws: draws a chain that enter the search for modes.

    Returns:
        Evidence by label.
    """
    found = {name: Evidence(_figures(tree, target)) for name, tree in trees.items()}
    for name, tree in trees.items():
        figures = found[name].figures
        figures.update(dict.fromkeys(("ksd", "ksd_floor", "score_z"), float("nan")))
        if has_gradient(target):
            figures.update(_stein(tree, target, figures["ess_bulk"]))
    _weigh_modes(trees, target, found, max_draws)
    for name, tree in trees.items():
        posterior = tree["posterior"]
        size = posterior.sizes["chain"] * posterior.sizes["draw"]
        found[name].problems = _problems(found[name].figures, size)
        inflation = found[name].figures["predicted_inflation"]
        if abs(inflation) > MAX_INFLATION:
            word = "large" if inflation > 0 else "small"
            found[name].caveats.append(
                f"its step is predicted to make variances too {word} by "
                f"{abs(inflation):.0%}"
            )
        k = found[name].figures["pareto_k"]
        if MAX_EVIDENCE_PARETO_K < k <= MAX_PARETO_K:
            found[name].caveats.append(
                f"its evidence may be off by more than the standard error (Pareto k "
                f"{k:.2f} of the global proposal)"
            )
    sound = [name for name, evidence in found.items() if evidence.valid]
    for evidence in found.values():
        for other, lost in evidence.missed.items():
            if other not in sound:
                # a stuck chain holds any share of a mode: it counts if it is news
                lost = lost & (evidence.mode_shares == 0)
            if lost.any():
                count, share = int(lost.sum()), found[other].mode_shares[lost].sum()
                modes = "a mode" if count == 1 else f"{count} modes"
                said = f"never visited {modes} holding {share:.0%} of the draws of"
                whose = evidence.problems if other in sound else evidence.notes
                whose.append(f"{said} {other}")
    return found


def has_gradient(target: Target) -> bool:
    """False for a log density through a callback that JAX cannot differentiate."""
    try:
        jax.eval_shape(jax.grad(target.logdensity_fn), target.position)
    except ValueError:
        return False
    return True


def _problems(figures: Mapping[str, float], size: int) -> list[str]:
    """What speaks against a run, worst first."""
    problems = []
    if figures["r_hat"] > MAX_R_HAT:
        problems.append(f"chains disagree (R-hat {figures['r_hat']:.2f})")
    if figures["mode_tv"] > MAX_MODE_RATIO * figures["mode_tv_floor"]:
        problems.append(
            f"chains weigh the modes differently (TV {figures['mode_tv']:.2f}, "
            f"floor {figures['mode_tv_floor']:.2f})"
        )
    if figures["ksd"] > MAX_KSD_RATIO * figures["ksd_floor"]:
        ratio = figures["ksd"] / figures["ksd_floor"]
        problems.append(f"draws do not fit the score (KSD {ratio:.1f} × its floor)")
    if figures["score_z"] > MAX_SCORE_Z:
        problems.append(
            "a location or scale does not fit the score "
            f"({figures['score_z']:.1f} standard errors)"
        )
    if figures["pareto_k"] > MAX_PARETO_K:
        problems.append(
            "the global proposal does not cover the posterior (Pareto k "
            f"{figures['pareto_k']:.2f}): a mode may be missing, or a tail too heavy"
        )
    if figures["divergences"] > MAX_DIVERGENT * size:
        problems.append(f"{figures['divergences'] / size:.0%} of transitions diverge")
    if not figures["ess_bulk"] >= MIN_ESS:
        problems.append(f"too few draws (effective sample {figures['ess_bulk']:.0f})")
    return problems


def _weigh_modes(trees, target, found: dict[str, Evidence], max_draws: int) -> None:
    """Fill in mode agreement within each run, and mode shares across runs."""
    found_draws = {
        n: unconstrained_draws(t, target, max_draws) for n, t in trees.items()
    }
    draws = {name: vectors for name, (_, vectors) in found_draws.items()}
    density = _energies(target, draws)
    energies = {
        name: density(positions) for name, (positions, _) in found_draws.items()
    }
    pooled = np.concatenate([x.reshape(-1, x.shape[-1]) for x in draws.values()])
    energy = np.concatenate(list(energies.values()))
    plausible = np.isfinite(pooled).all(1) & np.isfinite(energy)
    if plausible.any():
        # strays of a run gone astray are no mode; they keep a label of their own
        lowest = np.median(energy[plausible]) - 100.0 - 10.0 * pooled.shape[1]
        plausible &= energy > lowest
    labels = np.full(len(pooled), -1)
    labels[plausible] = find_modes(pooled[plausible])
    labels[~plausible] = labels.max() + 1
    num_modes = int(labels[plausible].max()) + 1 if plausible.any() else 0
    by_run, start = {}, 0
    for name, x in draws.items():
        size = x.shape[0] * x.shape[1]
        own = labels[start : start + size]
        start += size
        by_run[name] = own
        agreement = mode_weights(x, labels=own)
        found[name].figures["mode_tv"] = agreement.tv
        found[name].figures["mode_tv_floor"] = agreement.floor
        shares = np.bincount(own, minlength=num_modes + 1)[:num_modes] / size
        found[name].mode_shares = shares
    typical = np.array([np.median(energy[labels == m]) for m in range(num_modes)])
    for name, evidence in found.items():
        usual = energies[name][np.isfinite(energies[name])]
        least = np.quantile(usual, 0.01) - 2.0 if usual.size else np.inf
        evidence.missed = _missed(name, found, typical >= least)


def _energies(target: Target, draws: Mapping[str, NDArray]) -> Any:
    """`positions -> log densities`, of leading axes (chain, draw), as one axis; where
    there are many rows, those of a subsample, centred on a run with little spread."""
    logdensity = target.logdensity_fn
    if _many_rows(target):
        flat = [x.reshape(-1, x.shape[-1]) for x in draws.values()]
        flat = [x[np.isfinite(x).all(1)] for x in flat]
        flat = [x for x in flat if len(x)]
        if flat:
            tightest = min(flat, key=lambda x: float(np.log(x.std(0) + 1e-30).sum()))
            density = surrogate(tightest, target)
            logdensity = lambda z: density(ravel_pytree(z)[0])  # noqa: E731
    run = jax.jit(lambda z: jax.lax.map(logdensity, z, batch_size=64))

    def energies(positions) -> NDArray:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), positions)
        return np.asarray(run(flat), dtype=np.float64)

    return energies


def _missed(
    name: str, found: Mapping[str, Evidence], competitive: NDArray
) -> dict[str, NDArray]:
    """Modes as dense as a run's own draws that others hold and it never visited."""
    mine, missed = found[name].mode_shares, {}
    for other, evidence in found.items():
        theirs = evidence.mode_shares
        lost = (theirs >= MISSED_WEIGHT) & (mine < theirs / 20) & competitive
        if other != name and lost.any():
            missed[other] = lost
    return missed
