"""Errors in a model or its data, each refused with what to do instead."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.errors import InvalidData, UnsupportedModel, where_raised


def check_nan(args, kwargs) -> None:
    """Refuse data with NaN, once the model is known not to run on them."""
    named = {**{f"argument {i}": a for i, a in enumerate(args)}, **kwargs}
    for path, leaf in jax.tree_util.tree_leaves_with_path(named):
        is_array = hasattr(leaf, "dtype") and not isinstance(leaf, jax.core.Tracer)
        if is_array and leaf.dtype.kind == "f" and np.any(np.isnan(leaf)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise InvalidData(
                f"The log density is not finite: '{name}' has NaN. Drop or impute "
                "these rows, or mask them with numpyro.handlers.mask."
            )


def _is_numeric(value) -> bool:
    if isinstance(value, bool | int | float):
        return True
    kinds = (jnp.number, jnp.bool_)
    return hasattr(value, "dtype") and any(
        jnp.issubdtype(value.dtype, kind) for kind in kinds
    )


def check_latent(latent) -> None:
    if not latent:
        raise UnsupportedModel(
            "The model has no latent site. Check that numpyro.sample is called without "
            "obs= for what is to be sampled."
        )


def cannot_run(error: Exception, data: Any = ()) -> InvalidData:
    """Make an error of ours out of a model's own, on these arguments of the model."""
    advice = "Check the names and the shapes of the data passed to the model."
    # JAX goes on about how it traces, which is not how the model is written
    what = str(error).split("\n")[0].rstrip(".")
    for kinds, said in _ADVICE:
        if isinstance(error, kinds):
            advice = said
            break
    else:
        table = next((x for x in jax.tree.leaves(data) if _is_pandas(x)), None)
        if table is not None:
            name = type(table).__name__
            advice = (
                f"One of them is a pandas {name}: pass its numbers, {name.lower()}"
                ".to_numpy()."
            )
        else:
            what = str(error).rstrip(".")
        if isinstance(error, ValueError) and _NO_GRADIENT.search(what):
            advice = (
                "Take a kernel that needs no gradient: nutfree.recommend(model, ...) "
                "lists them."
            )
    return InvalidData(
        f"The model cannot be run on these arguments{where_raised(error)}: "
        f"{type(error).__name__}: {what}. {advice}"
    )


def _is_pandas(leaf: Any) -> bool:
    return type(leaf).__module__.partition(".")[0] == "pandas"


_NO_GRADIENT = re.compile("JVP|differentiation|custom_vjp")

#: What to write where a latent's value is asked for before there is one.
_ADVICE: tuple[tuple[type[Exception], str], ...] = (
    (
        jax.errors.TracerArrayConversionError,
        "A latent's value has no NumPy array yet: use jax.numpy, and pass the data as "
        "JAX arrays, jnp.asarray(y), in place of NumPy's or pandas'.",
    ),
    (
        jax.errors.TracerBoolConversionError,
        "A latent's value is not known where the model is traced: in place of `if` "
        "write jnp.where(condition, x, y).",
    ),
    (
        jax.errors.TracerIntegerConversionError,
        "A latent's value is not known where the model is traced: index a JAX array, "
        "jnp.asarray(table)[i], in place of a list or NumPy's.",
    ),
    (
        jax.errors.ConcretizationTypeError,
        "A latent's value is not known where the model is traced: leave out float(), "
        "int() and .item(), and use jax.numpy.",
    ),
)


def check_observed(observed) -> None:
    for name, site in observed.items():
        if not _is_numeric(site["value"]):
            raise InvalidData(
                f"The observed site '{name}' has data of type "
                f"{type(site['value']).__name__}, which are no numbers or no array. "
                "Pass an array of numbers, such as jnp.asarray(y)."
            )
        value, shape = jnp.shape(site["value"]), tuple(site["fn"].shape())
        try:
            fits = jnp.broadcast_shapes(value, shape) in (value, shape)
        except ValueError:
            fits = False
        if not fits:
            raise InvalidData(
                f"The observed site '{name}' has data of shape {value}, but its "
                f"distribution has shape {shape}. Reshape the data, or the parameters "
                "of the distribution, so that they agree."
            )
