"""Whether a run's chains are finite, have moved, and agree with each other."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from nutfree.diagnostics.blocks import are_many, worst_of
from nutfree.diagnostics.limits import (
    GOOD_ESS_PER_CHAIN,
    GOOD_R_HAT,
    MAX_DIVERGENT,
    MAX_MISFIT,
    MAX_R_HAT,
    MIN_ESS,
    OVERFLOW,
)

#: The checks, as they are called in a verdict.
FINITE, R_HAT, ESS = "draws are finite", "R-hat", "bulk ESS"
TAIL_ESS = "tail ESS"
DIVERGENCES = "divergences"
SURROGATES = "owners' surrogates"


class Convergence(NamedTuple):
    """What the draws of a run say of themselves.

    ess_bulk, ess_tail, r_hat
        Of the worst parameter; NaN where it is not defined, as R-hat of one chain is.
    not_finite
        Draws that are NaN or infinite, by site; sites without any are left out.
    unmoved
        Chains of which every parameter has the same value in every draw.
    divergent
        Share of the transitions that diverged; NaN where that was not recorded.
    largest
        Absolute value of the largest finite draw.
    misfit
        How far data owners strayed from their surrogates, see `misfit_of`; NaN for
        kernels without.
    """

    ess_bulk: float
    ess_tail: float
    r_hat: float
    not_finite: dict[str, int]
    unmoved: list[int]
    divergent: float
    largest: float = 0.0
    misfit: float = float("nan")

    @property
    def problems(self) -> dict[str, str]:
        """What forbids every use of the draws, by check, worst first."""
        found = {}
        broken = []
        if self.not_finite:
            listed = ", ".join(f"{n:,} of '{k}'" for k, n in self.not_finite.items())
            broken.append(f"draws that are not finite: {listed}")
        if self.unmoved:
            listed = ", ".join(str(chain) for chain in self.unmoved)
            broken.append(f"never moved: chain {listed}")
        if self.largest > OVERFLOW:
            broken.append(
                f"draws of up to {self.largest:.0e}: the density may have no integral"
            )
        if broken:
            found[FINITE] = "; ".join(broken)
        if self.misfit > MAX_MISFIT:
            found[SURROGATES] = misfit_in_words(self.misfit)
        if self.r_hat > MAX_R_HAT:
            found[R_HAT] = f"chains disagree (R-hat {self.r_hat:.2f})"
        if self.divergent > MAX_DIVERGENT:
            found[DIVERGENCES] = f"{self.divergent:.0%} of transitions diverge"
        if self.ess_bulk < MIN_ESS:
            found[ESS] = f"too few draws (effective sample {self.ess_bulk:.0f})"
        return found

    def caveats(self, num_chains: int) -> list[str]:
        """What forbids some uses of draws against which there are no problems."""
        doubts = []
        if self.r_hat > GOOD_R_HAT:
            doubts.append(f"R-hat {self.r_hat:.3f}")
        least = min(self.ess_bulk, self.ess_tail) / num_chains
        if least < GOOD_ESS_PER_CHAIN:
            doubts.append(f"effective sample {least:.0f} a chain")
        if not doubts:
            return []
        return [f"usable for means, not for tails ({', '.join(doubts)})"]


def convergence(posterior: xr.Dataset, stats: xr.Dataset | None = None) -> Convergence:
    """Look at the draws of a run, with dimensions chain and draw.

    Args:
        posterior: the sampled sites.
        stats: sample statistics; `diverging` is read.

    Example:
        >>> import numpy as np, xarray as xr
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> run = xr.Dataset({"x": (("chain", "draw"), draws)})
        >>> convergence(run).problems
        {}
        >>> run["x"][0, 3] = np.nan
        >>> convergence(run).problems
        {'draws are finite': "draws that are not finite: 1 of 'x'"}
    """
    not_finite = {
        str(name): count
        for name, site in posterior.items()
        if (count := int(np.sum(~np.isfinite(site.values))))
    }
    return Convergence(
        **_worst(posterior, broken=bool(not_finite)),
        not_finite=not_finite,
        unmoved=_unmoved(posterior),
        divergent=_divergent(stats),
        largest=_largest(posterior),
        misfit=misfit_of(stats),
    )


def _by_blocks(posterior: xr.Dataset, stats: xr.Dataset | None) -> Convergence:
    """Look at draws that are too many to have in memory; ESS is not known."""
    found = {str(name): worst_of(site) for name, site in posterior.items()}
    hats = [site["r_hat"] for site in found.values() if not np.isnan(site["r_hat"])]
    unmoved = np.all([site["unmoved"] for site in found.values()], axis=0)
    nan = float("nan")
    return Convergence(
        ess_bulk=nan,
        ess_tail=nan,
        r_hat=max(hats, default=nan),
        not_finite={k: v["not_finite"] for k, v in found.items() if v["not_finite"]},
        unmoved=[int(chain) for chain in np.flatnonzero(unmoved)],
        divergent=_divergent(stats),
        largest=max(site["largest"] for site in found.values()),
        misfit=misfit_of(stats),
    )


def _largest(posterior: xr.Dataset) -> float:
    sizes = [np.abs(site.values) for site in posterior.values()]
    return max((float(s[np.isfinite(s)].max(initial=0)) for s in sizes), default=0.0)


def _worst(posterior: xr.Dataset, broken: bool) -> dict[str, float]:
    """ESS and R-hat of the worst parameter; those of constants are left out."""
    import arviz_stats

    nan = float("nan")
    if broken or not posterior.sizes.get("draw") or not len(posterior.data_vars):
        return {"ess_bulk": nan, "ess_tail": nan, "r_hat": nan}
    moves = {
        name: (site.max(("chain", "draw")) > site.min(("chain", "draw"))).values
        for name, site in posterior.items()
    }

    def values(dataset: xr.Dataset) -> np.ndarray:
        parts = [dataset[name].values[moves[name]] for name in dataset.data_vars]
        return np.concatenate([np.ravel(part) for part in parts])

    with np.errstate(all="ignore"):
        bulk = values(arviz_stats.ess(posterior, method="bulk"))
        tail = values(arviz_stats.ess(posterior, method="tail"))
        hats = values(arviz_stats.rhat(posterior))
    return {
        "ess_bulk": float(np.min(bulk)) if bulk.size else nan,
        "ess_tail": float(np.min(tail)) if tail.size else nan,
        "r_hat": float(np.max(hats)) if hats.size else nan,
    }


def _unmoved(posterior: xr.Dataset) -> list[int]:
    if posterior.sizes.get("draw", 0) < 2:
        return []
    still = [
        (site == site.isel(draw=0))
        .all([dim for dim in site.dims if dim != "chain"])
        .values
        for site in posterior.values()
    ]
    return [int(chain) for chain in np.flatnonzero(np.all(still, axis=0))]


def _divergent(stats: xr.Dataset | None) -> float:
    if stats is None or "diverging" not in stats:
        return float("nan")
    return float(stats["diverging"].mean())


def misfit_of(stats: xr.Dataset | None) -> float:
    """Return how far a run's owners strayed from what their surrogates expect.

    It is 1 for exact surrogates. What the step size was chosen to add is taken off,
    and four standard errors that exact surrogates have in one coordinate.
    """
    if stats is None or "surrogate_misfit" not in stats:
        return float("nan")
    misfit = stats["surrogate_misfit"].values
    chosen = stats["predicted_inflation"].values.mean()
    return float(np.mean(misfit) - chosen - 4 * np.sqrt(2 / misfit.size))


def misfit_in_words(misfit: float) -> str:
    return (
        f"owners' steps stray {np.sqrt(misfit):.3g} times as far as their surrogates "
        "expect, of a posterior that one Gaussian does not describe (fald with "
        "num_local_steps=1 and participation=1 needs no surrogates)"
    )


def short_verdict(tree: xr.DataTree) -> str:
    """What a finished run itself says against its draws, in a sentence; else empty."""
    stats = (
        tree["sample_stats"].to_dataset() if "sample_stats" in tree.children else None
    )
    posterior = tree["posterior"].to_dataset()
    look = _by_blocks if are_many(posterior) else convergence
    return in_a_sentence(look(posterior, stats))


def in_a_sentence(run: Convergence) -> str:
    """What a run says against its draws, in a sentence; empty if nothing."""
    # a short run is its user's choice
    found = run._replace(ess_bulk=float("nan")).problems
    if not found:
        return ""
    return (
        f"Something speaks against these draws: {'; '.join(found.values())}. "
        "nutfree.check(tree, model, ...) says more."
    )
