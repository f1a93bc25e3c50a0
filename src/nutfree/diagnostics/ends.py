"""Draws that pile up at the last number before a limit of their support."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpyro import handlers

from nutfree.frontends.sites import base_support, is_simplex
from nutfree.frontends.starts import at_random

#: Share of the draws at the end of the numbers that is worth a word.
MAX_AT_END = 2e-3
#: Spacings between numbers that count as the end.
SPACINGS = 4
#: And multiples of the least number where the limit is zero. A log of shape a has the
#: a-th power of a number below it: beyond 1,000 times the least there is about half as
#: much mass again as is lost for a = 0.05.
LEAST = 1e3


def piled_up(
    posterior: xr.Dataset, model: Callable, args: tuple, kwargs: Mapping[str, Any]
) -> str:
    """Say which latent sites' draws are where the numbers end; empty if none are.

    A posterior may have much of its mass nearer to a limit than the last number before
    it, which is 6e-8 from one and 1e-38 from zero in single precision. All of that is
    drawn as that number, and quantiles are wrong there.
    """
    trace = handlers.trace(at_random(model, 0)).get_trace(*args, **kwargs)
    said = []
    for name, site in trace.items():
        latent = site["type"] == "sample" and not site["is_observed"]
        if not latent or name not in posterior:
            continue
        draws = posterior[name].values
        support = base_support(site["fn"].support)
        on_simplex = is_simplex(support)
        if on_simplex:  # the last share is what the others leave of one
            draws = draws[..., -1]
        for limit in [0.0] if on_simplex else _limits(support):
            size = 1.0 if on_simplex else abs(limit)
            share = float(np.mean(_is_at(draws, limit, size)))
            if share > MAX_AT_END:
                said.append(f"{share:.1%} of the draws of '{name}' at {limit:g}")
    if not said:
        return ""
    if any(posterior[name].dtype == np.float64 for name in posterior):
        advice = "Sample a function of it, such as its logarithm"
    else:
        advice = 'Set jax.config.update("jax_enable_x64", True)'
    return (
        f"Draws are as near to a limit as numbers go: {', '.join(said)}. {advice}, or "
        "do not read quantiles there."
    )


def _limits(support: Any) -> list[float]:
    """Return the limits of a support that are numbers."""
    bounds = (getattr(support, b, None) for b in ("lower_bound", "upper_bound"))
    found = [np.unique(np.asarray(b, float)) for b in bounds if b is not None]
    return [float(b[0]) for b in found if b.size == 1 and np.isfinite(b[0])]


def _is_at(draws: np.ndarray, limit: float, size: float) -> np.ndarray:
    """Say which draws are within some spacings, of numbers of that size, of a limit."""
    if draws.dtype.kind != "f":
        return np.zeros(draws.shape, bool)
    spacing = np.spacing(draws.dtype.type(size)) if size else 0.0
    end = max(SPACINGS * float(spacing), LEAST * float(np.finfo(draws.dtype).tiny))
    return np.abs(draws.astype(np.float64) - limit) <= end
