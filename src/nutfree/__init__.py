"""MCMC kernels for the posteriors NUTS is not made for, on the NumPyro model as it is.

A kernel is passed to NumPyro's `MCMC` in place of `NUTS` (`nutfree.kernel`), or called
like a BlackJAX algorithm (`nutfree.multalmc` and so on). `nutfree.kernels()` lists
them, `nutfree.compare` says whether the change was worth it.
"""

from importlib import import_module
from importlib.metadata import version

import nutfree.kernels  # noqa: F401  first: the function `kernels` takes its name
from nutfree.errors import (
    CheckpointMismatch,
    InvalidData,
    InvalidOption,
    MissingCapability,
    NoFiniteStart,
    NutfreeError,
    UnknownKernel,
    UnsupportedModel,
)
from nutfree.frontends.blackbox import blackbox
from nutfree.frontends.composite import composite
from nutfree.frontends.disk import rows
from nutfree.frontends.federated import federated
from nutfree.frontends.handlers import full_data
from nutfree.frontends.nonsmooth import nonsmooth
from nutfree.frontends.numpyro import model_target
from nutfree.hosts.blackjax import api as _api
from nutfree.hosts.checkpoint import read_checkpoint
from nutfree.hosts.cluster import gather_chains
from nutfree.hosts.kernel import kernel
from nutfree.hosts.sample import sample
from nutfree.numerics import compilation_cache, terms
from nutfree.registry import KernelSpec, kernels, option, register
from nutfree.target import Minibatch, Prior, Split, Target, as_target

__version__ = version("nutfree")

compilation_cache.turn_on()

__all__ = [
    "CheckpointMismatch",
    "InvalidData",
    "InvalidOption",
    "KernelSpec",
    "Minibatch",
    "MissingCapability",
    "NoFiniteStart",
    "NutfreeError",
    "Prior",
    "Split",
    "Target",
    "UnknownKernel",
    "UnsupportedModel",
    "as_target",
    "blackbox",
    "check",
    "compare",
    "composite",
    "cross_check",
    "federated",
    "full_data",
    "gather_chains",
    "kernel",
    "kernels",
    "model_target",
    "nonsmooth",
    "option",
    "read_checkpoint",
    "recommend",
    "register",
    "rows",
    "sample",
    "terms",
    "to_arviz",
]


_REPORT = ("check", "compare", "cross_check", "recommend", "to_arviz")


def __dir__() -> list[str]:
    from nutfree.registry import specs

    own = [name for name, spec in specs().items() if spec.mcmc_kernel is None]
    return sorted({*globals(), *__all__, *(n for n in own if n.isidentifier())})


def __getattr__(name: str):
    """The report, imported when used, and `nutfree.<kernel>` in BlackJAX's form."""
    if name in _REPORT:
        return getattr(import_module("nutfree.report"), name)
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return _api(name)
    except UnknownKernel as error:
        message = f"module 'nutfree' has no attribute '{name}'. {error}"
        raise AttributeError(message) from None
