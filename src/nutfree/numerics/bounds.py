"""Bounds of a site that depend on another one, which NumPyro's HMC does not follow."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
from numpyro import handlers
from numpyro.infer import HMC
from numpyro.infer.util import constrain_fn


def constrain_by_own_bounds(
    kernel: HMC, model_args: tuple, model_kwargs: Mapping | None
) -> Callable | None:
    """Return what constrains a draw by the bounds that it has itself.

    NumPyro does so where it sees such bounds, and inside of `to_event` it does not:
    there it constrains every draw by the bounds at the start.

    Returns:
        None if the kernel's own `postprocess_fn` is right.
    """
    bounds = jax.tree.leaves(kernel._inv_transforms)
    if kernel._model is None or all(isinstance(b, int | float) for b in bounds):
        return None
    return partial(
        constrain_fn,
        handlers.seed(kernel._model, 0),
        model_args,
        dict(model_kwargs or {}),
        return_deterministic=True,
    )
