"""MYULA: Moreau-Yosida unadjusted Langevin, for posteriors with a non-smooth prior.

Reference: Durmus, Moulines and Pereyra, SIAM J. Imaging Sciences 11(1), 2018,
arXiv 1612.07471. With U = f + g, g convex and non-smooth,

    x' = x - gamma C (grad f(x) + grad g_lambda(x)) + sqrt(2 gamma C) xi,

where g_lambda is g's Moreau envelope in the metric of C = diag(inverse_mass_matrix),
the paper's having C = I, and lambda = smoothing * gamma. It moves on the sampling
space: f has the Jacobian of every constrained site, and only real-supported sites have
their g smoothed. Bias O(gamma) + O(lambda). One gradient per transition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.adaptation import Warmup
from nutfree.adaptation.mirrored import mirrored_warmup
from nutfree.dynamics.evaluation import is_finite, select
from nutfree.dynamics.langevin import langevin_step, metropolis_log_ratio
from nutfree.dynamics.mirror import Euclidean, mirror_for
from nutfree.dynamics.proximal import counted_envelope, smoothed
from nutfree.registry import KernelSpec, option
from nutfree.target import Position, Split, Target

#: lambda over gamma; the paper asks gamma <= 1 / (L + 1 / lambda), so more than one.
SMOOTHING = 2.0


class MYULAState(NamedTuple):
    """Position (a pytree), its log density, and the smoothed log density there.

    `smoothed_grad` is a pytree like the position. Both are of the smoothing that the
    state was reached with; those of `init` have none.
    """

    position: Position
    logdensity: jax.Array
    smoothed: jax.Array
    smoothed_grad: Position


class MYULAInfo(NamedTuple):
    """The acceptance rate that the smoothed target's MALA would have had, and costs.

    The distance of the rate from one measures the error of the step. A step to where
    the log density or its gradient is not finite is not taken, and is divergent.
    """

    acceptance_rate: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array


def _log_densities(split: Split, smoothing: jax.Array, scales: Position) -> Callable:
    """`z -> (smoothed log density, log density)` on the sampling space."""
    # the value of a real-supported site is its own coordinate, and so is its scale
    by_site = split.constrain(scales)

    def stands_for(name, term, x):
        if isinstance(mirror_for(split.supports[name]), Euclidean):
            return smoothed(term, x, smoothing, by_site[name])
        return term.value(x)

    def evaluate(z):
        values = split.constrain(z)
        smooth, nonsmooth = split.terms(values)
        smooth = smooth + split.log_det(z)
        g = sum(term.value(values[name]) for name, term in nonsmooth.items())
        envelope = sum(stands_for(k, term, values[k]) for k, term in nonsmooth.items())
        return smooth - envelope, smooth - g

    return evaluate


def init(position, logdensity_fn: Target, rng_key=None) -> MYULAState:
    del rng_key
    value, grad = jax.value_and_grad(logdensity_fn)(position)
    return MYULAState(position, value, value, grad)


def build_kernel() -> Callable:
    """Return `kernel(rng_key, state, target, step_size, smoothing, ...)`.

    `step_size` is gamma, `smoothing` is lambda / gamma, and `inverse_mass_matrix` is
    C, of shape `(d,)` or a scalar. Where `adjusted` is true, as in warm-up, a step is
    accepted as in MALA on the smoothed target, and `held_lambda`, unless it is zero,
    is lambda. `center` has no effect here.
    """

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        smoothing=SMOOTHING,
        inverse_mass_matrix=1.0,
        center=0.0,
        held_lambda=0.0,
        adjusted=False,
    ) -> tuple[MYULAState, MYULAInfo]:
        del center
        noise_key, accept_key = jax.random.split(rng_key)
        lambda_ = jnp.where(held_lambda > 0, held_lambda, smoothing * step_size)
        x, unravel = ravel_pytree(state.position)
        grad, _ = ravel_pytree(state.smoothed_grad)
        variances = jnp.broadcast_to(inverse_mass_matrix, x.shape).astype(x.dtype)
        evaluate = counted_envelope(
            _log_densities(logdensity_fn.split, lambda_, unravel(jnp.sqrt(variances)))
        )
        h = 2 * step_size
        x_new = langevin_step(noise_key, x, grad, h, variances)
        position = unravel(x_new)
        (value_new, logdensity), grad_tree, count = evaluate(position, jnp.asarray(0))
        grad_new, _ = ravel_pytree(grad_tree)
        log_ratio = metropolis_log_ratio(
            (x, state.smoothed, grad), (x_new, value_new, grad_new), h, variances
        )
        finite = is_finite(x_new, value_new, logdensity, grad_new)
        acceptance_rate = jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
        moved = MYULAState(position, logdensity, value_new, grad_tree)
        taken = jax.random.uniform(accept_key) < acceptance_rate
        taken = finite & (taken | jnp.logical_not(adjusted))
        return select(taken, moved, state), MYULAInfo(acceptance_rate, ~finite, count)

    return kernel


def warmup(num_pilot: int = 500) -> Warmup:
    return mirrored_warmup(
        init,
        build_kernel(),
        lambda state: state.position,
        SMOOTHING,
        num_pilot,
    )


@dataclass(frozen=True)
class Options:
    step_size: float | None = option(
        None, "step gamma, in units of the preconditioned coordinates", gt=0, tuned=True
    )
    smoothing: float | None = option(
        None, "envelope parameter lambda, as a multiple of gamma", gt=0, tuned=True
    )
    num_pilot: int = option(500, "transitions before the first, to find a step", ge=20)


SPEC = KernelSpec(
    name="myula",
    family="bregman",
    summary="unadjusted Langevin on a Moreau-smoothed posterior",
    paper="Durmus, Moulines and Pereyra 2018, arXiv 1612.07471",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    needs=("split",),
    guarantee="biased",
    bias="of order step_size, and of the smoothing lambda = smoothing * step_size: a "
    "smaller step_size reduces both; the kernel Stein discrepancy shows it",
)
