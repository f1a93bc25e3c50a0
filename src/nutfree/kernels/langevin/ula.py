"""ULA: the unadjusted Langevin algorithm, the simplest biased sampler.

Reference: Roberts and Tweedie, Bernoulli 2(4), 1996; Durmus and Moulines, Annals of
Applied Probability 27(3), 2017.

    x' = x + (h/2) C grad log pi(x) + sqrt(h C) xi.

Bias of order h: on a Gaussian with variance s^2 = C the stationary variance is
s^2 / (1 - h/4). One gradient per transition.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax

from nutfree.facts import baseline
from nutfree.numerics import langevin
from nutfree.numerics.evaluation import select
from nutfree.numerics.langevin import LangevinState
from nutfree.registry import KernelSpec, option
from nutfree.warmup import Warmup, window_warmup


@dataclass(frozen=True)
class Options:
    step_size: float | None = option(
        None, "step h, in units of the preconditioned coordinates", gt=0, tuned=True
    )
    dense_mass: bool | None = option(
        None, "adapt a full preconditioner; None is up to 50 dimensions"
    )


class ULAInfo(NamedTuple):
    """The acceptance rate that MALA would have had, and the evaluations spent.

    The acceptance rate costs nothing here, and its distance from one measures the
    error of the step; it is what warm-up tunes. A step to where the log density or
    its gradient is not finite is not taken, and is divergent.
    """

    acceptance_rate: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array


def build_kernel(options=Options()):
    """Return a kernel that takes the parameters of MALA's."""
    del options

    def kernel(
        rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0, factor=None
    ) -> tuple[LangevinState, ULAInfo]:
        proposal = langevin.propose(
            rng_key, state, logdensity_fn, step_size, inverse_mass_matrix, factor
        )
        finite = proposal.is_finite
        info = ULAInfo(proposal.acceptance_rate, ~finite, proposal.num_grad_evals)
        return select(finite, proposal.state, state), info

    return kernel


def warmup(options=Options()) -> Warmup:
    return window_warmup(
        target_acceptance_rate=0.9, dense_mass=options.dense_mass, factor=True
    )


SPEC = KernelSpec(
    name="ula",
    family="baseline",
    summary="unadjusted Langevin with an adapted preconditioner",
    paper="Roberts and Tweedie 1996",
    init=langevin.init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    guarantee="biased",
    bias_order={"step_size": 1},
    gradients=1,
    suits=baseline,
    bias="the bias is of order step_size; the kernel Stein discrepancy shows it",
)
