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
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.facts import baseline
from nutfree.kernels.langevin import mala
from nutfree.kernels.langevin.mala import MALAState as ULAState
from nutfree.numerics.evaluation import (
    counted_value_and_grad,
    flatten,
    is_finite,
    select,
)
from nutfree.numerics.langevin import langevin_step, metropolis_log_ratio
from nutfree.numerics.preconditioning import root
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


def init(position, logdensity_fn, rng_key=None, options=Options()) -> ULAState:
    del options
    return mala.init(position, logdensity_fn, rng_key)


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
    ) -> tuple[ULAState, ULAInfo]:
        x, logdensity, unravel = flatten(state.position, logdensity_fn)
        grad, _ = ravel_pytree(state.logdensity_grad)
        evaluate = counted_value_and_grad(logdensity)

        if factor is None:
            factor = root(jnp.asarray(inverse_mass_matrix, x.dtype))

        x_new, move = langevin_step(rng_key, x, grad, step_size, factor)
        value_new, grad_new, count = evaluate(x_new, jnp.asarray(0))
        log_ratio = metropolis_log_ratio(
            (state.logdensity, grad), (value_new, grad_new), move, step_size, factor
        )
        finite = is_finite(x_new, value_new, grad_new)
        acceptance_rate = jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
        moved = ULAState(unravel(x_new), value_new, unravel(grad_new))
        info = ULAInfo(acceptance_rate, ~finite, count)
        return select(finite, moved, state), info

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
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    guarantee="biased",
    bias_order={"step_size": 1},
    gradients=1,
    suits=baseline,
    bias="the bias is of order step_size; the kernel Stein discrepancy shows it",
)
