"""NumPyro's No-U-Turn sampler: what every other kernel is compared with.

Reference: Hoffman and Gelman, JMLR 15, 2014.
"""

from dataclasses import dataclass

from numpyro.infer import NUTS

from nutfree.facts import smooth
from nutfree.registry import KernelSpec, option


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
