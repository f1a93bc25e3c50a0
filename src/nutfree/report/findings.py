"""What a comparison found, as data: the pictures and the page are made from it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nutfree import registry
from nutfree.report.setup import Setup
from nutfree.report.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from nutfree.target import Target


@dataclass(frozen=True)
class Findings:
    """What a comparison found.

    Attributes:
        table: a row per kernel, its figures and a verdict.
        trees: the draws of each kernel that ran.
        best: name of the kernel to use, or None where no run can be trusted.
        recommendation: a sentence that starts with that name and says why.
        verdicts: by kernel, what its draws are worth.
        errors: by kernel that did not run, its traceback or the reason.
        options: by kernel, the options it ran with.
        specs: by kernel, what the registry knows of it.
        target: the posterior, for plots.
        setup: the model, its data and the settings of the runs.
    """

    table: "pd.DataFrame"
    trees: dict[str, "xr.DataTree"]
    best: str | None
    recommendation: str
    verdicts: dict[str, Verdict] = field(repr=False)
    errors: dict[str, str] = field(repr=False)
    options: dict[str, dict[str, Any]] = field(repr=False)
    specs: dict[str, registry.KernelSpec] = field(repr=False)
    target: "Target" = field(repr=False)
    setup: Setup = field(default_factory=Setup, repr=False)

    @property
    def modes(self) -> "pd.DataFrame":
        """Share of each kernel's draws in each mode that any of them found."""
        import pandas as pd

        shares = {name: v.mode_shares for name, v in self.verdicts.items()}
        table = pd.DataFrame.from_dict(shares, orient="index")
        table.index.name = "kernel"
        return table.rename(columns=lambda i: f"mode {i + 1}")

    @property
    def caveats(self) -> dict[str, str]:
        """For each biased kernel, which option reduces the bias and what shows it."""
        return {name: spec.bias for name, spec in self.specs.items() if spec.bias}
