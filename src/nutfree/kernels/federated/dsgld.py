"""DSGLD: owners' local Langevin steps with nothing to correct them, a baseline.

Reference: Ahn, Shahbaba and Welling, ICML 2014; here as arXiv 2004.11231 has it. An
owner s, visited with probability f_s, makes K steps and hands x on:

    x' = x + (h/2) C grad log p_s(x) / f_s + sqrt(h C) xi.

Bias of order h, see `family`, with V of the size of K times the variance of owners'
gradients: where owners differ, draws are useful at steps only that are far smaller than
those of `fsgld`. The preconditioner and h are found as there.
"""

from dataclasses import dataclass
from functools import partial

from nutfree.facts import federated_baseline
from nutfree.kernels.federated.family import (
    COLLECTS,
    concerns,
    federated_gradients,
    federated_kernel,
    init,
    max_inflation_option,
    num_rounds_option,
    share_exact_option,
    step_size_option,
)
from nutfree.kernels.federated.owners import Owners
from nutfree.kernels.federated.rounds import Scheme
from nutfree.kernels.federated.warmup import federated_warmup
from nutfree.registry import KernelSpec, option
from nutfree.warmup import Warmup


@dataclass(frozen=True)
class Options:
    num_local_steps: int = option(10, "steps K that an owner makes per visit", ge=1)
    batch_size: int | None = option(
        None, "rows per gradient of a visited owner; None is all of its rows", ge=1
    )
    visits: str = option(
        "size",
        "how often an owner is visited: by its number of rows, or evenly",
        choices=("size", "uniform"),
    )
    share_exact: bool = share_exact_option()
    max_inflation: float = max_inflation_option()
    step_size: float | None = step_size_option()
    num_rounds: int | None = num_rounds_option()


def scheme(options: Options, owners: Owners) -> Scheme:
    """One owner a round, drawn by its weight; the noise is its own."""
    even = (1 / owners.count,) * owners.count
    weights = owners.shares if options.visits == "size" else even
    return Scheme(
        1, True, weights, options.num_local_steps, 0.0, False, options.batch_size
    )


def build_kernel(options=Options()):
    """Return the kernel, see `family.federated_kernel`."""
    return federated_kernel(partial(scheme, options))


def warmup(options=Options()) -> Warmup:
    return federated_warmup(partial(scheme, options), options)


def gradients(options, params, target):
    return federated_gradients(partial(scheme, options), params, target)


SPEC = KernelSpec(
    name="dsgld",
    family="federated",
    summary="federated Langevin without surrogates: a baseline, off where they differ",
    paper="Ahn, Shahbaba and Welling 2014",
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
    "baseline, see fsgld",
    collects=COLLECTS,
    scheme=scheme,
)
