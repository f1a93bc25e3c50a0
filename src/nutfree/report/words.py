"""A comparison's figures in words: names of columns, numbers as people write them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from nutfree.report.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from nutfree.report.findings import Findings

#: A column of the comparison's table, in words.
NAMES = {
    "ess_bulk": "effective draws",
    "ess_tail": "effective draws in the tails",
    "ess_exact": "exact draws they are worth, bias included",
    "r_hat": "R-hat",
    "divergences": "divergent transitions",
    "grad_evals": "gradients",
    "density_evals": "density evaluations",
    "setup_seconds": "seconds of setup and compilation",
    "warmup_seconds": "seconds of warm-up",
    "sampling_seconds": "seconds of sampling",
    "seconds": "seconds",
    "seconds_to_400": "seconds to 400 effective draws",
    "ess_per_grad": "effective draws per gradient",
    "ess_per_second": "effective draws per second of sampling",
    "ksd": "Stein discrepancy",
    "score_z": "largest error of a location or scale, in standard errors",
    "mode_tv": "mode disagreement",
    "predicted_inflation": "predicted error of variances",
    "pareto_k": "Pareto k of the proposal",
    "num_rounds": "rounds",
    "num_messages": "messages to owners and from them",
    "num_bytes": "bytes sent",
    "log_evidence": "log evidence",
    "log_evidence_se": "its standard error",
}
#: The figure that exact draws stay below, beside the figure.
LIMITS = {
    "ksd": "ksd_floor",
    "score_z": "score_z_limit",
    "mode_tv": "mode_tv_floor",
}
#: Columns in which an empty cell is a check that was not made.
CHECKED = ("r_hat", "ess_bulk", "ess_tail", "divergences", "ksd", "score_z", "mode_tv")
#: What a summary shows, in order.
SUMMARY = ("ess_bulk", "r_hat", "seconds_to_400", "grad_evals", "ksd", "mode_tv")
#: What the figures mean, for whoever has not met them.
LEGEND = (
    "Effective draws and R-hat are those of the worst parameter. The Stein discrepancy "
    "says whether the draws fit the gradient of the log density, and mode disagreement "
    "how far chains differ in the shares of the modes; each stands beside the limit "
    "that exact draws stay below nineteen times in twenty."
)


def number(value: float, digits: int = 3) -> str:
    """A number as people write it: no exponent, and a dash where there is none.

    Example:
        >>> number(1864.2), number(0.06213), number(float("nan"))
        ('1,864', '0.0621', '–')
    """
    value = float(value)
    if not np.isfinite(value):
        return "–" if np.isnan(value) else ("∞" if value > 0 else "-∞")
    if value == round(value) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.2g}"
    return np.format_float_positional(
        value, precision=digits, unique=False, fractional=False, trim="-"
    )


def cell(column: str, row: "pd.Series") -> str:
    """A figure, with its limit where it has one; a check not made says so."""
    value = float(row[column])
    if np.isnan(value):
        ran = not np.isnan(float(row["ess_bulk"])) or not np.isnan(
            float(row["seconds"])
        )
        return "not checked" if ran and column in CHECKED else "–"
    if column == "r_hat":
        return f"{value:.2f}"
    if column.startswith("ess_") and "per" not in column:
        return f"{value:,.0f}"
    if column == "predicted_inflation":
        return f"{100 * value:.1f} %"
    limit = float(row[LIMITS[column]]) if column in LIMITS else float("nan")
    return (
        number(value) if np.isnan(limit) else f"{number(value, 2)} ({number(limit, 2)})"
    )


def _named(column: str) -> str:
    return NAMES[column] + (" (limit)" if column in LIMITS else "")


def summary(found: "Findings") -> "pd.DataFrame":
    """A row per kernel: its verdict in a word, and the figures that decide."""
    import pandas as pd

    rows = {}
    for name, row in found.table.iterrows():
        label = str(name)
        verdict = found.verdicts.get(label)
        word = verdict.word if verdict is not None else "did not run"
        rows[label] = {"verdict": word} | {_named(c): cell(c, row) for c in SUMMARY}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "kernel"
    return table


def every_figure(found: "Findings") -> "pd.DataFrame":
    """A row per figure that any kernel has, a column per kernel."""
    import pandas as pd

    shown = [c for c in NAMES if found.table[c].notna().any() or c in CHECKED]
    rows = {
        _named(c): {str(k): cell(c, row) for k, row in found.table.iterrows()}
        for c in shown
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "figure"
    return table


def remarks(found: "Findings") -> dict[str, list[str]]:
    """By kernel, sentences that the recommendation has not said already."""
    said: dict[str, list[str]] = {}
    for name in found.table.index:
        verdict = found.verdicts.get(name)
        if verdict is None:
            reason = str(found.table.loc[name, "verdict"])
            said[str(name)] = [reason if reason.endswith(".") else f"{reason}."]
            continue
        said[str(name)] = [f"{_upper(text)}." for text in _clauses(verdict)]
        spec = found.specs.get(name)
        if spec is not None and spec.guarantee == "biased":
            said[str(name)].append(f"A biased kernel: {spec.bias}.")
    return {name: sentences for name, sentences in said.items() if sentences}


def _clauses(verdict: Verdict) -> list[str]:
    clauses = verdict.problems[1:]
    if verdict.sound and verdict.power:
        clauses.append(verdict.power)
    clauses += verdict.caveats
    if verdict.not_checked:
        clauses.append(f"not checked: {', '.join(verdict.not_checked)}")
    return clauses


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def parameters(tree: "xr.DataTree") -> "pd.DataFrame":
    """Mean, sd and quantiles of every scalar parameter, its effective draws, R-hat."""
    import arviz_stats
    import pandas as pd

    checks = arviz_stats.summary(tree, kind="diagnostics", round_to="none")
    rows = {}
    for name, values in _scalars(tree).items():
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        rows[name] = {
            "mean": number(values.mean()),
            "sd": number(values.std(ddof=1)),
            "5 %": number(low),
            "median": number(middle),
            "95 %": number(high),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "parameter"
    if len(checks) == len(table):
        table["effective draws"] = [number(v) for v in checks["ess_bulk"]]
        table["R-hat"] = [f"{v:.2f}" for v in checks["r_hat"]]
    return table


def _scalars(tree: "xr.DataTree") -> Mapping[str, np.ndarray]:
    found = {}
    for name, array in tree["posterior"].to_dataset().items():
        values = array.values
        for index in np.ndindex(values.shape[2:]):
            label = f"{name}[{', '.join(map(str, index))}]" if index else str(name)
            found[label] = np.asarray(values[(..., *index)], float).ravel()
    return found


def shares_of_modes(found: "Findings") -> "pd.DataFrame":
    """Share of each kernel's draws in each mode, in percent."""
    return found.modes.map(lambda share: f"{100 * share:.0f} %")
