"""NUTS as NumPyro has it: what every other kernel is compared with.

Reference: Hoffman and Gelman, JMLR 15, 2014.
"""

from numpyro.infer import NUTS

from nutfree.registry import KernelSpec

SPEC = KernelSpec(
    name="nuts",
    family="baseline",
    summary="NumPyro's No-U-Turn sampler, on all rows of the data",
    paper="Hoffman and Gelman 2014",
    guarantee="exact",
    mcmc_kernel=NUTS,
)
