"""NumPyro's No-U-Turn sampler: what every other kernel is compared with.

Reference: Hoffman and Gelman, JMLR 15, 2014.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import numpyro.infer
from numpyro import handlers
from numpyro.infer.util import constrain_fn

from nutfree.facts import smooth
from nutfree.registry import KernelSpec, option


class NUTS(numpyro.infer.NUTS):
    """NumPyro's NUTS, whose draws follow bounds that depend on another site.

    NumPyro itself does so where it sees such bounds, and inside of `to_event` it does
    not: there it constrains every draw by the bounds at the start.
    """

    def postprocess_fn(self, model_args, model_kwargs) -> Callable:
        bounds = jax.tree.leaves(self._inv_transforms)
        if self._model is None or all(isinstance(b, int | float) for b in bounds):
            return super().postprocess_fn(model_args, model_kwargs)
        return partial(
            constrain_fn,
            handlers.seed(self._model, 0),
            model_args,
            model_kwargs,
            return_deterministic=True,
        )


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
