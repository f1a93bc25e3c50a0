"""SGLD: stochastic gradient Langevin dynamics, for posteriors over very many rows.

Reference: Welling and Teh, ICML 2011; with control variates Baker, Fearnhead, Fox and
Nemeth, arXiv 1706.05439, from which the step here differs by its preconditioner C, the
inverse curvature at the mode.

    x' = x + (h/2) C g(x) + sqrt(h C) xi,

g an unbiased gradient from n of the N rows. Bias of order h: in coordinates in which a
Gaussian posterior has unit variance, the chain has (1 + hV/4)/(1 - h/4), with V the
variance of g's noise there: about N/n for plain gradients, d/n with control variates.
One transition is about 2/h steps, of n/N gradients each, 2n/N with control variates.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.adaptation import AdaptationState, Warmup
from nutfree.adaptation.mode import laplace_of_rows
from nutfree.dynamics.evaluation import is_finite
from nutfree.dynamics.gradients import (
    ESTIMATORS,
    Control,
    control_at,
    default_batch_size,
    draw_rows,
    flat_minibatch,
    predicted_inflation,
    step_for_inflation,
    whitened_noise,
)
from nutfree.dynamics.preconditioning import guarded_step, matvec, root, transpose
from nutfree.registry import KernelSpec, option
from nutfree.target import Position

#: The most steps that a transition makes by itself.
MAX_STEPS = 1000


class SGLDState(NamedTuple):
    """Where the chain is; the log density is never known.

    position
        The last position at which the gradient was found finite, a pytree.
    ahead
        The step from it, whose gradient is the next to be evaluated.
    """

    position: Position
    ahead: Position


class SGLDInfo(NamedTuple):
    """What a transition did.

    is_divergent
        A step led to where the log density or its gradient is not finite, and was
        not taken.
    num_grad_evals
        In gradients over all rows.
    num_steps
        Steps made.
    predicted_inflation
        By what fraction the step size makes posterior variances too large, as
        predicted at the mode: for the worst coordinate, on a Gaussian.
    """

    is_divergent: jax.Array
    num_grad_evals: jax.Array
    num_steps: jax.Array
    predicted_inflation: jax.Array


def init(position, logdensity_fn, rng_key=None) -> SGLDState:
    del logdensity_fn, rng_key
    return SGLDState(position, position)


def steps_for(step_size) -> jax.Array:
    """Steps after which a chain of unit variance has forgotten 63 % of its place."""
    return jnp.clip(jnp.ceil(2 / step_size), 1, MAX_STEPS).astype(int)


def build_kernel(*, batch_size: int | None = None, gradient: str = "control_variate"):
    """Return the kernel; `logdensity_fn` must be a `Target` with `minibatch`.

    Its params: `step_size` h; `inverse_mass_matrix` C, of shape `(d, d)`, `(d,)` or
    `()`; `control`, the `Control` of the control variate; `gradient_noise` V and
    `curvature`, for `predicted_inflation`; and `num_steps`, 2/h unless given.
    """
    estimator = ESTIMATORS[gradient]

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        inverse_mass_matrix=1.0,
        control=(),
        gradient_noise=0.0,
        curvature=1.0,
        num_steps=None,
    ) -> tuple[SGLDState, SGLDInfo]:
        x, unravel = ravel_pytree(state.position)
        minibatch = flat_minibatch(logdensity_fn.minibatch, unravel)
        size = batch_size or default_batch_size(minibatch.num_data, x.size)
        factor = root(jnp.asarray(inverse_mass_matrix, x.dtype))
        step_size = jnp.asarray(step_size, x.dtype)
        num_steps = steps_for(step_size) if num_steps is None else num_steps

        def step(i, carry):
            x, ahead, divergent, count = carry
            rows_key, noise_key = jax.random.split(jax.random.fold_in(rng_key, i))
            indices = draw_rows(rows_key, minibatch.num_data, size)
            g, count = estimator(minibatch, indices, ahead, control, count)
            x, ahead, failed = guarded_step(noise_key, x, ahead, g, step_size, factor)
            return x, ahead, divergent | failed, count

        ahead, _ = ravel_pytree(state.ahead)
        start = (x, ahead, jnp.asarray(False), jnp.zeros((), x.dtype))
        num_steps = jnp.asarray(num_steps, int)
        x, ahead, divergent, count = jax.lax.fori_loop(0, num_steps, step, start)
        inflation = predicted_inflation(step_size, gradient_noise, curvature)
        info = SGLDInfo(divergent, count, num_steps, inflation)
        return SGLDState(unravel(x), unravel(ahead)), info

    return kernel


def warmup(
    *,
    batch_size: int | None = None,
    gradient: str = "control_variate",
    max_inflation: float = 0.05,
) -> Warmup:
    """Find the mode, its curvature and control variate, and a step size.

    The step size is that at which the predicted inflation of the posterior variance,
    from the noise of gradients around the mode, is `max_inflation`. After a divergent
    transition it is halved.
    """
    estimator = ESTIMATORS[gradient]

    def pilot(rng_key, position, target, num_steps) -> AdaptationState:
        del num_steps
        x, unravel = ravel_pytree(position)
        minibatch = flat_minibatch(target.minibatch, unravel)
        size = batch_size or default_batch_size(minibatch.num_data, x.size)
        mode_key, noise_key, start_key, rows_key = jax.random.split(rng_key, 4)
        count = jnp.zeros((), x.dtype)
        mode, count = laplace_of_rows(mode_key, minibatch, x, count)
        factor = root(mode.covariance)
        control: Control | tuple = ()
        if gradient == "control_variate":
            control, count = control_at(minibatch, mode.centre, count)

        def draw(key):
            noise = jax.random.normal(key, x.shape, x.dtype)
            return mode.centre + matvec(factor, noise)

        def estimate(key, x, count):
            indices = draw_rows(key, minibatch.num_data, size)
            return estimator(minibatch, indices, x, control, count)

        noise = jnp.zeros_like(x)
        if size < minibatch.num_data:
            noise, count = whitened_noise(
                noise_key,
                estimate,
                draw,
                lambda g: matvec(transpose(factor), g),
                count,
            )
        worst = jnp.max(jnp.where(jnp.isfinite(noise), noise, 1.0))
        params = {
            "step_size": step_for_inflation(max_inflation, worst, mode.curvature),
            "inverse_mass_matrix": mode.covariance,
            "control": control,
            "gradient_noise": worst,
            "curvature": mode.curvature,
        }
        # chains start apart, where the density allows it
        start = draw(start_key)
        g, count = estimate(rows_key, start, count)
        start = jnp.where(is_finite(start, g), start, mode.centre)
        return AdaptationState(params, unravel(start), num_grad_evals=count)

    def update(adapt_state, state, info) -> AdaptationState:
        del state
        params = dict(adapt_state.params)
        halved = 0.5 * params["step_size"]
        params["step_size"] = jnp.where(info.is_divergent, halved, params["step_size"])
        return adapt_state._replace(params=params)

    return Warmup(pilot, update, lambda adapt_state: adapt_state.params)


@dataclass(frozen=True)
class Options:
    batch_size: int | None = option(
        None, "rows n per gradient; None is a hundredth of them, 100 to 1,000", ge=1
    )
    gradient: str = option(
        "control_variate",
        "how the gradient is estimated from a batch",
        choices=tuple(ESTIMATORS),
    )
    plate: str | None = option(None, "the model's data plate, where it has several")
    max_inflation: float = option(
        0.05, "predicted error of posterior variances that sets the step", gt=0, le=1
    )
    step_size: float | None = option(
        None, "step h, in units of the preconditioned coordinates", gt=0, tuned=True
    )
    num_steps: int | None = option(
        None, "steps per transition; None is 2/h, at most 1,000", ge=1, tuned=True
    )


SPEC = KernelSpec(
    name="sgld",
    family="sgld",
    summary="stochastic gradient Langevin with control variates at the mode",
    paper="Welling and Teh 2011; arXiv 1706.05439",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    needs=("minibatch",),
    guarantee="biased",
    bias="variances are too large by order step_size (or max_inflation), and less with "
    "a larger batch_size; predicted_inflation and the kernel Stein discrepancy show it",
    recommended=True,
)
