"""What is known of a posterior before it is sampled, and what a kernel says to it."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Facts:
    """What a model's structure and a few cheap probes tell of its posterior.

    Attributes:
        dim: coordinates of the sampling space.
        num_data: rows of the data plate; None without one.
        num_owners: data owners; 0 without any.
        non_smooth: latent sites at which the density has kinks.
        bounded: latent sites whose support has a boundary.
        has_gradient: whether the log density can be differentiated.
        jumps: whether the log density was seen to jump.
        has_gaussian_prior: whether the prior is Gaussian on the sampling space.
        centred: latent sites whose scale is another latent site, with that.
        num_modes: separate optima of comparable mass; None where none were looked for.
    """

    dim: int
    num_data: int | None = None
    num_owners: int = 0
    non_smooth: tuple[str, ...] = ()
    bounded: tuple[str, ...] = ()
    has_gradient: bool = True
    jumps: bool = False
    has_gaussian_prior: bool = False
    centred: tuple[tuple[str, str], ...] = ()
    num_modes: int | None = None

    #: From so many rows on, a pass over all of them a step is worth avoiding.
    MANY_ROWS = 50_000

    @property
    def has_many_rows(self) -> bool:
        return self.num_data is not None and self.num_data >= self.MANY_ROWS

    @property
    def has_many_modes(self) -> bool:
        return (self.num_modes or 1) > 1


class Fit(NamedTuple):
    """How promising a kernel is on a posterior, and why.

    score
        1 is NUTS where nothing speaks against it; 0 does not fit.
    why
        A clause for people to read.
    """

    score: float
    why: str

    @property
    def fits(self) -> bool:
        return self.score > 0


def unknown(facts: Facts) -> Fit:
    """The fit of a kernel that does not say what it is good for."""
    del facts
    return Fit(0.4, "it does not say what it is good for: compare it")


def baseline(facts: Facts) -> Fit:
    """The fit of a kernel that is there to be compared with."""
    del facts
    return Fit(0.5, "a baseline to compare with")


def separate_modes(facts: Facts) -> Fit:
    """The fit of a kernel that moves between separate modes."""
    if facts.has_many_modes:
        return Fit(2.2, f"{facts.num_modes} separate modes: it moves between them")
    seen = "not counted" if facts.num_modes is None else "no separate modes were found"
    return Fit(0.7, f"for separate modes; {seen}")


def no_gradient(facts: Facts) -> Fit:
    """The fit of a kernel that evaluates the log density alone."""
    if facts.has_gradient:
        return Fit(0.3, "needs no gradient, but there is one to use")
    return Fit(3.0, "needs no gradient, and there is none")


def gaussian_prior(facts: Facts) -> Fit:
    """The fit of a kernel that needs a Gaussian prior, and no gradient."""
    if not facts.has_gaussian_prior:
        return Fit(0.0, "for a Gaussian prior on the sampling space, which this is not")
    return no_gradient(facts)


def many_rows(facts: Facts) -> Fit:
    """The fit of a kernel whose steps take a batch of the rows."""
    if facts.num_data is None:
        return Fit(0.2, "for data too large for a pass a step")
    rows = f"{facts.num_data:,} rows"
    if facts.has_many_rows:
        return Fit(2.0, f"{rows}: a step costs a batch of them")
    return Fit(0.2, f"only {rows}: batches add noise and save little")


def several_owners(facts: Facts) -> Fit:
    """The fit of a kernel that moves no row away from its owner."""
    if facts.num_owners < 2:
        return Fit(0.0, "for data of several owners, and these have one")
    return Fit(2.5, f"the data stay with their {facts.num_owners} owners")


def federated_baseline(facts: Facts) -> Fit:
    """The fit of a federated kernel that is off where owners differ."""
    if facts.num_owners < 2:
        return several_owners(facts)
    return Fit(0.3, "a baseline: without surrogates it is off where owners differ")


def non_smooth(facts: Facts) -> Fit:
    """The fit of a kernel that takes proximal steps."""
    if facts.non_smooth:
        named = ", ".join(facts.non_smooth)
        return Fit(1.5, f"non-smooth in {named}, which a proximal step takes exactly")
    named = ", ".join(facts.bounded)
    return Fit(0.6, f"smooth, with bounds on {named}: NUTS transforms these well")


def kinks_or_bounds(facts: Facts) -> Fit:
    """The fit of a kernel that also moves bounded sites in coordinates of its own."""
    if facts.non_smooth or not facts.bounded:
        return non_smooth(facts)
    named = ", ".join(facts.bounded)
    why = f"bounds on {named}: more effective draws a gradient than NUTS, and more work"
    return Fit(0.8, f"{why} beside it, which pays where a gradient is costly")


def smooth(facts: Facts) -> Fit:
    """The fit of NUTS, the reference."""
    against = []
    if facts.has_many_modes:
        against.append(
            f"{facts.num_modes} separate modes, of which a chain may see one"
        )
    if facts.has_many_rows:
        against.append(f"every step passes over {facts.num_data:,} rows")
    if facts.num_owners:
        against.append("it pools the rows of all owners")
    if facts.jumps:
        against.append("the log density jumps, which its gradient does not show")
    if facts.non_smooth:
        against.append(f"not smooth in {', '.join(facts.non_smooth)}")
    against += [
        f"'{site}' is centred on its scale '{scale}', which makes a funnel where the "
        "data say little: write it non-centred, numpyro.handlers.reparam(model, "
        f"config={{'{site}': LocScaleReparam(0)}})"
        for site, scale in facts.centred
    ]
    if against:
        return Fit(0.9, "the reference, but " + "; ".join(against))
    modes = facts.num_modes
    seen = "modes were not counted" if modes is None else "one mode was found"
    why = f"smooth, {facts.dim} dimensions, {seen}: nothing speaks against it"
    return Fit(1.0, why)
