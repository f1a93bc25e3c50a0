"""MYULA: Moreau-Yosida unadjusted Langevin, for posteriors with a non-smooth prior.

Reference: Durmus, Moulines and Pereyra, SIAM J. Imaging Sciences 11(1), 2018,
arXiv 1612.07471. With U = f + g, g convex and non-smooth,

    x' = x - gamma C (grad f(x) + grad g_lambda(x)) + sqrt(2 gamma C) xi.

The envelope g_lambda is Moreau's in the metric of the diagonal of C, an adapted
covariance (in the paper C = I), and lambda = smoothing * gamma. The kernel moves on the
sampling space: f has the Jacobian of every constrained site, and only real-supported
sites have their g smoothed. The bias is O(gamma) + O(lambda), and O(gamma) +
O(lambda^2) for a piecewise linear g. A transition takes as many steps, of one gradient
each, as make successive draws nearly independent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.facts import non_smooth
from nutfree.kernels.bregman.envelopes import (
    counted_envelope,
    smoothed,
    smoothed_log_density,
    term_scales,
)
from nutfree.kernels.bregman.predicted import EULER, Prediction, unknown
from nutfree.kernels.bregman.unadjusted import (
    UnadjustedInfo,
    gradients,
    transition,
    transition_length,
)
from nutfree.kernels.bregman.unadjusted_warmup import unadjusted_warmup
from nutfree.numerics.langevin import langevin_step, metropolis_log_ratio
from nutfree.numerics.preconditioning import root
from nutfree.registry import KernelSpec, option
from nutfree.target import Position, Target
from nutfree.warmup import Warmup

#: lambda over gamma; the paper asks gamma <= 1 / (L + 1 / lambda), so more than one.
SMOOTHING = 2.0


@dataclass(frozen=True)
class Options:
    step_size: float | None = option(
        None, "step gamma, in units of the preconditioned coordinates", gt=0, tuned=True
    )
    num_steps: int | None = option(
        None, "steps per transition; None is 2 / gamma or more", ge=1, tuned=True
    )
    smoothing: float | None = option(
        None, "envelope parameter lambda, as a multiple of gamma", gt=0, tuned=True
    )
    num_pilot: int = option(400, "transitions before the first, to find scales", ge=40)


class MYULAState(NamedTuple):
    """Position (a pytree), its log density, and the smoothed log density there.

    `smoothed_grad` is a pytree like the position. Both are of the smoothing that the
    state was reached with; those of `init` have none.
    """

    position: Position
    logdensity: jax.Array
    smoothed: jax.Array
    smoothed_grad: Position


def init(
    position, logdensity_fn: Target, rng_key=None, options=Options()
) -> MYULAState:
    del rng_key, options
    value, grad = jax.value_and_grad(logdensity_fn)(position)
    return MYULAState(position, value, value, grad)


def build_kernel(options=Options()) -> Callable:
    """Return `kernel(rng_key, state, target, step_size, num_steps, ...)`.

    `step_size` is gamma; `num_steps` is the number of steps, or 0 for as many as
    `relaxation` asks for (`transition_length`); `smoothing` is lambda / gamma; and
    `inverse_mass_matrix` is C, of shape `(d, d)`, `(d,)` or a scalar. Where `adjusted`
    is true, as in warm-up, a step is accepted as in MALA on the smoothed target.
    `predicted` is the `Prediction` of the bias, or None.
    """
    del options

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        num_steps=0,
        smoothing=SMOOTHING,
        inverse_mass_matrix=1.0,
        relaxation=1.0,
        adjusted=False,
        predicted=None,
    ) -> tuple[MYULAState, UnadjustedInfo]:
        z, unravel = ravel_pytree(state.position)
        metric = jnp.asarray(inverse_mass_matrix, z.dtype)
        lambda_, h, factor = smoothing * step_size, 2 * step_size, root(metric)
        scales = term_scales(logdensity_fn.split, state.position, factor)

        def smooth(term, x, scale):
            return smoothed(term, x, lambda_, scale)

        evaluate = counted_envelope(
            smoothed_log_density(logdensity_fn.split, smooth, scales)
        )

        def propose(key, state, count):
            x, grad = _flat(state.position), _flat(state.smoothed_grad)
            x_new, move = langevin_step(key, x, grad, h, factor)
            position = unravel(x_new)
            (value, logdensity), gradient, count = evaluate(position, count)
            old, new = (state.smoothed, grad), (value, _flat(gradient))
            log_ratio = metropolis_log_ratio(old, new, move, h, factor)
            return MYULAState(position, logdensity, value, gradient), log_ratio, count

        length = transition_length(step_size, num_steps, relaxation)
        inflation = inflation_at(predicted, step_size, z.dtype)
        return transition(rng_key, state, length, adjusted, propose, inflation)

    return kernel


def inflation_at(predicted: Prediction | None, step_size, dtype) -> jax.Array:
    predicted = unknown(dtype) if predicted is None else predicted
    return jnp.asarray(predicted.if_known(step_size), dtype)


def _flat(tree) -> jax.Array:
    return ravel_pytree(tree)[0]


def observe(position, target):
    """The coordinates, which have no boundaries."""
    del target
    return _flat(position), jnp.zeros(1)


def metric_of(found, observed):
    """C, and the largest variance that the coordinates have in it."""
    factor = found["factor"]
    covariance = observed.coordinates.invertible_covariance()
    if factor.ndim == 1:
        variances = covariance if covariance.ndim == 1 else jnp.diag(covariance)
        relaxation = jnp.max(variances / factor**2)
        return {"inverse_mass_matrix": factor**2, "relaxation": relaxation}
    white = jnp.linalg.solve(factor, jnp.linalg.solve(factor, covariance).T)
    relaxation = jnp.max(jnp.linalg.eigvalsh(white))
    return {"inverse_mass_matrix": factor @ factor.T, "relaxation": relaxation}


def warmup(options=Options()) -> Warmup:
    return unadjusted_warmup(
        init,
        build_kernel(),
        observe,
        metric_of,
        options.smoothing or SMOOTHING,
        options.num_pilot,
        EULER,
        mirrored=False,
    )


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
    suits=non_smooth,
    guarantee="biased",
    collects=("predicted_inflation",),
    bias="of order step_size, and of the smoothing lambda = smoothing * step_size: a "
    "smaller step_size reduces both; predicted_inflation and the kernel Stein "
    "discrepancy show it, and 'marbmumla' has none at fewer gradients. Where the "
    "gradient on the sampling space grows faster than linearly, as of small shares "
    "of a simplex, the chain can run away, which divergences show",
    # the envelope of a Laplace term errs by lambda^2 / 3 of its mass at the kink
    bias_order={"step_size": 1, "smoothing": 2},
    gradients=gradients,
)
