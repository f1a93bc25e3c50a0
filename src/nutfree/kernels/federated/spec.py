"""What the specs of the federated kernels have in common."""

from collections.abc import Callable
from functools import partial
from typing import Any

from nutfree.facts import several_owners
from nutfree.kernels.federated.family import (
    COLLECTS,
    concerns,
    federated_gradients,
    federated_kernel,
    init,
)
from nutfree.kernels.federated.owners import Owners
from nutfree.kernels.federated.rounds import Scheme
from nutfree.kernels.federated.warmup import federated_warmup
from nutfree.registry import KernelSpec
from nutfree.warmup import Warmup

BIAS = (
    "variances are too large by order step_size (or max_inflation); "
    "predicted_inflation and the kernel Stein discrepancy show it"
)
#: Of a kernel without surrogates, before the name of the one that has them.
BIAS_OF_BASELINE = (
    "where owners differ, means and variances are off, the more the larger K: a "
    "baseline, see "
)


def federated_spec(
    scheme: Callable[[Any, Owners], Scheme], options: type, **differences: Any
) -> KernelSpec:
    """The spec of the kernel with this scheme, from what differs between kernels."""
    default = options()

    def build_kernel(options=default):
        """Return the kernel, see `family.federated_kernel`."""
        return federated_kernel(partial(scheme, options))

    def warmup(options=default) -> Warmup:
        return federated_warmup(partial(scheme, options), options)

    def gradients(options, params, target):
        return federated_gradients(partial(scheme, options), params, target)

    shared: dict[str, Any] = {
        "family": "federated",
        "init": init,
        "build_kernel": build_kernel,
        "warmup": warmup,
        "options": options,
        "needs": ("shards",),
        "suits": several_owners,
        "guarantee": "biased",
        "bias": BIAS,
        "bias_order": {"step_size": 1},
        "gradients": gradients,
        "concerns": concerns,
        "collects": COLLECTS,
        "scheme": scheme,
    }
    return KernelSpec(**{**shared, **differences})
