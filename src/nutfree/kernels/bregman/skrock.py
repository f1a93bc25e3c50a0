"""SK-ROCK: MYULA by a stabilised integrator, for posteriors with a non-smooth prior.

Reference: Pereyra, Vargas Mieles and Zygalakis, SIAM J. Imaging Sciences 13(2), 2020,
arXiv 1908.08845. The diffusion is that of `myula`,

    dx = -C grad (f + g_lambda)(x) dt + sqrt(2 C) dW,

and a step of length gamma is the Runge-Kutta-Chebyshev one of `numerics.skrock`, with s
gradients. It is stable up to gamma (L + 1 / lambda) of about 1.9 s^2, so that here
gamma is of the order of one, where a step nearly forgets its start, and the smoothing
lambda = smoothing * gamma a small part of it. The bias is O(gamma) + O(lambda), and
O(gamma) + O(lambda^2) for a piecewise linear g; on a Gaussian the variance is 2.7 %
too small at gamma = 1 with s = 8, where a step of Euler's would double it. A transition
takes as many steps as make successive draws nearly independent.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.kernels.bregman import myula
from nutfree.kernels.bregman.envelopes import (
    counted_envelope,
    smoothed,
    smoothed_log_density,
    term_scales,
)
from nutfree.kernels.bregman.predicted import scheme
from nutfree.kernels.bregman.unadjusted import gradients as num_steps_of
from nutfree.kernels.bregman.unadjusted import transition_length
from nutfree.kernels.bregman.unadjusted_warmup import unadjusted_warmup
from nutfree.numerics.evaluation import counted_value, is_finite, select
from nutfree.numerics.preconditioning import matvec, root, transpose
from nutfree.numerics.skrock import sk_rock, weak_error
from nutfree.registry import KernelSpec, option
from nutfree.target import Position, Target
from nutfree.warmup import Warmup

#: lambda over gamma. 1 / lambda and gamma = 1 ask for a third of the reach of 8 stages,
#: which leaves room for terms of several coordinates.
SMOOTHING = 0.05
#: Longest step gamma.
MAX_STEP = 1.0


@dataclass(frozen=True)
class Options(myula.Options):
    num_stages: int = option(8, "stages s of a step, a gradient each", ge=2)


class SKROCKState(NamedTuple):
    """Position (a pytree) and its log density."""

    position: Position
    logdensity: jax.Array


class SKROCKInfo(NamedTuple):
    """Costs, and `predicted_inflation` as of MYULA's.

    A transition to where the log density is not finite is not made, and is divergent.
    """

    is_divergent: jax.Array
    num_grad_evals: jax.Array
    num_density_evals: jax.Array
    num_steps: jax.Array
    predicted_inflation: jax.Array


def init(
    position, logdensity_fn: Target, rng_key=None, options=Options()
) -> SKROCKState:
    del rng_key, options
    return SKROCKState(position, logdensity_fn(position))


def build_kernel(options=Options()) -> Callable:
    """Return `kernel(rng_key, state, target, step_size, num_steps, ...)`.

    The parameters are those of MYULA's: `step_size` is gamma; `num_steps` is the number
    of steps, or 0 for as many as `relaxation` asks for; `smoothing` is lambda / gamma;
    `inverse_mass_matrix` is C; `predicted` is the `Prediction` of the bias, or None.
    """

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        num_steps=0,
        smoothing=SMOOTHING,
        inverse_mass_matrix=1.0,
        relaxation=1.0,
        predicted=None,
    ) -> tuple[SKROCKState, SKROCKInfo]:
        z, unravel = ravel_pytree(state.position)
        metric = jnp.asarray(inverse_mass_matrix, z.dtype)
        gamma, factor = jnp.asarray(step_size, z.dtype), root(metric)
        split = logdensity_fn.split
        scales = term_scales(split, state.position, factor)

        def smooth(term, x, scale):
            return smoothed(term, x, smoothing * gamma, scale)

        log_densities = smoothed_log_density(split, smooth, scales)
        evaluate = counted_envelope(lambda z: log_densities(unravel(z)))

        def drift(z, count):
            _, gradient, count = evaluate(z, count)
            return matvec(factor, matvec(transpose(factor), gradient)), count

        def step(i, carry):
            z, count = carry
            xi = jax.random.normal(jax.random.fold_in(rng_key, i), z.shape, z.dtype)
            noise = jnp.sqrt(2 * gamma) * matvec(factor, xi)
            return sk_rock(
                drift,
                z,
                noise,
                count,
                step_size=gamma,
                num_stages=options.num_stages,
            )

        length = transition_length(gamma, num_steps, relaxation)
        z, grads = jax.lax.fori_loop(0, length, step, (z, jnp.asarray(0)))
        position = unravel(z)
        value, densities = counted_value(logdensity_fn)(position, jnp.asarray(0))
        finite = is_finite(z, value)
        inflation = myula.inflation_at(predicted, gamma, z.dtype)
        info = SKROCKInfo(~finite, grads, densities, length, inflation)
        return select(finite, SKROCKState(position, value), state), info

    return kernel


def warmup(options=Options()) -> Warmup:
    return unadjusted_warmup(
        init,
        build_kernel(options),
        myula.observe,
        myula.metric_of,
        options.smoothing or SMOOTHING,
        options.num_pilot,
        scheme(*weak_error(options.num_stages)),
        mirrored=False,
        longest=MAX_STEP,
    )


def gradients(options, params, target) -> jax.Array:
    """The stages of the steps of a transition."""
    return options.num_stages * num_steps_of(options, params, target)


SPEC: KernelSpec = replace(
    myula.SPEC,
    name="skrock",
    summary="MYULA by a stabilised integrator with steps of the posterior's size",
    paper="Pereyra, Vargas Mieles and Zygalakis 2020, arXiv 1908.08845",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    gradients=gradients,
)
