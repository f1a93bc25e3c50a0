"""Checks of a call: what is wrong is refused, with what to write instead."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer import HMC

from nutfree.errors import InvalidOption
from nutfree.frontends.arguments import constant
from nutfree.frontends.numpyro import analyse
from nutfree.registry import KernelSpec
from nutfree.target import Target

CHAIN_METHODS = ("vectorized", "sequential", "parallel")


def check_settings(
    *,
    num_warmup: Any,
    num_samples: Any,
    num_chains: Any,
    seed: Any,
    thinning: Any = 1,
    chain_method: Any = None,
    draws_at_once: Any = 1,
) -> None:
    """Refuse numbers of transitions, draws and chains that make no run.

    Raises:
        InvalidOption: with the smallest number that does.
    """
    least = {
        "num_warmup": (num_warmup, 0),
        "num_samples": (num_samples, 1),
        "num_chains": (num_chains, 1),
        "thinning": (thinning, 1),
        "draws_at_once": (draws_at_once, 1),
    }
    for name, (value, bound) in least.items():
        if not _is_whole(value) or value < bound:
            raise InvalidOption(
                f"{name} is {value!r}; write a whole number that is at least {bound}."
            )
    if thinning > num_samples:
        raise InvalidOption(
            f"thinning={thinning} leaves none of num_samples={num_samples} draws; "
            "write a larger num_samples or a smaller thinning."
        )
    if not _is_whole(seed):
        raise InvalidOption(f"seed is {seed!r}; write a whole number, such as 0.")
    if chain_method is not None and chain_method not in CHAIN_METHODS:
        listed = ", ".join(repr(method) for method in CHAIN_METHODS)
        raise InvalidOption(
            f"chain_method is {chain_method!r}; write one of {listed}, or leave it out."
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_posterior(name: str, model: Any, potential_fn: Any, init_strategy: Any):
    """Refuse what is neither a model nor a density.

    Raises:
        InvalidOption: with what to write.
    """
    if (model is None) == (potential_fn is None):
        raise InvalidOption(
            "Pass either a model or potential_fn=..., and not both: "
            f'nutfree.kernel("{name}", model), the model itself and not what a call '
            "of it returns."
        )
    given: tuple[tuple[str, Any, str], ...] = (
        ("model", model, "a NumPyro model, a function that calls numpyro.sample"),
        ("potential_fn", potential_fn, "a function, minus the log density"),
        ("init_strategy", init_strategy, "one of numpyro.infer.init_to_..."),
    )
    for what, value, wanted in given:
        if value is not None and not callable(value):
            raise InvalidOption(
                f"The {what} of the kernel '{name}' is {value!r}; pass {wanted}."
            )


def refuse_model_options(spec: KernelSpec, options: Mapping[str, Any]) -> None:
    """Refuse options that say how a model is read, where there is none.

    Raises:
        InvalidOption: for the first of them that is given.
    """
    for field in fields(spec.options):
        if field.metadata["of_model"] and options.get(field.name) is not None:
            raise InvalidOption(
                f"Option '{field.name}' of the kernel '{spec.name}' is about a NumPyro "
                "model, and here is a density. Leave it out, or build the kernel from "
                f'the model: nutfree.kernel("{spec.name}", model, '
                f"{field.name}={options[field.name]!r})."
            )


def check_init_params(
    position: Any, shapes: Mapping[str, tuple[int, ...]] | None, num_chains: int | None
) -> None:
    """Refuse starting points that are not those of the sampling space.

    Args:
        position: what the user passes.
        shapes: by latent site, its shape on the sampling space; None where not known.
        num_chains: the leading axis that every leaf has, or None for a single chain.

    Raises:
        InvalidOption: with the sites or the shape to write.
    """
    chains = () if num_chains is None else (num_chains,)
    for path, leaf in jax.tree_util.tree_leaves_with_path(position):
        if jnp.shape(leaf)[: len(chains)] != chains:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            where = f" of '{name}'" if name else ""
            raise InvalidOption(
                f"init_params{where} has shape {jnp.shape(leaf)}; give it a leading "
                f"axis of the {num_chains} chains."
            )
    if shapes is None:
        return
    if not isinstance(position, Mapping) or set(position) != set(shapes):
        given = sorted(position) if isinstance(position, Mapping) else position
        raise InvalidOption(
            f"init_params gives {given}, and the latent sites are {sorted(shapes)}; "
            "write a dict with each of them, on the sampling space."
        )
    for name, shape in shapes.items():
        if jnp.shape(position[name]) != chains + shape:
            raise InvalidOption(
                f"init_params of '{name}' has shape {jnp.shape(position[name])}; on "
                f"the sampling space write {chains + shape}."
            )


def check_fields(state: Any, fields: Any, has: Callable[[Any, str], bool]) -> None:
    """Refuse fields that the kernel's state does not have.

    Raises:
        InvalidOption: with those that it has.
    """
    if isinstance(fields, str):
        raise InvalidOption(
            f"extra_fields is {fields!r}; write a tuple of names, ({fields!r},)."
        )
    for name in fields:
        if not isinstance(name, str) or not has(state, name):
            listed = ", ".join(getattr(state, "_fields", ()))
            raise InvalidOption(
                f"extra_fields has {name!r}, which this kernel's state has not; its "
                f"fields: {listed}."
            )


def explain(kernel: Any, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Say in our words why NumPyro's own kernel could not begin on a model.

    Raises:
        InvalidData, UnsupportedModel, NoFiniteStart: if the model or its arguments
            are why; nothing otherwise.
    """
    model = getattr(kernel, "model", None)
    if not isinstance(kernel, HMC) or model is None or isinstance(model, Target):
        return
    start = analyse(model, args, kwargs).starter(constant(args, kwargs))
    start(jax.random.key(0))
