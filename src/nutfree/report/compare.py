"""Several kernels on one model: a table, a verdict each, and which one to use."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpyro.infer.mcmc import MCMCKernel

from nutfree import registry
from nutfree.errors import NutfreeError
from nutfree.numerics.programs import in_full_precision
from nutfree.registry import KernelSpec
from nutfree.report.entries import (
    Failure,
    KernelLike,
    build,
    folder_of,
    labelled,
    options_of,
    run_all,
    spec_of,
)
from nutfree.report.findings import Findings
from nutfree.report.judge import judge
from nutfree.report.runs import Posterior
from nutfree.report.setup import describe
from nutfree.report.verdict import Verdict, not_judged
from nutfree.report.words import number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from nutfree.target import Target

__all__ = ["Comparison", "compare"]

COLUMNS = (
    "ess_bulk",
    "ess_tail",
    "ess_exact",
    "r_hat",
    "divergences",
    "grad_evals",
    "density_evals",
    "setup_seconds",
    "warmup_seconds",
    "sampling_seconds",
    "seconds",
    "seconds_to_400",
    "ess_per_grad",
    "ess_per_second",
    "ksd",
    "ksd_floor",
    "score_z",
    "score_z_limit",
    "mode_tv",
    "mode_tv_floor",
    "predicted_inflation",
    "pareto_k",
    "num_rounds",
    "num_messages",
    "num_bytes",
    "log_evidence",
    "log_evidence_se",
)
#: A kernel within this factor of the fastest is as good: seconds are noisy.
AS_GOOD = 0.9
#: An exact kernel is preferred to a biased one that is faster by less than this.
EXACT_IS_WORTH = 2.0


@dataclass(frozen=True, repr=False)
class Comparison(Findings):
    """What `compare` found: its figures, and what can be made of them."""

    def plot(self) -> "Figure":
        """The comparison at a glance, as a matplotlib figure."""
        from nutfree.report.overview import plot_comparison

        return plot_comparison(self)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page: verdicts, table, plots, options, versions."""
        from nutfree.report.html import render

        path = Path(path)
        path.write_text(render(self), encoding="utf-8")
        return path

    def __repr__(self) -> str:
        from nutfree.report.terminal import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from nutfree.report.html import at_a_glance

        return at_a_glance(self)


@in_full_precision
def compare(
    model: "Callable | Target",
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
    executor: Any = None,
    timeout: float | None = None,
    checkpoint: str | Path | None = None,
    model_args: tuple | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    coords: dict[str, Any] | None = None,
    dims: dict[str, list[str]] | None = None,
    log_likelihood: bool = False,
    prior: dict[str, Any] | int | None = None,
    posterior_predictive: bool | None = None,
    constant_data: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Comparison:
    """Run several kernels on a model and say which to use, and why.

    A run is set aside when draws are not finite, its chains disagree, its draws do not
    fit the score of the posterior, its chains weigh the modes differently, more than
    1 % of its transitions diverge, or it never visited a mode that a search finds or a
    sound run holds; where two runs weigh the modes differently, neither is recommended.
    Among the others the one whose first 400 effective draws take the least time, all
    told, is recommended: an exact kernel, unless a biased one is twice as fast, and
    NUTS wherever it is at least as good.

    Args:
        model: a NumPyro model, or a `Target` whose ``position`` is a dict of sites.
        *args, **kwargs: its arguments.
        kernels: names, or ``(name, options)`` pairs; or a mapping from a label to
            one of these or to a ready NumPyro kernel.
        num_warmup, num_samples, num_chains: of each run.
        seed: of each run.
        progress_bar: whether each run shows one.
        executor: runs kernels at the same time: a ``concurrent.futures`` executor of
            processes, a ``dask.distributed.Client``, or the module ``ray`` after
            ``ray.init()``. Seconds are then comparable only if each has a machine of
            its own.
        timeout: seconds that an executor's kernel may take; then its row says so.
        checkpoint: a folder. The same call goes on there where a crash or an interrupt
            ended it.
        model_args, model_kwargs: as for ``nutfree.sample``.
        coords, dims, log_likelihood, prior, posterior_predictive, constant_data: as
            for ``nutfree.sample``.

    Returns:
        A :class:`Comparison`. A kernel that fails has a row with the reason, and its
        traceback in ``errors``.

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
    from nutfree.hosts.arguments import model_arguments
    from nutfree.hosts.checks import check_settings
    from nutfree.report.check import target_of

    settings: dict[str, Any] = {
        "num_warmup": num_warmup,
        "num_samples": num_samples,
        "num_chains": num_chains,
        "seed": seed,
        "progress_bar": progress_bar,
        "coords": coords,
        "dims": dims,
        "log_likelihood": log_likelihood,
        "prior": prior,
        "posterior_predictive": posterior_predictive,
        "constant_data": constant_data,
    }
    args, kwargs = model_arguments(
        compare, model, args, kwargs, model_args, model_kwargs, settings
    )
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
    target = target_of(model, args, kwargs)
    posterior = Posterior(target)
    posterior.compile_ahead()
    jobs = {
        name: (
            model,
            entry,
            (),
            {
                **settings,
                "model_args": args,
                "model_kwargs": kwargs,
                "checkpoint": folder_of(checkpoint, name),
            },
        )
        for name, entry in entries.items()
    }
    results = run_all(jobs, executor, timeout)
    trees = {k: r for k, r in results.items() if not isinstance(r, Failure)}
    failed = {k: r for k, r in results.items() if isinstance(r, Failure)}
    if not trees:
        reasons = "\n".join(f"- {name} {why.reason}" for name, why in failed.items())
        raise NutfreeError(f"No kernel could run on this model:\n{reasons}")
    specs = {k: s for k, e in entries.items() if (s := spec_of(e)) is not None}
    errors = {name: why.traceback for name, why in failed.items()}
    try:
        verdicts = judge(trees, posterior)
        best, sentence = recommendation(verdicts, specs)
    # whatever happens to the judging, Ctrl-C included, the runs are kept: what has been
    # drawn, perhaps in hours, is in `trees`
    except (Exception, KeyboardInterrupt) as error:
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else repr(error)
        errors["the judging"] = traceback.format_exc()
        verdicts = {name: not_judged(why) for name in trees}
        best = None
        sentence = (
            f"The runs were not judged ({why}). Their draws are in .trees; "
            "nutfree.check(tree, model, ...) judges one of them."
        )
    return Comparison(
        table=_table(entries, verdicts, failed, specs),
        trees=trees,
        best=best,
        recommendation=sentence,
        verdicts=verdicts,
        errors=errors,
        options={name: options_of(entry) for name, entry in entries.items()},
        specs=specs,
        target=target,
        setup=describe(model, args, kwargs, settings),
    )


def recommendation(
    verdicts: Mapping[str, Verdict], specs: Mapping[str, KernelSpec] | None = None
) -> tuple[str | None, str]:
    """The kernel to use and a sentence why.

    Args:
        verdicts: by label, what `judge` found.
        specs: by label, what the registry knows of the kernel.

    Returns:
        ``(name, sentence)``; the name is None where no run can be trusted.
    """
    specs = specs or {}
    good = [name for name, v in verdicts.items() if v.sound and not v.for_means_only]
    sound = {
        name: v.figures
        for name, v in verdicts.items()
        if v.sound and (not good or name in good)
    }
    aside = [
        f"{name} was set aside: {v.problems[0]}."
        for name, v in verdicts.items()
        if v.problems
    ]
    aside += [
        f"{name} was not checked: {', '.join(v.not_checked)}."
        for name, v in verdicts.items()
        if not v.problems and not v.sound
    ]
    aside += [
        f"{name} is {v.for_means_only}."
        for name, v in verdicts.items()
        if v.sound and v.for_means_only
    ]
    noted = [
        f"Look again: {name} {note}, which itself was set aside."
        for name, v in verdicts.items()
        if v.sound
        for note in v.notes
    ]
    if not sound:
        advice = (
            "Run longer and with more chains, or try kernels that "
            "nutfree.recommend(model) names."
        )
        return None, " ".join(["No run can be trusted.", *aside, advice])
    cost = {name: _cost(f, specs.get(name)) for name, f in sound.items()}
    least = min(cost.values())
    close = [name for name in sound if cost[name] * AS_GOOD <= least] or list(sound)
    best = max(close, key=lambda name: _finite(sound[name]["ess_per_grad"]))
    reference = [name for name in close if _is_reference(specs.get(name), name)]
    best = reference[0] if reference else best
    time = sound[best]["seconds_to_400"]
    why = "nothing speaks against its draws"
    if time == time:
        why += f", and 400 effective ones take {number(time)} s"
    others = {name: value for name, value in cost.items() if name != best}
    if others and time == time:
        second = min(others, key=lambda name: others[name])
        why += f" ({second}: {number(sound[second]['seconds_to_400'])} s)"
    return best, " ".join([f"{best}: {why}.", *aside, *noted])


def _cost(figures: Mapping[str, float], spec: KernelSpec | None) -> float:
    """Seconds to 400 effective draws, with what a bias costs."""
    biased = spec is not None and spec.guarantee == "biased"
    seconds = figures["seconds_to_400"]
    return (
        seconds * (EXACT_IS_WORTH if biased else 1.0) if seconds == seconds else 1e300
    )


def _is_reference(spec: KernelSpec | None, name: str) -> bool:
    """Whether it is NumPyro's own kernel, which a user has already."""
    spec = spec or registry.specs().get(name)
    return spec is not None and spec.mcmc_kernel is not None


def _finite(value: float) -> float:
    return value if value == value else float("-inf")


def _table(
    entries: Mapping[str, KernelLike],
    verdicts: Mapping[str, Verdict],
    failed: Mapping[str, Failure],
    specs: Mapping[str, KernelSpec],
) -> "pd.DataFrame":
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    for name in entries:
        if name in failed:
            rows[name] = {"verdict": failed[name].reason}
            continue
        verdict = str(verdicts[name])
        if name in specs and specs[name].guarantee == "biased":
            verdict += " (a biased kernel)"
        rows[name] = {**verdicts[name].figures, "verdict": verdict}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table = table.reindex(columns=[*COLUMNS, "verdict"])
    table.index.name = "kernel"
    return table
