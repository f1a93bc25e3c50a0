"""What runs' draws are worth, and what speaks against them.

A run is sound when the checks that count were made and nothing speaks against it. What
can: draws that are not finite, chains that disagree (R-hat), divergences, a score that
does not fit the draws (kernel Stein discrepancy, score moments), chains that weigh the
modes differently, modes that a search finds or another sound run holds and this one
never visited. The limits are those of `nutfree.diagnostics.limits`.
"""

from collections.abc import Mapping

import xarray as xr

from nutfree.report.checks import judge_alone
from nutfree.report.runs import Posterior, Run
from nutfree.report.shares import find_shares, together
from nutfree.report.verdict import Verdict
from nutfree.target import Target


def judge(
    trees: Mapping[str, xr.DataTree],
    target: Target | Posterior,
    *,
    max_draws: int = 500,
) -> dict[str, Verdict]:
    """Weigh the runs of several kernels on one posterior.

    Args:
        trees: runs by label.
        target: the posterior, with ``position`` set; as a `Posterior` it keeps what
            it has computed for the next call.
        max_draws: draws a chain that enter the search for modes among draws.

    Returns:
        A `Verdict` by label.
    """
    posterior = target if isinstance(target, Posterior) else Posterior(target)
    runs = {name: Run(tree, posterior) for name, tree in trees.items()}
    shares = find_shares(runs, posterior, max_draws)
    alone = {
        name: judge_alone(run, posterior, shares[name], len(runs))
        for name, run in runs.items()
    }
    return together(alone, shares)
