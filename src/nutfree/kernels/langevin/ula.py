"""ULA: the unadjusted Langevin algorithm, the simplest biased sampler.

Reference: Roberts and Tweedie, Bernoulli 2(4), 1996; Durmus and Moulines, Annals of
Applied Probability 27(3), 2017.

    x' = x + (h/2) C grad log pi(x) + sqrt(h C) xi.

Bias of order h: on a Gaussian with variance s^2 = C the stationary variance is
s^2 / (1 - h/4). One gradient per transition. C is the inverse curvature at the mode,
and h the step at which the predicted inflation of variances is `max_inflation`.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax

from nutfree.facts import baseline
from nutfree.numerics import langevin
from nutfree.numerics.evaluation import select
from nutfree.numerics.langevin import LangevinState, predicted_inflation
from nutfree.registry import KernelSpec, option
from nutfree.warmup import Warmup
from nutfree.warmup.by_bias import pilot_at_mode, warmup_by_bias


@dataclass(frozen=True)
class Options:
    max_inflation: float = option(
        0.05, "predicted error of posterior variances that sets the step", gt=0, le=1
    )
    step_size: float | None = option(
        None, "step h, in units of the preconditioned coordinates", gt=0, tuned=True
    )
    dense_mass: bool | None = option(
        None, "a full preconditioner; None is up to 100 dimensions"
    )


class ULAInfo(NamedTuple):
    """What a transition did.

    is_divergent
        The step led to where the log density or its gradient is not finite, and was
        not taken.
    num_grad_evals
        One.
    predicted_inflation
        By what fraction the step size makes posterior variances too large, as predicted
        at the mode: for the worst direction, on a Gaussian.
    """

    is_divergent: jax.Array
    num_grad_evals: jax.Array
    predicted_inflation: jax.Array


def build_kernel(options=Options()):
    """Return a kernel that takes the parameters of MALA's.

    `curvature` is the L of `predicted_inflation`.
    """
    del options

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        inverse_mass_matrix=1.0,
        factor=None,
        curvature=1.0,
    ) -> tuple[LangevinState, ULAInfo]:
        proposal = langevin.propose(
            rng_key, state, logdensity_fn, step_size, inverse_mass_matrix, factor
        )
        finite = proposal.is_finite
        inflation = predicted_inflation(step_size, 0.0, curvature)
        info = ULAInfo(~finite, proposal.num_grad_evals, inflation)
        return select(finite, proposal.state, state), info

    return kernel


def warmup(options=Options()) -> Warmup:
    pilot = partial(pilot_at_mode, dense=options.dense_mass)
    return warmup_by_bias(pilot, options.max_inflation)


SPEC = KernelSpec(
    name="ula",
    family="baseline",
    summary="unadjusted Langevin, its step size set by the predicted bias",
    paper="Roberts and Tweedie 1996",
    init=langevin.init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    collects=("predicted_inflation",),
    guarantee="biased",
    bias_order={"step_size": 1},
    gradients=1,
    suits=baseline,
    bias="variances are too large by order step_size (or max_inflation); "
    "predicted_inflation and the kernel Stein discrepancy show it",
)
