"""Discrete latent sites that are summed out of the density, as NumPyro's NUTS does.

A site declared `infer={"enumerate": "parallel"}` takes every value of its support at
once, along a dimension of its own, and funsor sums the density over them (Obermeyer et
al. 2019, arXiv 1902.03210), which keeps what plates have made independent apart.
"""

from collections.abc import Callable, Mapping
from typing import Any

from numpyro.infer.util import potential_energy

from nutfree.errors import UnsupportedModel, needed
from nutfree.target import LogDensity


def summed_out(latent: Mapping[str, Any], allowed: bool = True) -> tuple[str, ...]:
    """Return the names of the discrete sites to sum out.

    Args:
        latent: the latent sites of a trace.
        allowed: whether sites can be summed out at all.

    Raises:
        UnsupportedModel: for a discrete site that is not declared so, or has infinitely
            many values.
        NutfreeError: if funsor is not installed.
    """
    found = []
    for name, site in latent.items():
        fn = site["fn"]
        if not fn.support.is_discrete:
            continue
        declared = site["infer"].get("enumerate") == "parallel"
        if not (declared and fn.has_enumerate_support and allowed):
            way = "Sum it out, for instance with dist.MixtureSameFamily"
            if fn.has_enumerate_support and allowed:
                way = (
                    "Write numpyro.sample(..., infer={'enumerate': 'parallel'}) to "
                    "have it summed out"
                )
            raise UnsupportedModel(
                f"The latent site '{name}' is discrete ({type(fn).__name__}), and "
                f"these kernels need a density. {way}, or sample it in turn with the "
                "others: numpyro.infer.gibbs.Gibbs([(DiscreteGibbs(model), "
                f"['{name}']), (nutfree.kernel(..., model), None)])."
            )
        needed("funsor", f"Summing out the discrete site '{name}'", "discrete")
        found.append(name)
    return tuple(found)


def max_plate_nesting(trace: Mapping[str, Any]) -> int:
    """Return how many dimensions from the right the plates of a model take."""
    frames = [f for s in trace.values() for f in s.get("cond_indep_stack", ())]
    return -min((frame.dim for frame in frames if frame.dim is not None), default=0)


def summed_logdensity(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], nesting: int
) -> LogDensity:
    """Return the log density on the sampling space, discrete sites summed out.

    Args:
        nesting: see `max_plate_nesting`.
    """
    from numpyro.contrib.funsor import enum

    over_all = enum(model, -nesting - 1)
    return lambda position: (
        -potential_energy(over_all, args, kwargs, position, enum=True)
    )
