"""The checks of one run by itself."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nutfree.diagnostics.convergence import (
    DIVERGENCES,
    ESS,
    FINITE,
    R_HAT,
    SURROGATES,
    TAIL_ESS,
    Convergence,
)
from nutfree.diagnostics.discrepancies import (
    ScoreMoments,
    effective_sizes,
    kernel_stein_discrepancy,
    score_moments,
)
from nutfree.diagnostics.evidence import pareto_k
from nutfree.diagnostics.limits import (
    FAR_FROM_MODES,
    GOOD_ESS_PER_CHAIN,
    GOOD_R_HAT,
    MAX_DIVERGENT,
    MAX_EVIDENCE_PARETO_K,
    MAX_INFLATION,
    MAX_KSD_RATIO,
    MAX_MISFIT,
    MAX_PARETO_K,
    MAX_SHARE_Z,
    MAX_STEIN,
    MIN_ESS,
    MIN_SHARE_ERROR,
    MISSED_PART,
    MISSED_WEIGHT,
    SCORE_LEVEL,
)
from nutfree.diagnostics.masses import Masses
from nutfree.diagnostics.modes import thin
from nutfree.report.runs import Posterior, Run
from nutfree.report.shares import Shares
from nutfree.report.verdict import SEARCH, SHARE, Check, Verdict

NAN = float("nan")


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
        return NAN
    bias = np.sqrt(1 + inflation) - 1
    return float(1 / (2 * bias**2 + (1 + inflation) / ess))


def judge_alone(
    run: Run, posterior: Posterior, shares: Shares, num_runs: int
) -> Verdict:
    figures, checks = _figures(run), _convergence_checks(run)
    broken = any(check.result == "problem" for check in checks[:1])
    found, scored, moments = _score_checks(run, posterior, broken)
    figures |= found
    figures |= {"mode_tv": shares.tv, "mode_tv_floor": shares.floor}
    checks += scored
    checks += _mode_checks(shares, run.num_chains)
    checks += _search_checks(run, posterior, broken)
    checks += _proposal_checks(figures)
    checks += _evaluation_checks(run)
    if num_runs == 1:
        said = "its shares of the modes against another run's"
        checks.append(Check("another run", NAN, NAN, "not checked", said))
    return Verdict(
        checks=tuple(checks),
        figures=figures,
        power=_power(moments, shares),
        mode_shares=shares.of_modes,
    )


def _figures(run: Run) -> dict[str, float]:
    converged = run.converged
    figures = {
        "ess_bulk": converged.ess_bulk,
        "ess_tail": converged.ess_tail,
        "r_hat": converged.r_hat,
        "divergences": NAN,
        "grad_evals": run.attr("num_grad_evals"),
        "density_evals": run.attr("num_density_evals"),
        "setup_seconds": run.attr("setup_seconds"),
        "warmup_seconds": run.attr("warmup_seconds"),
        "seconds": run.attr("seconds"),
        "log_evidence": run.attr("log_evidence"),
        "log_evidence_se": run.attr("log_evidence_se"),
    }
    if "diverging" in run.stats:
        figures["divergences"] = float(run.stats["diverging"].sum())
    sampling = run.attr("sampling_seconds")
    figures["sampling_seconds"] = sampling = (
        sampling if np.isfinite(sampling) else figures["seconds"]
    )
    ess = figures["ess_bulk"]
    for per, spent in (("grad", figures["grad_evals"]), ("second", sampling)):
        figures[f"ess_per_{per}"] = ess / spent if spent > 0 else NAN
    figures["seconds_to_400"] = figures["seconds"] - sampling + 400 * sampling / ess
    figures["predicted_inflation"] = figures["ess_exact"] = figures["pareto_k"] = NAN
    if "predicted_inflation" in run.stats:
        inflation = float(run.stats["predicted_inflation"].max())
        figures["predicted_inflation"] = inflation
        figures["ess_exact"] = exact_draws(ess, inflation)
    for sent in ("num_rounds", "num_messages", "num_bytes"):
        figures[sent] = float(run.stats[sent].sum()) if sent in run.stats else NAN
    if "proposal_log_importance" in run.stats:
        ratios = np.asarray(run.stats["proposal_log_importance"])
        figures["pareto_k"] = pareto_k(ratios)
    return figures


def _convergence_checks(run: Run) -> list[Check]:
    c: Convergence = run.converged
    count = float(sum(c.not_finite.values()))
    problems = c.problems
    doubts = c.caveats(run.num_chains)
    rows = [
        (FINITE, count, 0.0, ""),
        *([] if np.isnan(c.misfit) else [(SURROGATES, c.misfit, MAX_MISFIT, "")]),
        (R_HAT, c.r_hat, GOOD_R_HAT, _why_no_r_hat(run)),
        (ESS, c.ess_bulk, GOOD_ESS_PER_CHAIN * run.num_chains, "effective sample"),
        (DIVERGENCES, c.divergent, MAX_DIVERGENT, "divergences (none recorded)"),
    ]
    checks = []
    for name, value, limit, unmade in rows:
        if name in problems:
            checks.append(Check(name, value, limit, "problem", problems[name]))
        elif np.isnan(value):
            checks.append(Check(name, value, limit, "not checked", unmade))
        else:
            checks.append(Check(name, value, limit, "fine"))
    result = "caveat" if doubts and not problems else "fine"
    tail = GOOD_ESS_PER_CHAIN * run.num_chains
    said = doubts[0] if result == "caveat" else ""
    checks.append(Check(TAIL_ESS, c.ess_tail, tail, result, said))
    return checks


def _why_no_r_hat(run: Run) -> str:
    if run.num_chains < 2:
        return "R-hat (one chain has none to agree with; run num_chains=4)"
    return "R-hat (it is not defined for these draws)"


def _score_checks(
    run: Run, posterior: Posterior, broken: bool
) -> tuple[dict[str, float], list[Check], ScoreMoments | None]:
    """What the score says of the draws, where Stein's identity holds."""
    figures = dict.fromkeys(("ksd", "ksd_floor", "score_z", "score_z_limit"), NAN)
    name, why = "score", ""
    if broken:
        why = "the score (draws are not finite)"
    elif not posterior.has_gradient:
        why = "the score (the density has no gradient)"
    else:
        smooth = posterior.smoothness(run.vectors)
        if smooth is not None and smooth.jumps:
            jump = (
                f"by up to {smooth.jump:.2g} nats" if smooth.jump < 1e3 else "to zero"
            )
            why = f"the score (the log density jumps, {jump}, and no identity holds)"
    if why:
        return figures, [Check(name, NAN, NAN, "not checked", why)], None
    ess = np.nan_to_num(run.converged.ess_bulk, nan=MIN_ESS)
    chains, kept = run.vectors.shape[:2]
    worth = int(np.clip(ess, MIN_ESS, MAX_STEIN))
    rows = thin(np.arange(kept), -(-worth // chains))
    x, s = (a[:, rows].reshape(-1, posterior.dim) for a in (run.vectors, run.scores))
    stein = kernel_stein_discrepancy(x, s, noisy=posterior.many_rows)
    moments = score_moments(run.vectors, run.scores)
    limit = moments.limit(SCORE_LEVEL)
    figures = {
        "ksd": stein.ksd,
        "ksd_floor": stein.floor,
        "score_z": moments.worst,
        "score_z_limit": limit,
    }
    lost = float(np.mean(~np.isfinite(run.scores).all(-1)))
    checks = [
        _limited(
            "Stein discrepancy",
            stein.ksd,
            MAX_KSD_RATIO * stein.floor,
            f"draws do not fit the score (KSD {stein.ratio:.1f} × its floor)",
            "the Stein discrepancy",
        ),
        _limited(
            "score moments",
            moments.worst,
            limit,
            f"a location or scale does not fit the score ({moments.worst:.1f} standard "
            f"errors; exact draws stay below {limit:.1f})",
            "locations and scales against the score",
        ),
    ]
    if lost > 0:
        said = f"at {lost:.1%} of the draws the gradient is not finite"
        checks.append(Check("gradients", lost, 0.0, "caveat", said))
    return figures, checks, moments


def _limited(name: str, value: float, limit: float, said: str, unmade: str) -> Check:
    """A check of a value against its upper limit."""
    if np.isnan(value) or np.isnan(limit):
        return Check(name, value, limit, "not checked", unmade)
    if value > limit:
        return Check(name, value, limit, "problem", said)
    return Check(name, value, limit, "fine")


def _mode_checks(shares: Shares, num_chains: int) -> list[Check]:
    name, limit = "modes between chains", shares.limit
    if num_chains < 2:
        return [Check(name, NAN, NAN, "not checked", "modes between chains (one)")]
    said = (
        f"chains weigh the modes differently (by {shares.tv:.2f}, exact chains stay "
        f"below {shares.limit:.2f})"
    )
    return [_limited(name, shares.tv, limit, said, "modes between chains")]


def _proposal_checks(figures: Mapping[str, float]) -> list[Check]:
    checks = []
    k, inflation = figures["pareto_k"], figures["predicted_inflation"]
    if k > MAX_PARETO_K:
        said = (
            f"the global proposal does not cover the posterior (Pareto k {k:.2f}): a "
            "mode may be missing, or a tail too heavy"
        )
        checks.append(Check("Pareto k", k, MAX_PARETO_K, "problem", said))
    elif k > MAX_EVIDENCE_PARETO_K:
        said = (
            "its evidence may be off by more than the standard error (Pareto k "
            f"{k:.2f} of the global proposal)"
        )
        checks.append(Check("Pareto k", k, MAX_EVIDENCE_PARETO_K, "caveat", said))
    if abs(inflation) > MAX_INFLATION:
        word = "large" if inflation > 0 else "small"
        said = (
            f"its step is predicted to make variances too {word} by "
            f"{abs(inflation):.0%}"
        )
        row = ("predicted inflation", inflation, MAX_INFLATION, "caveat", said)
        checks.append(Check(*row))
    return checks


def _evaluation_checks(run: Run) -> list[Check]:
    """Of evaluations that were not finite, where the kernel counts them."""
    if "num_not_finite" not in run.stats:
        return []
    count = float(run.stats["num_not_finite"].sum())
    made = float(run.stats["num_density_evals"].sum())
    if not count:
        return [Check("evaluations", 0.0, 0.0, "fine")]
    said = (
        f"{count:,.0f} evaluations ({count / made:.1%}) were not finite, and the draws "
        "are of the posterior without the places where that is so"
    )
    return [Check("evaluations", count, 0.0, "caveat", said)]


def _power(moments: ScoreMoments | None, shares: Shares) -> str:
    """What an error would have had to be to be seen nine times in ten."""
    clauses, blind = [], ""
    if moments is not None:
        mean, sd = moments.power(SCORE_LEVEL)
        if mean < 1 and sd < 1:
            clauses.append(f"{mean:.2g} sd in a mean, {sd:.0%} in a sd")
        else:
            # a score with a heavy tail, as near a singularity of the density
            blind = "; its scores vary too much to show one of a mean or a sd"
    if len(shares.of_modes) > 1:
        clauses.append(f"{shares.detectable:.2g} in a mode's share between chains")
    if not clauses:
        return ""
    return f"an error of {' or '.join(clauses)} would have shown{blind}"


# modes that a search finds


def _search_checks(run: Run, posterior: Posterior, broken: bool) -> list[Check]:
    """Hold the draws against the modes that a search finds without them."""
    why = "draws are not finite" if broken else posterior.why_no_search
    found = None if why else posterior.masses
    if found is None:
        why = why or "a search found none that it is sure of"
    elif len(found.share) > 1 and not _describes(found, run):
        why = "the draws are not where a search finds modes"
    if found is None or why:
        return [Check(SEARCH, NAN, NAN, "not checked", f"separate modes ({why})")]
    chains = run.vectors[:, np.isfinite(run.vectors).all((0, 2))]
    labels = found.labels(chains.reshape(-1, posterior.dim)).reshape(chains.shape[:2])
    own = np.stack([labels == k for k in range(len(found.share))], axis=-1)
    share = own.mean((0, 1))
    heavy = found.share - 3 * np.nan_to_num(found.error) > 0.5 * MISSED_WEIGHT
    heavy &= found.share >= MISSED_WEIGHT
    lost = heavy & (share < MISSED_PART * found.share)
    if not found.trusted:
        lost &= share == 0
    if lost.any():
        count, mass = int(lost.sum()), found.share[lost].sum()
        modes = "a mode" if count == 1 else f"{count} modes"
        how = "with an estimated" if found.trusted else "by Laplace's approximation"
        said = (
            f"never visited {modes} that a search finds, {how} {mass:.0%} of the mass"
        )
        return [Check(SEARCH, float(mass), MISSED_WEIGHT, "problem", said)]
    checks = [Check(SEARCH, 0.0, MISSED_WEIGHT, "fine")]
    if found.trusted and len(found.share) > 1:
        checks.append(_share_check(found, own, share))
    return checks


def _share_check(found: Masses, own: NDArray, share: NDArray) -> Check:
    """Compare the run's shares of the modes with those of importance sampling."""
    size = effective_sizes(own.astype(np.float64))
    error = np.sqrt(found.error**2 + found.share * (1 - found.share) / size)
    off = np.abs(share - found.share)
    z = off / np.maximum(error, 1e-12)
    k = int(np.argmax(np.where(off > MIN_SHARE_ERROR, z, 0.0)))
    if not (z[k] > MAX_SHARE_Z and off[k] > MIN_SHARE_ERROR):
        return Check(SHARE, float(off.max()), MIN_SHARE_ERROR, "fine")
    said = (
        f"holds {share[k]:.2f} of its draws in a mode with {found.share[k]:.2f} of the "
        f"mass (importance sampling, standard error {found.error[k]:.2g})"
    )
    return Check(SHARE, float(off[k]), MIN_SHARE_ERROR, "problem", said)


def _describes(found: Masses, run: Run) -> bool:
    """Whether the approximations at the modes are where the draws are."""
    x = thin(run.vectors.reshape(-1, run.vectors.shape[-1]), 1000)
    x = x[np.isfinite(x).all(1)]
    nearest = found.distances(x).min(1) / x.shape[1]
    return bool(np.median(nearest) < FAR_FROM_MODES)
