"""The registry: one `KernelSpec` per kernel, found by name or by family.

Built-in kernels are listed in `nutfree.kernels.BUILTIN`; other packages add theirs
through the entry-point group `nutfree.kernels`, each entry a `KernelSpec`.
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, get_type_hints

from nutfree.errors import InvalidOption, UnknownKernel
from nutfree.facts import Facts, Fit, unknown
from nutfree.options import NoOptions as NoOptions
from nutfree.options import checked, unknown_option, unread
from nutfree.options import option as option
from nutfree.target import PARTS, Target

if TYPE_CHECKING:
    from nutfree.listing import Listing

GROUP = "nutfree.kernels"
DRAWS = ("chain", "independent", "ensemble")
GUARANTEES = ("exact", "biased")


def _absent(*args: Any, **kwargs: Any) -> Any:
    """In place of the functions of a kernel that NumPyro has already."""
    raise UnknownKernel("NumPyro's own kernels have no BlackJAX form.")


@dataclass(frozen=True)
class KernelSpec:
    """What the registry, the hosts and the documentation know of a kernel.

    Args:
        name: what the user types.
        family: the family it belongs to.
        summary: one line.
        paper: citation or arXiv number.
        init: `init(position, logdensity_fn, rng_key=None, options=Options()) -> State`.
        build_kernel: `build_kernel(options=Options()) -> kernel`, where
            `kernel(rng_key, state, logdensity_fn, **params) -> (State, Info)`.
        warmup: `warmup(options=Options()) -> Warmup`, see `nutfree.warmup`.
        options: frozen dataclass of options, made with `option`. The three functions
            above take an instance of it. Its tuned fields are parameters of the
            kernel, None unless the user has fixed them.
        needs: parts of `Target` that the kernel cannot do without.
        draws: "chain", "independent" (a transition is an independent draw) or
            "ensemble" (a transition emits a member of an ensemble).
        guarantee: "exact" (the posterior is the stationary law) or "biased".
        bias: for a biased kernel, which option reduces the bias, and what shows it.
        bias_order: for a biased kernel, the order of its bias in an option or
            parameter, by the name of that; -inf where it falls geometrically.
        gradients: full-data gradients of a transition, a number or
            `gradients(options, params, target) -> number`; None where it depends on
            the draws. A kernel that uses no gradient counts density evaluations.
        suits: `suits(facts) -> Fit`, how promising the kernel is on a posterior of
            which these `nutfree.facts.Facts` are known, and why.
        concerns: `concerns(params) -> list of str`, what the first parameters, those
            that the user fixed among them, say against a run; the host warns of it.
        findings: `findings(params) -> dict`, what else warm-up found of one chain that
            a user may want to read, by name, besides the params that are single
            numbers.
        exact_form: name of the exact kernel that `exact=True` stands for, where there
            is one for the same posteriors.
        collects: fields of Info that the hosts collect with every draw. The report
            reads `log_importance` and `proposal_log_importance`, see
            `nutfree.diagnostics.evidence`, and `predicted_inflation`.
        only_for_warmup: fields of Info, arrays that warm-up learns from, which no host
            keeps from one transition to the next.
        uses_gradient: False for a kernel that only evaluates the log density.
        recommended: True for the member that the family's name stands for.
        scheme: `scheme(options, owners) -> who takes part in a round`, for a kernel of
            several owners that can run where they are, see `nutfree.hosts.flower`.
        mcmc_kernel: a NumPyro `MCMCKernel` class where NumPyro has the kernel
            already; then the three functions are not needed.
    """

    name: str
    family: str
    summary: str
    paper: str
    init: Callable = _absent
    build_kernel: Callable = _absent
    warmup: Callable = _absent
    options: type = NoOptions
    needs: tuple[str, ...] = ()
    draws: str = "chain"
    guarantee: str = "exact"
    bias: str = ""
    bias_order: Mapping[str, float] = field(default_factory=dict)
    gradients: float | Callable[[Any, dict, Target], Any] | None = None
    suits: Callable[[Facts], Fit] = unknown
    concerns: Callable[[dict], list[str]] | None = None
    findings: Callable[[dict], dict[str, Any]] | None = None
    exact_form: str | None = None
    collects: tuple[str, ...] = ()
    only_for_warmup: tuple[str, ...] = ()
    uses_gradient: bool = True
    recommended: bool = False
    scheme: Callable | None = None
    mcmc_kernel: Callable | None = None

    def checked(self, options: Mapping[str, Any]) -> Any:
        """The options object, with `options` checked by name, type and range.

        Raises:
            InvalidOption: for a misspelt, ill-typed or out-of-range option.
        """
        known = {f.name: f for f in fields(self.options)}
        for name in options:
            if name not in known:
                listed = [*known, "exact"] if self.exact_form else known
                raise InvalidOption(unknown_option(self.name, name, listed))
        hints = get_type_hints(self.options)
        values = {
            name: checked(self.name, known[name], value, hints[name])
            for name, value in options.items()
        }
        return self.options(**values)

    def fixed(self, options: Any) -> dict[str, Any]:
        """The tuned parameters that the user has fixed, by name."""
        tuned = [f.name for f in fields(self.options) if f.metadata["tuned"]]
        values = {name: getattr(options, name) for name in tuned}
        return {name: value for name, value in values.items() if value is not None}


_registered: dict[str, KernelSpec] = {}


def register(spec: KernelSpec) -> KernelSpec:
    """Add a kernel for this process, or replace the one of the same name.

    Raises:
        InvalidOption: if `draws`, `guarantee` or `needs` is not a known word, or if
            nothing reads one of the options.
    """
    if not isinstance(spec, KernelSpec):
        raise InvalidOption(f"{spec!r} is no kernel; pass a nutfree.KernelSpec.")
    checks = (("draws", (spec.draws,), DRAWS), ("needs", spec.needs, PARTS))
    for what, values, known in (*checks, ("guarantee", (spec.guarantee,), GUARANTEES)):
        for value in values:
            if value not in known:
                raise InvalidOption(
                    f"KernelSpec '{spec.name}' has {what}={value!r}; "
                    f"write one of {', '.join(known)}."
                )
    if spec.mcmc_kernel is None and (ignored := _unread(spec)):
        raise InvalidOption(
            f"Nothing reads {', '.join(map(repr, ignored))} of the kernel "
            f"'{spec.name}'. Read it in init, build_kernel or warmup, or leave it out "
            "of the options."
        )
    _registered[spec.name] = spec
    return spec


def _unread(spec: KernelSpec) -> list[str]:
    return unread(spec.options, spec.init, spec.build_kernel, spec.warmup)


@cache
def _load() -> None:
    """Register the built-in kernels and those of installed packages, once."""
    for name in importlib.import_module("nutfree.kernels").BUILTIN:
        module = importlib.import_module(f"nutfree.kernels.{name}")
        for spec in getattr(module, "SPECS", None) or (module.SPEC,):
            _registered.setdefault(spec.name, register(spec))
    for entry in entry_points(group=GROUP):
        try:
            register(entry.load())
        # importing a stranger's package can raise whatever it likes, and must not take
        # away the kernels of every other; the warning names it and its error
        except Exception as error:
            warnings.warn(
                f"The kernel '{entry.name}' ({entry.value}) of another package cannot "
                f"be loaded: {type(error).__name__}: {error}",
                stacklevel=2,
            )


def specs() -> dict[str, KernelSpec]:
    """Every registered kernel by name."""
    _load()
    return dict(_registered)


def get(name: str) -> KernelSpec:
    """The kernel of this name, or the recommended member of the family of this name.

    Raises:
        UnknownKernel: with the nearest name.
    """
    known = specs()
    if not isinstance(name, str):
        raise UnknownKernel(
            f"A kernel is given as {name!r}; write its name, such as 'multiscale'. "
            "nutfree.kernels() lists all."
        )
    if name in known:
        return known[name]
    families = {s.family: s for s in known.values() if s.recommended}
    if name in families:
        return families[name]
    names = [*known, *families]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UnknownKernel(
        f"There is no kernel or family '{name}'.{hint} nutfree.kernels() lists all."
    )


def resolve(
    name: str | KernelSpec, options: Mapping[str, Any]
) -> tuple[KernelSpec, dict]:
    """The kernel that a name and options stand for, and the options left for it.

    With `exact=True` it is the kernel's exact form.

    Raises:
        UnknownKernel: with the nearest name.
        InvalidOption: if `exact` is neither True nor False.
    """
    spec, options = name if isinstance(name, KernelSpec) else get(name), dict(options)
    if spec.exact_form is None or "exact" not in options:
        return spec, options
    exact = options.pop("exact")
    if not isinstance(exact, bool):
        raise InvalidOption(
            f"Option 'exact' of the kernel '{spec.name}' is {exact!r}; write True or "
            "False."
        )
    return (get(spec.exact_form) if exact else spec), options


def kernels() -> Listing:
    """A table of every registered kernel, indexed by name.

    Returns:
        A data frame with columns guarantee, summary, needs, family, draws, paper.
    """
    from nutfree.listing import Listing

    rows = {
        s.name: (s.guarantee, s.summary, ", ".join(s.needs), s.family, s.draws, s.paper)
        for s in specs().values()
    }
    columns = ["guarantee", "summary", "needs", "family", "draws", "paper"]
    listing = Listing.from_dict(rows, orient="index", columns=columns)
    return listing.rename_axis("name")
