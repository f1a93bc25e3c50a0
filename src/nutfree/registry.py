"""The registry: one `KernelSpec` per kernel, found by name or by family.

Built-in kernels are listed in `nutfree.kernels.BUILTIN`; other packages add theirs
through the entry-point group `nutfree.kernels`, each entry a `KernelSpec`.
"""

from __future__ import annotations

import difflib
import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache, partial
from importlib.metadata import entry_points
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from nutfree.errors import InvalidOption, UnknownKernel
from nutfree.facts import Facts, Fit, unknown
from nutfree.target import PARTS, Target

if TYPE_CHECKING:
    import pandas

GROUP = "nutfree.kernels"
DRAWS = ("chain", "independent", "ensemble")
GUARANTEES = ("exact", "biased")


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[str, ...] | None = None,
    tuned: bool = False,
    of_model: bool = False,
    needs_fixed_rows: tuple[str, ...] = (),
) -> Any:
    """A field of a kernel's options dataclass.

    Args:
        default: a value that works; None where warm-up finds the value.
        help: one line.
        ge, gt, le, lt: the range that a number must lie in.
        choices: the words that a string must be one of.
        tuned: True for a traced parameter of the kernel. Warm-up chooses it unless
            the user gives a value, which is then kept as it is.
        of_model: True for one that says how the host reads a NumPyro model; it is
            refused where there is no model.
        needs_fixed_rows: values for which the kernel remembers something of each row
            by its number; they are refused where rows are read from disk.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata = {
        "help": help,
        "bounds": bounds,
        "choices": choices,
        "tuned": tuned,
        "of_model": of_model,
        "needs_fixed_rows": needs_fixed_rows,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class NoOptions:
    """The options of a kernel that has none."""


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
        uses_gradient: False for a kernel that only evaluates the log density.
        recommended: True for the member that the family's name stands for.
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
    uses_gradient: bool = True
    recommended: bool = False
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
                raise InvalidOption(_unknown_option(self.name, name, listed))
        hints = get_type_hints(self.options)
        values = {
            name: _checked(self.name, known[name], value, hints[name])
            for name, value in options.items()
        }
        return self.options(**values)

    def fixed(self, options: Any) -> dict[str, Any]:
        """The tuned parameters that the user has fixed, by name."""
        tuned = [f.name for f in fields(self.options) if f.metadata["tuned"]]
        values = {name: getattr(options, name) for name in tuned}
        return {name: value for name, value in values.items() if value is not None}


def _unknown_option(kernel: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(sorted(known)) or "none"
    return f"The kernel '{kernel}' has no option '{name}'.{hint} Its options: {listed}."


def _checked(kernel: str, spec: Field, value: Any, hint: Any) -> Any:
    """`value` if it fits the option's type and range; numbers are converted."""
    where = f"Option '{spec.name}' of the kernel '{kernel}'"
    if value is None:
        if spec.default is None:
            return None
        raise InvalidOption(f"{where} must not be None; its default is {spec.default}.")
    kinds = get_args(hint) or (hint,)
    choices = spec.metadata["choices"]
    if choices is not None and isinstance(value, str):
        if value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            listed = ", ".join(repr(c) for c in choices)
            raise InvalidOption(f"{where} is {value!r}; write one of {listed}.{hint}")
        return value
    if bool in kinds or isinstance(value, bool):
        if bool in kinds and isinstance(value, bool):
            return value
        wanted = "True or False" if bool in kinds else "a number"
        raise InvalidOption(
            f"{where} is {value!r}; write {wanted} ({spec.metadata['help']})."
        )
    if int in kinds and float not in kinds:
        if _no_number(value) or not float(value).is_integer():
            raise InvalidOption(f"{where} is {value!r}; write a whole number.")
        value = int(value)
    elif float in kinds:
        if _no_number(value):
            raise InvalidOption(f"{where} is {value!r}; write a number.")
        value = float(value)
    elif str in kinds and not isinstance(value, str):
        raise InvalidOption(f"{where} is {value!r}; write a string.")
    _check_range(where, spec.metadata["bounds"], value)
    return value


def _no_number(value: Any) -> bool:
    """True unless `value` is, or is an array that holds, one finite real number."""
    try:
        finite = math.isfinite(value)
    except (TypeError, ValueError):
        return True
    return isinstance(value, str) or not finite


_SIGNS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _check_range(where: str, bounds: Mapping[str, float | None], value: Any) -> None:
    within = {
        "ge": lambda v, b: v >= b,
        "gt": lambda v, b: v > b,
        "le": lambda v, b: v <= b,
        "lt": lambda v, b: v < b,
    }
    set_bounds = {k: b for k, b in bounds.items() if b is not None}
    if set_bounds and not all(within[k](value, b) for k, b in set_bounds.items()):
        wanted = " and ".join(f"{_SIGNS[k]} {b:g}" for k, b in set_bounds.items())
        raise InvalidOption(f"{where} is {value!r}; write a number {wanted}.")


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
    if spec.mcmc_kernel is None and (unread := _unread_options(spec)):
        raise InvalidOption(
            f"Nothing reads {', '.join(map(repr, unread))} of the kernel "
            f"'{spec.name}'. Read it in init, build_kernel or warmup, or leave it out "
            "of the options."
        )
    _registered[spec.name] = spec
    return spec


def _unread_options(spec: KernelSpec) -> list[str]:
    """Options that no code which the spec's functions can reach has the name of."""
    read, arguments = _names_in(spec.init, spec.build_kernel, spec.warmup)
    return [
        f.name
        for f in fields(spec.options)
        if f.name not in (read | arguments if f.metadata["tuned"] else read)
        and not f.metadata["of_model"]
    ]


def _names_in(*functions: Any) -> tuple[set[str], set[str]]:
    """What functions, and those of their own package that they use, mention.

    Returns:
        `(names, variables)`: globals and attributes, and arguments and local variables.
    """
    names: set[str] = set()
    variables: set[str] = set()
    seen: set[int] = set()
    pending = list(functions)
    while pending:
        found = pending.pop()
        if isinstance(found, partial):
            pending += [found.func, *found.args, *found.keywords.values()]
            continue
        if isinstance(found, tuple):
            pending += found
            continue
        code = (
            found if isinstance(found, CodeType) else getattr(found, "__code__", None)
        )
        if code is None or id(found) in seen:
            continue
        seen.add(id(found))
        names.update(code.co_names)
        variables.update(code.co_varnames)
        pending += [const for const in code.co_consts if isinstance(const, CodeType)]
        if isinstance(found, FunctionType) and not _is_foreign(found):
            pending += [cell.cell_contents for cell in found.__closure__ or ()]
            pending += [found.__globals__.get(name) for name in _all_names(code)]
    return names, variables


def _all_names(code: CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*map(_all_names, inner))


def _is_foreign(function: FunctionType) -> bool:
    package = (function.__module__ or "").split(".")[0]
    return package in {"jax", "jaxlib", "numpy", "numpyro", "blackjax", "optax"}


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


def kernels() -> pandas.DataFrame:
    """A table of every registered kernel, indexed by name.

    Returns:
        A data frame with columns family, summary, paper, needs, draws, guarantee.
    """
    import pandas as pd

    rows = [
        (s.name, s.family, s.summary, s.paper, ", ".join(s.needs), s.draws, s.guarantee)
        for s in specs().values()
    ]
    columns = ["name", "family", "summary", "paper", "needs", "draws", "guarantee"]
    return pd.DataFrame(rows, columns=columns).set_index("name")
