"""MALA: the Metropolis-adjusted Langevin algorithm, for smooth posteriors.

Reference: Roberts and Tweedie, Bernoulli 2(4), 1996; step size and variances tuned to
the acceptance rate 0.574 of Roberts and Rosenthal, JRSS B 60(1), 1998.

    x' = x + (h/2) C grad log pi(x) + sqrt(h C) xi, accepted with probability
    min(1, pi(x') q(x | x') / (pi(x) q(x' | x))).

Exact. One gradient per transition.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

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


class MALAInfo(NamedTuple):
    """Acceptance probability, whether accepted, and the evaluations spent.

    A proposal whose log density or gradient is not finite is a rejection, and marks
    the transition as divergent when it is NaN or +inf.
    """

    acceptance_rate: jax.Array
    is_accepted: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array


def build_kernel(options=Options()):
    """Return `kernel(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix)`.

    `inverse_mass_matrix` is C, of shape `(d, d)`, `(d,)` or a scalar. `factor`, the
    lower triangular R with R R' = C, saves factorising it at every transition; the
    host passes what warm-up found.
    """
    del options

    def kernel(
        rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0, factor=None
    ) -> tuple[LangevinState, MALAInfo]:
        noise_key, accept_key = jax.random.split(rng_key)
        proposal = langevin.propose(
            noise_key, state, logdensity_fn, step_size, inverse_mass_matrix, factor
        )
        rate = proposal.acceptance_rate
        accepted = jax.random.uniform(accept_key) < rate
        outside = jnp.isneginf(proposal.state.logdensity)
        divergent = ~proposal.is_finite & ~outside
        info = MALAInfo(rate, accepted, divergent, proposal.num_grad_evals)
        return select(accepted, proposal.state, state), info

    return kernel


def warmup(options=Options()) -> Warmup:
    return window_warmup(
        target_acceptance_rate=0.574, dense_mass=options.dense_mass, factor=True
    )


SPEC = KernelSpec(
    name="mala",
    family="baseline",
    summary="Metropolis-adjusted Langevin with an adapted preconditioner",
    paper="Roberts and Tweedie 1996",
    init=langevin.init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    guarantee="exact",
    gradients=1,
    suits=baseline,
)
