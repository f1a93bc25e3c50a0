"""The evidence of a run whose kernel also draws from a known, normalised proposal q.

A kernel that does says so in its `KernelSpec.collects`: the fields `log_importance`,
log pi - log q at each draw, and `proposal_log_importance`, the same at independent
draws of q. No kernel is known here by name.

Bridge sampling, Meng and Wong, Statistica Sinica 6, 1996: with l = pi / q at n draws of
pi and m of q, the optimal estimate is the fixed point of

    Z = [1/m sum_q l / (a l + b Z)] / [1/n sum_pi 1 / (a l + b Z)],
    a = n / (n + m), b = 1 - a,

where n is the effective size of the chain. Its relative variance is that of Fruhwirth-
Schnatter, Econometrics Journal 7, 2004.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Bridge", "bridge", "pareto_k", "pooled_bridge"]

MAX_ITERATIONS = 1000


class Bridge(NamedTuple):
    """log Z and its standard error; NaN where no proposal met the posterior."""

    log_evidence: float
    log_evidence_se: float


def _ess(x: NDArray) -> float:
    from arviz_stats.base import array_stats

    if len(x) < 8 or np.ptp(x) == 0:
        return float(len(x))
    return float(np.clip(array_stats.ess(x[None], method="mean"), 1.0, len(x)))


def bridge(log_importance: ArrayLike, proposal_log_importance: ArrayLike) -> Bridge:
    """Log evidence from one chain and the draws of its proposal.

    Args:
        log_importance: log pi - log q at the draws of the chain, in order, `(n,)`.
        proposal_log_importance: the same at independent draws of q, any shape; -inf
            where pi is zero, NaN where no draw was made.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.normal(size=1000), 2 * rng.normal(size=1000)
        >>> ratio = lambda u: np.log(3 * 2) - 0.5 * u**2 + 0.5 * (u / 2) ** 2
        >>> found = bridge(ratio(x), ratio(y))
        >>> bool(abs(found.log_evidence - np.log(3)) < 3 * found.log_evidence_se)
        True
    """
    at_draws = np.asarray(log_importance, float).ravel()
    at_proposals = np.asarray(proposal_log_importance, float).ravel()
    at_draws = at_draws[np.isfinite(at_draws)]
    at_proposals = at_proposals[~np.isnan(at_proposals)]
    if not len(at_draws) or not np.isfinite(at_proposals).any():
        return Bridge(np.nan, np.nan)
    middle = float(np.median(at_draws))
    at_draws, at_proposals = at_draws - middle, at_proposals - middle
    effective = _ess(at_draws)
    size = len(at_proposals)
    log_a = np.log(effective / (effective + size))
    log_b = np.log(size / (effective + size))

    def terms(log_z):
        """Of the two means, on a log scale."""
        above = at_proposals - np.logaddexp(log_a + at_proposals, log_b + log_z)
        return above, -np.logaddexp(log_a + at_draws, log_b + log_z)

    def log_mean(x):
        return np.logaddexp.reduce(x) - np.log(len(x))

    log_z = 0.0
    for _ in range(MAX_ITERATIONS):
        above, below = terms(log_z)
        new = log_mean(above) - log_mean(below)
        done = abs(new - log_z) < 1e-10
        log_z = new
        if done:
            break
    above, below = terms(log_z)
    f, g = np.exp(above - log_mean(above)), np.exp(below - log_mean(below))
    # its own autocorrelation is that of the mean which enters
    variance = f.var() / size + g.var() / _ess(g)
    return Bridge(float(log_z + middle), float(np.sqrt(variance)))


def pooled_bridge(log_importance: NDArray, proposal_log_importance: NDArray) -> Bridge:
    """Of several chains, each with a proposal of its own.

    The mean of the chains' evidences. Its standard error is the larger of what the
    chains report and what they differ by, so that a chain which has missed a mode
    shows.

    Args:
        log_importance: `(chains, draws)`.
        proposal_log_importance: `(chains, draws, m)`.
    """
    found = [bridge(*pair) for pair in zip(log_importance, proposal_log_importance)]
    log_z = np.array([b.log_evidence for b in found])
    se = np.array([b.log_evidence_se for b in found])
    if not np.isfinite(log_z).all():
        return Bridge(np.nan, np.nan)
    z = np.exp(log_z - log_z.max())
    mean = z.mean()
    within = np.sqrt(((z * se) ** 2).sum()) / len(z)
    between = z.std(ddof=1) / np.sqrt(len(z)) if len(z) > 1 else 0.0
    return Bridge(float(np.log(mean) + log_z.max()), float(max(within, between) / mean))


def pareto_k(proposal_log_importance: NDArray) -> float:
    """Shape of the importance ratios' tail, the largest over chains.

    Above 0.7 the ratios' mean is not to be trusted: the proposal does not cover the
    posterior (Vehtari, Simpson, Gelman, Yao and Gabry, JMLR 25, 2024).

    Args:
        proposal_log_importance: `(chains, draws, m)`; NaN where no draw was made.

    Returns:
        NaN for a chain whose proposal was never drawn from.
    """
    from arviz_stats.base import array_stats

    shapes = []
    for chain in proposal_log_importance:
        ratios = np.asarray(chain, float).ravel()
        ratios = ratios[~np.isnan(ratios)]
        if not len(ratios):
            return float("nan")
        finite = ratios[np.isfinite(ratios)]
        if len(finite) < 25:
            return float("inf")
        # log weights of zero are as good as very small ones, and finite
        ratios = np.maximum(ratios, finite.max() - 200.0)
        if np.ptp(np.sort(ratios)[-len(ratios) // 20 :]) < 1e-6:
            shapes.append(-np.inf)
            continue
        # ArviZ takes log likelihoods, which are minus the log weights
        shapes.append(float(array_stats.psislw(-ratios)[1]))
    return max(shapes)
