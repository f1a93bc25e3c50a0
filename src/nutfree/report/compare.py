"""Several kernels on one model: a table, a verdict each, and which one to use."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpyro.infer.mcmc import MCMCKernel

from nutfree.errors import NutfreeError
from nutfree.numerics.programs import in_full_precision
from nutfree.report.entries import (
    KernelLike,
    build,
    labelled,
    one_by_one,
    options_of,
    run,
    spec_of,
)
from nutfree.report.findings import Findings
from nutfree.report.judge import Evidence, judge

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


__all__ = ["Comparison", "compare"]

COLUMNS = (
    "ess_bulk",
    "ess_tail",
    "ess_exact",
    "r_hat",
    "divergences",
    "grad_evals",
    "density_evals",
    "seconds",
    "ess_per_grad",
    "ess_per_second",
    "ksd",
    "ksd_floor",
    "score_z",
    "mode_tv",
    "mode_tv_floor",
    "predicted_inflation",
    "pareto_k",
    "log_evidence",
    "log_evidence_se",
)
#: A kernel within this factor of the fastest is as good: seconds are noisy.
AS_GOOD = 0.9


@dataclass(frozen=True, repr=False)
class Comparison(Findings):
    """What `compare` found: its figures, and what can be made of them."""

    def plot(self) -> "Figure":
        """The comparison at a glance, as a matplotlib figure."""
        from nutfree.report.plots import plot_comparison

        return plot_comparison(self)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page: verdicts, table, plots, options, versions."""
        from nutfree.report.html import render

        path = Path(path)
        path.write_text(render(self), encoding="utf-8")
        return path

    def __repr__(self) -> str:
        shown = self.table.drop(columns="verdict").dropna(axis=1, how="all")
        verdicts = "\n".join(f"{k}: {v}" for k, v in self.table["verdict"].items())
        numbers = shown.to_string(float_format=lambda x: f"{x:.3g}")
        return f"{numbers}\n\n{verdicts}\n\n{self.recommendation}"

    def _repr_html_(self) -> str:
        from nutfree.report.html import table_html

        return f"<p><b>{escape(self.recommendation)}</b></p>{table_html(self.table)}"


@in_full_precision
def compare(
    model: Callable,
    *args: Any,
    kernels: Sequence[KernelLike] | Mapping[str, KernelLike] = (
        "nuts",
        "multiscale",
        "clc",
    ),
    num_warmup: int = 500,
    num_samples: int = 1000,
    num_chains: int = 4,
    seed: int = 0,
    progress_bar: bool = True,
    executor: Executor | None = None,
    **kwargs: Any,
) -> Comparison:
    """Run several kernels on a model and say which to use, and why.

    A run is set aside when its chains disagree, when its draws do not fit the score of
    the posterior, when its chains weigh the modes differently, when more than 1 % of
    its transitions diverge, or when it never visited a mode that a sound run holds.
    Among the others the one with the most effective draws a second is recommended;
    NUTS, wherever it is sound and at least as good.

    Args:
        model: a NumPyro model.
        *args, **kwargs: its arguments.
        kernels: names, or ``(name, options)`` pairs; or a mapping from a label to
            one of these or to a ready NumPyro kernel.
        num_warmup, num_samples, num_chains: of each run.
        seed: of each run.
        progress_bar: whether each run shows one.
        executor: any ``concurrent.futures`` executor, to run kernels at the same time.
            Seconds are then comparable only if each has a machine of its own.

    Returns:
        A :class:`Comparison`.

    Raises:
        UnknownKernel, InvalidOption: for a kernel, option or setting that does not
            exist or makes no run.
        NutfreeError: if every kernel failed; the message has each one's reason.
        KeyboardInterrupt: at Ctrl-C before the first draw. Later, it ends the
            comparison with what has been drawn.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> def model():
        ...     numpyro.sample("x", dist.Normal().expand([2]))
        >>> found = compare(model, kernels=["nuts"], num_chains=2, num_warmup=200,
        ...                 num_samples=200, progress_bar=False)
        >>> found.best
        'nuts'
    """
    from nutfree.frontends.numpyro import model_target
    from nutfree.hosts.checks import check_settings

    check_settings(
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        seed=seed,
    )
    entries = labelled(kernels)
    for entry in entries.values():
        if not isinstance(entry, MCMCKernel):
            build(entry, model)  # an unknown name or option is refused before any run
    target = model_target(model, args, kwargs)
    settings = {
        "num_warmup": num_warmup,
        "num_samples": num_samples,
        "num_chains": num_chains,
        "seed": seed,
        "progress_bar": progress_bar,
    }
    jobs = {
        name: (model, entry, args, {**kwargs, **settings})
        for name, entry in entries.items()
    }
    if executor is None:
        results = one_by_one(jobs)
    else:
        futures = {name: executor.submit(run, *job) for name, job in jobs.items()}
        results = {name: future.result() for name, future in futures.items()}
    trees = {k: r for k, r in results.items() if not isinstance(r, str)}
    failed = {k: r for k, r in results.items() if isinstance(r, str)}
    if not trees:
        reasons = "\n".join(f"- {name} {why}" for name, why in failed.items())
        raise NutfreeError(f"No kernel could run on this model:\n{reasons}")
    evidence = judge(trees, target)
    best, sentence = recommendation(evidence)
    return Comparison(
        table=_table(entries, evidence, failed),
        trees=trees,
        best=best,
        recommendation=sentence,
        evidence=evidence,
        options={name: options_of(entry) for name, entry in entries.items()},
        specs={k: s for k, e in entries.items() if (s := spec_of(e)) is not None},
        target=target,
    )


def recommendation(evidence: Mapping[str, Evidence]) -> tuple[str | None, str]:
    """The kernel to use and a sentence why, from what `judge` found.

    Returns:
        ``(name, sentence)``; the name is None where no run can be trusted.
    """
    sound = {name: e.figures for name, e in evidence.items() if e.valid}
    aside = [
        f"{name} was set aside: {e.problems[0]}."
        for name, e in evidence.items()
        if not e.valid
    ]
    noted = [
        f"Look again: {name} {note}, which itself was set aside."
        for name, e in evidence.items()
        if e.valid
        for note in e.notes
    ]
    if not sound:
        advice = "Run longer, or try kernels that nutfree.recommend(model) names."
        return None, " ".join(["No run can be trusted.", *aside, advice])
    rate = {name: f["ess_per_second"] for name, f in sound.items()}
    fastest = max(rate.values())
    close = [name for name in sound if rate[name] >= AS_GOOD * fastest] or list(sound)
    best = max(close, key=lambda name: _finite(sound[name]["ess_per_grad"]))
    if "nuts" in close:
        best = "nuts"
    others = {name: value for name, value in rate.items() if name != best}
    why = f"nothing speaks against its draws, {rate[best]:.3g} effective ones a second"
    if others:
        second = max(others, key=lambda name: others[name])
        factor = rate[best] / others[second]
        why += f", {factor:.1f} × as many as {second}"
    return best, " ".join([f"{best}: {why}.", *aside, *noted])


def _finite(value: float) -> float:
    return value if value == value else float("-inf")


def _table(
    entries: Mapping[str, KernelLike],
    evidence: Mapping[str, Evidence],
    failed: Mapping[str, str],
) -> "pd.DataFrame":
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        if name in failed:
            rows[name] = {"verdict": failed[name]}
            continue
        found = evidence[name]
        verdict = "; ".join([*(found.problems or ["sound"]), *found.caveats])
        spec = spec_of(entry)
        if spec is not None and spec.guarantee == "biased":
            verdict += " (a biased kernel)"
        rows[name] = {**found.figures, "verdict": verdict}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table = table.reindex(columns=[*COLUMNS, "verdict"])
    table.index.name = "kernel"
    return table
