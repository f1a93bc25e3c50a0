"""NumPyro's No-U-Turn sampler: what every other kernel is compared with.

Reference: Hoffman and Gelman, JMLR 15, 2014.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpyro.infer
from numpyro.util import is_prng_key

from nutfree.facts import smooth
from nutfree.numerics.bounds import constrain_by_own_bounds
from nutfree.registry import KernelSpec, option
from nutfree.target import Position, Target


class NUTS(numpyro.infer.NUTS):
    """NumPyro's NUTS, whose draws follow bounds that depend on another site.

    A `Target` may stand in the place of the model; chains then start from its position.
    """

    def __init__(self, model=None, potential_fn=None, **settings):
        self._target = model if isinstance(model, Target) else None
        if self._target is not None:
            model, potential_fn = None, partial(_potential, self._target)
        super().__init__(model, potential_fn, **settings)

    def init(
        self, rng_key, num_warmup, init_params=None, model_args=(), model_kwargs=None
    ):
        if self._target is not None and init_params is None:
            chains = rng_key.shape[:1] if not is_prng_key(rng_key) else ()
            init_params = jax.tree.map(
                lambda x: jnp.broadcast_to(x, (*chains, *jnp.shape(x))),
                self._target.position,
            )
        return super().init(
            rng_key, num_warmup, init_params, model_args, model_kwargs or {}
        )

    def postprocess_fn(self, model_args, model_kwargs) -> Callable:
        if self._target is not None:
            return self._target.constrain
        own = constrain_by_own_bounds(self, model_args, model_kwargs)
        return own or super().postprocess_fn(model_args, model_kwargs)


def _potential(target: Target, position: Position):
    return -target(position)


@dataclass(frozen=True)
class NUTSOptions:
    """The options that have a range; NumPyro's others are passed on as they are."""

    step_size: float | None = option(None, "initial step size; warm-up adapts it", gt=0)
    target_accept_prob: float = option(
        0.8, "acceptance probability that warm-up aims at", gt=0, lt=1
    )


SPEC = KernelSpec(
    name="nuts",
    family="baseline",
    summary="NumPyro's No-U-Turn sampler, on all rows of the data",
    paper="Hoffman and Gelman 2014",
    options=NUTSOptions,
    suits=smooth,
    guarantee="exact",
    mcmc_kernel=NUTS,
)
