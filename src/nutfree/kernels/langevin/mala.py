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
from jax.flatten_util import ravel_pytree

from nutfree.facts import baseline
from nutfree.numerics.evaluation import (
    counted_value_and_grad,
    flatten,
    is_finite,
    select,
)
from nutfree.numerics.langevin import langevin_step, metropolis_log_ratio
from nutfree.numerics.preconditioning import root
from nutfree.registry import KernelSpec, option
from nutfree.target import Position
from nutfree.warmup import Warmup, window_warmup


@dataclass(frozen=True)
class Options:
    step_size: float | None = option(
        None, "step h, in units of the preconditioned coordinates", gt=0, tuned=True
    )
    dense_mass: bool | None = option(
        None, "adapt a full preconditioner; None is up to 50 dimensions"
    )


class MALAState(NamedTuple):
    """Position (a pytree), its log density, and the gradient there (a pytree)."""

    position: Position
    logdensity: jax.Array
    logdensity_grad: Position


class MALAInfo(NamedTuple):
    """Acceptance probability, whether accepted, and the evaluations spent.

    A proposal whose log density or gradient is not finite is a rejection, and marks
    the transition as divergent when it is NaN or +inf.
    """

    acceptance_rate: jax.Array
    is_accepted: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array


def init(position, logdensity_fn, rng_key=None, options=Options()) -> MALAState:
    del rng_key, options
    return MALAState(position, *jax.value_and_grad(logdensity_fn)(position))


def build_kernel(options=Options()):
    """Return `kernel(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix)`.

    `inverse_mass_matrix` is C, of shape `(d, d)`, `(d,)` or a scalar. `factor`, the
    lower triangular R with R R' = C, saves factorising it at every transition; the
    host passes what warm-up found.
    """
    del options

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        inverse_mass_matrix=1.0,
        factor=None,
    ) -> tuple[MALAState, MALAInfo]:
        x, logdensity, unravel = flatten(state.position, logdensity_fn)
        grad, _ = ravel_pytree(state.logdensity_grad)
        evaluate = counted_value_and_grad(logdensity)
        noise_key, accept_key = jax.random.split(rng_key)

        if factor is None:
            factor = root(jnp.asarray(inverse_mass_matrix, x.dtype))

        x_new, move = langevin_step(noise_key, x, grad, step_size, factor)
        value_new, grad_new, count = evaluate(x_new, jnp.asarray(0))
        log_ratio = metropolis_log_ratio(
            (state.logdensity, grad), (value_new, grad_new), move, step_size, factor
        )
        finite = is_finite(x_new, value_new, grad_new)
        acceptance_rate = jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
        accepted = jax.random.uniform(accept_key) < acceptance_rate
        proposal = MALAState(unravel(x_new), value_new, unravel(grad_new))
        info = MALAInfo(
            acceptance_rate, accepted, ~finite & ~jnp.isneginf(value_new), count
        )
        return select(accepted, proposal, state), info

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
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    guarantee="exact",
    gradients=1,
    suits=baseline,
)
