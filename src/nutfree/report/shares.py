"""Runs beside each other: the modes among all their draws, and each run's shares."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nutfree.diagnostics.density import Density
from nutfree.diagnostics.limits import MISSED_PART, MISSED_WEIGHT, SHARES_LEVEL
from nutfree.diagnostics.modes import find_modes, mode_weights, thin, total_variation
from nutfree.diagnostics.subsample import surrogate
from nutfree.report.runs import Posterior, Run
from nutfree.report.verdict import ACROSS, SHARE, Check, Verdict

NAN = float("nan")


@dataclass(frozen=True)
class Shares:
    """A run's shares of the modes that all runs' draws have together.

    of_modes
        `(modes,)`.
    size
        Draws that its labels are worth.
    tv, floor, limit
        Total variation between its chains; what exact ones stay below in 95 %, and in
        all but one of a thousand runs.
    competitive
        `(modes,)` bools: modes as dense as the run's own draws.
    """

    of_modes: NDArray
    size: float
    tv: float
    floor: float
    limit: float
    competitive: NDArray

    @property
    def detectable(self) -> float:
        """The error of a share, one half or nearest to it, that chains would show."""
        share = self.of_modes[np.argmin(np.abs(self.of_modes - 0.5))]
        return float(4.6 * np.sqrt(share * (1 - share) / max(self.size, 1.0)))


def find_shares(
    runs: Mapping[str, Run], posterior: Posterior, max_draws: int
) -> dict[str, Shares]:
    """Modes among all runs' draws, and each run's shares of them."""
    draws = {
        name: np.stack([thin(chain, max_draws) for chain in run.vectors])
        for name, run in runs.items()
    }
    energies = _energies(posterior, draws)
    pooled = np.concatenate([x.reshape(-1, x.shape[-1]) for x in draws.values()])
    energy = np.concatenate([e.ravel() for e in energies.values()])
    plausible = np.isfinite(pooled).all(1) & np.isfinite(energy)
    if plausible.any():
        # strays of a run gone astray are no mode; they keep a label of their own
        lowest = np.median(energy[plausible]) - 100.0 - 10.0 * pooled.shape[1]
        plausible &= energy > lowest
    labels = np.full(len(pooled), -1)
    if plausible.any():
        labels[plausible] = find_modes(pooled[plausible])
    num_modes = int(labels.max()) + 1
    labels[~plausible] = num_modes
    typical = np.array([np.median(energy[labels == m]) for m in range(num_modes)])
    found, start = {}, 0
    for name, x in draws.items():
        size = x.shape[0] * x.shape[1]
        own = labels[start : start + size]
        start += size
        agreement = mode_weights(np.nan_to_num(x), labels=own)
        of_modes = np.bincount(own, minlength=num_modes + 1)[:num_modes] / size
        usual = energies[name][np.isfinite(energies[name])]
        least = np.quantile(usual, 0.01) - 2.0 if usual.size else np.inf
        thinned = runs[name].size / size
        effective = float(np.sum(agreement.effective_sizes))
        found[name] = Shares(
            of_modes if num_modes else np.ones(1),
            min(effective * thinned, runs[name].size),
            agreement.tv,
            agreement.floor,
            agreement.limit,
            typical >= least,
        )
    return found


def _energies(posterior: Posterior, draws: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Log densities of the draws; where there are many rows, those of a subsample,
    centred on the run with the least spread."""
    density = posterior.density
    if posterior.many_rows:
        flat = [x.reshape(-1, x.shape[-1]) for x in draws.values()]
        flat = [x[np.isfinite(x).all(1)] for x in flat]
        flat = [x for x in flat if len(x)]
        if flat:
            tightest = min(flat, key=lambda x: float(np.log(x.std(0) + 1e-30).sum()))
            density = Density(surrogate(tightest, posterior.target))
    return {name: density(x).value for name, x in draws.items()}


def together(
    alone: Mapping[str, Verdict], shares: Mapping[str, Shares]
) -> dict[str, Verdict]:
    """Add to each verdict what the other runs show."""
    sound = [name for name, verdict in alone.items() if not verdict.problems]
    # a wrong share of a mode is what is compared here
    but_for_shares = [n for n, v in alone.items() if _only_shares(v)]
    pairs = max(len(but_for_shares) * (len(but_for_shares) - 1) // 2, 1)
    found = {}
    for name, verdict in alone.items():
        checks, notes = list(verdict.checks), list(verdict.notes)
        for other in alone:
            if other == name:
                continue
            lost = _missed(shares[name], shares[other])
            if other not in sound:
                # a stuck chain holds any share of a mode: it counts if it is news
                lost = lost & (shares[name].of_modes == 0)
            if lost.any():
                said = _missed_words(lost, shares[other], other)
                if other in sound:
                    row = ("modes of other runs", NAN, NAN, "problem", said)
                    checks.append(Check(*row))
                else:
                    notes.append(said)
            elif name in but_for_shares and other in but_for_shares:
                level = SHARES_LEVEL / pairs
                checks.append(_differ(shares[name], shares[other], other, level))
        found[name] = replace(verdict, checks=tuple(checks), notes=tuple(notes))
    return found


def _only_shares(verdict: Verdict) -> bool:
    return all(c.name == SHARE for c in verdict.checks if c.result == "problem")


def _differ(mine: Shares, theirs: Shares, other: str, level: float) -> Check:
    """Compare two runs' shares of the modes."""
    tv, floor = shares_differ(mine, theirs, level=level)
    if not tv > floor:
        return Check(ACROSS, tv, floor, "fine")
    k = int(np.argmax(np.abs(mine.of_modes - theirs.of_modes)))
    said = (
        f"weighs the modes unlike {other} ({mine.of_modes[k]:.2f} against "
        f"{theirs.of_modes[k]:.2f} of a mode; total variation {tv:.2f}, exact runs "
        f"stay below {floor:.2f})"
    )
    return Check(ACROSS, tv, floor, "problem", said)


def _missed(mine: Shares, theirs: Shares) -> NDArray:
    """Modes as dense as a run's own draws that another holds and it never visited."""
    heavy = theirs.of_modes >= MISSED_WEIGHT
    few = mine.of_modes < MISSED_PART * theirs.of_modes
    return heavy & few & mine.competitive


def _missed_words(lost: NDArray, theirs: Shares, other: str) -> str:
    count, share = int(lost.sum()), theirs.of_modes[lost].sum()
    modes = "a mode" if count == 1 else f"{count} modes"
    return f"never visited {modes} holding {share:.0%} of the draws of {other}"


def shares_differ(
    one: Shares, other: Shares, *, level: float = SHARES_LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Total variation between two runs' shares of the modes, and its floor."""
    pooled = one.size * one.of_modes + other.size * other.of_modes
    pooled = pooled / max(pooled.sum(), 1e-300)
    rng = np.random.default_rng(seed)

    def replicates(size: float) -> NDArray:
        number = max(int(size), 1)
        return rng.multinomial(number, pooled, size=int(4 / level)) / number

    exact = 0.5 * np.abs(replicates(one.size) - replicates(other.size)).sum(1)
    return (
        total_variation(one.of_modes, other.of_modes),
        float(np.quantile(exact, 1 - level)),
    )
