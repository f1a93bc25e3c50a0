"""FA-LD as its paper has it, a baseline: averaged owners with nothing to correct them.

Reference: Plassier, Moulines and Durmus, arXiv 2112.05120. As `fald`, with

    v_s = gamma_s grad log p_s.

Bias of order h K: an owner's K steps lead towards its own posterior. Where owners
differ, means are off by posterior sds, and with part of the owners in a round variances
by many times. The preconditioner and h are found as for `fald`.
"""

from functools import partial

from nutfree.facts import federated_baseline
from nutfree.kernels.federated.fald import Options, privacy_of
from nutfree.kernels.federated.family import (
    COLLECTS,
    concerns,
    federated_gradients,
    federated_kernel,
    init,
)
from nutfree.kernels.federated.owners import Owners
from nutfree.kernels.federated.rounds import Scheme, scheme_of
from nutfree.kernels.federated.warmup import federated_warmup
from nutfree.registry import KernelSpec
from nutfree.warmup import Warmup


def scheme(options: Options, owners: Owners) -> Scheme:
    return scheme_of(owners, options, False, privacy_of(options))


def build_kernel(options=Options()):
    """Return the kernel, see `family.federated_kernel`."""
    return federated_kernel(partial(scheme, options))


def warmup(options=Options()) -> Warmup:
    return federated_warmup(partial(scheme, options), options)


def gradients(options, params, target):
    return federated_gradients(partial(scheme, options), params, target)


SPEC = KernelSpec(
    name="plain_fald",
    family="federated",
    summary="federated averaging without surrogates: a baseline, off where they differ",
    paper="arXiv 2112.05120",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    needs=("shards",),
    suits=federated_baseline,
    guarantee="biased",
    bias_order={"step_size": 1},
    gradients=gradients,
    concerns=concerns,
    bias="where owners differ, means and variances are off, the more the larger K: a "
    "baseline, see fald",
    collects=COLLECTS,
    scheme=scheme,
)
