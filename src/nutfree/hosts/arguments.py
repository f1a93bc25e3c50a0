"""Which arguments of a call are the model's, and which are settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

from numpyro.infer.mcmc import MCMCKernel

from nutfree.errors import InvalidOption, refuse_unknown


def model_arguments(
    function: Callable,
    model: Any,
    args: tuple,
    kwargs: Mapping[str, Any],
    model_args: tuple | None,
    model_kwargs: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> tuple[tuple, dict[str, Any]]:
    """Return the model's arguments from a call that mixes them with settings.

    Args:
        function: what was called; its keywords are the settings.
        model: a NumPyro model, a kernel of one, or None.
        args, kwargs: given in the plain way.
        model_args, model_kwargs: given apart, or None.
        settings: the values of the settings.

    Raises:
        InvalidOption: for arguments given in both ways, a setting that the model has
            an argument of the name of, or a keyword that neither has.
    """
    if args and model_args is not None:
        raise InvalidOption(
            "The model's arguments are given in two ways. Write all of them in "
            "model_args=(...), or none."
        )
    apart = dict(model_kwargs or {})
    if both := sorted(apart.keys() & kwargs.keys()):
        raise InvalidOption(
            f"The model's argument '{both[0]}' is given twice. Leave it out of "
            "model_kwargs, or write it nowhere else."
        )
    args = tuple(args if model_args is None else model_args)
    wanted = _parameters(model)
    if wanted is not None:
        known = signature(function).parameters
        positional = [
            name
            for name, p in wanted.items()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        given = {*apart, *positional[: len(args)]}
        for name in wanted:
            is_setting = name in settings and settings[name] != known[name].default
            if is_setting and name not in given:
                raise InvalidOption(
                    f"'{name}' is a setting of nutfree.{function.__name__} and an "
                    f"argument of the model. Write model_kwargs={{'{name}': ...}} for "
                    "the model's."
                )
        if not any(p.kind is Parameter.VAR_KEYWORD for p in wanted.values()):
            refuse_unknown(
                f"nutfree.{function.__name__}",
                [name for name in kwargs if name not in wanted],
                known,
                ", and neither has the model",
            )
    return args, {**kwargs, **apart}


def _parameters(model: Any) -> Mapping[str, Parameter] | None:
    """Return the parameters of a model inside of its handlers; None if not known."""
    if isinstance(model, MCMCKernel):
        model = getattr(model, "model", None)
    while hasattr(model, "fn") and not hasattr(model, "__code__"):
        model = model.fn
    if not callable(model):
        return None
    try:
        return signature(model).parameters
    except (TypeError, ValueError):
        return None
