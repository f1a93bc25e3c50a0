"""The chain of a model without latent sites, as NumPyro's NUTS has one.

It stands still, and its draws are the deterministic sites of the model, if any. No
gradient is spent.
"""

from collections import namedtuple
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.hosts import chain
from nutfree.registry import KernelSpec
from nutfree.target import Position
from nutfree.warmup import AdaptationState, Warmup


@dataclass(frozen=True)
class Options:
    pass


class StillState(NamedTuple):
    position: Position
    logdensity: jax.Array


def _init(position, logdensity_fn, rng_key=None, options=None) -> StillState:
    return StillState(position, logdensity_fn(position))


def _warmup(options=None) -> Warmup:
    return Warmup(
        lambda rng_key, position, target, num_steps: AdaptationState({}, position),
        lambda adapt, state, info: adapt,
        lambda adapt: adapt.params,
    )


@cache
def _info_of(fields: tuple[str, ...]) -> type:
    return namedtuple("StillInfo", fields)


def algorithm_for(spec: KernelSpec) -> chain.Algorithm:
    """Return what takes the place of a kernel where there is nothing to sample."""
    fields = ("acceptance_rate", "is_divergent", "num_grad_evals", *spec.collects)
    info_of = _info_of(fields)

    def build_kernel(options: Any = None):
        def kernel(rng_key, state, logdensity_fn, **params):
            nan = jnp.asarray(jnp.nan)
            found = dict.fromkeys(fields, nan)
            found |= {
                "acceptance_rate": jnp.asarray(1.0),
                "is_divergent": jnp.asarray(False),
                "num_grad_evals": jnp.asarray(0.0),
            }
            return state, info_of(**found)

        return kernel

    still = KernelSpec(
        name=spec.name,
        family=spec.family,
        summary=spec.summary,
        paper=spec.paper,
        init=_init,
        build_kernel=build_kernel,
        warmup=_warmup,
        options=Options,
        guarantee="exact",
    )
    return chain.algorithm(still, {})
