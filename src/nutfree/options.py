"""Options of a kernel: declared once, checked by name, type and range, and read."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import partial
from types import CodeType, FunctionType
from typing import Any, get_args

from nutfree.errors import InvalidOption


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


def unknown_option(kernel: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(sorted(known)) or "none"
    return f"The kernel '{kernel}' has no option '{name}'.{hint} Its options: {listed}."


def checked(kernel: str, spec: Field, value: Any, hint: Any) -> Any:
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


def unread(options: type, *functions: Any) -> list[str]:
    """Options that no code which these functions can reach has the name of."""
    read, arguments = _names_in(*functions)
    return [
        f.name
        for f in fields(options)
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
