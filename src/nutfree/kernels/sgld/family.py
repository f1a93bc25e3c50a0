"""What the specs of the stochastic-gradient kernels have in common."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.facts import many_rows
from nutfree.kernels.sgld.stochastic import (
    Dynamics,
    StochasticOptions,
    batch_size_of,
    chosen_estimator,
    init_for,
    kernel_builder,
)
from nutfree.kernels.sgld.warmup import warmup_builder
from nutfree.registry import KernelSpec

BIAS = (
    "variances are too large by order step_size (or max_inflation), and less with "
    "a larger batch_size; predicted_inflation and the kernel Stein discrepancy show it"
)


def stochastic_spec(
    dynamics: Dynamics, options: type = StochasticOptions, **differences: Any
) -> KernelSpec:
    """The spec of the kernel with these dynamics, from what differs between kernels."""
    default = options()
    shared: dict[str, Any] = {
        "family": "sgld",
        "init": init_for(dynamics, default),
        "build_kernel": kernel_builder(dynamics, default),
        "warmup": warmup_builder(dynamics, default),
        "options": options,
        "needs": ("minibatch",),
        "collects": ("predicted_inflation",),
        "suits": many_rows,
        "guarantee": "biased",
        "bias": BIAS,
        "bias_order": {"step_size": 1},
        "gradients": gradients_of(dynamics),
    }
    return KernelSpec(**{**shared, **differences})


def gradients_of(
    dynamics: Dynamics, estimator_of: Callable = chosen_estimator
) -> Callable:
    """`KernelSpec.gradients`: steps times what the estimator spends on one."""

    def gradients(options, params, target):
        num_data = target.minibatch.num_data
        dim = ravel_pytree(target.position)[0].size
        batch_size = batch_size_of(options, num_data, dim)
        settings = {name: params.get(name, v) for name, v in dynamics.settings.items()}
        noise = jnp.max(jnp.asarray(params.get("gradient_noise", 0.0)))
        num_steps = dynamics.steps_of(
            params.get("num_steps", 0), params["step_size"], noise, settings
        )
        return num_steps * estimator_of(options).cost(batch_size, num_data)

    return gradients
