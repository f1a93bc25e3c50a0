"""Warm-up of the unadjusted Bregman kernels: their adjusted sibling finds the scales.

The pilot is the warm-up of adjusted trajectories, and some of their draws, the looks,
from which come the preconditioner and the time in which the slowest direction is
forgotten. Then the kernel itself finds its step by dual averaging. It is
Metropolis-adjusted as long as it tunes (`adjusted` in the parameters), so that a step
that is too long costs a rejection instead of the chain.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from blackjax.adaptation.step_size import dual_averaging_adaptation

from nutfree.numerics.moments import no_moments
from nutfree.warmup.base import AdaptationState, Warmup

#: The smoothed target's acceptance rate that an unadjusted step should have.
ACCEPTANCE = 0.9
#: The longest step without adjustment; a Gaussian's variance is then 5 % too large.
MAX_STEP = 0.1
#: Draws of the adjusted kernel to learn from, and steps of the unadjusted to tune it.
NUM_LOOKS, NUM_TUNING = 300, 100


def overdamped_warmup(
    init_state: Callable,
    kernel: Callable,
    sibling_init: Callable,
    sibling: Callable,
    sibling_warmup: Warmup,
    look: Callable,
    metric: Callable,
    smoothing: float,
) -> Warmup:
    """Tune `step_size` and what `metric` returns.

    Args:
        init_state: `(position, target) -> state`.
        kernel: the kernel that is tuned; its parameters have `adjusted`.
        sibling_init, sibling, sibling_warmup: of adjusted trajectories.
        look: `(position, target) -> (x, w)`; the covariance of x is learned, and the
            variances of w.
        metric: `(sibling's params, Moments of x, variances of w) -> params`.
        smoothing: lambda over gamma, passed on as it is.
    """
    da_init, da_update, da_final = dual_averaging_adaptation(ACCEPTANCE)

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        pilot_key, look_key, tune_key = jax.random.split(rng_key, 3)
        pilot = sibling_warmup.init(pilot_key, position, target, 0)
        found = sibling_warmup.final(pilot)

        def watch(carry, key):
            state, xs, ws, grads, densities = carry
            state, info = sibling(key, state, target, **found)
            x, w = look(state.position, target)
            grads = grads + info.num_grad_evals
            densities = densities + info.num_density_evals
            return (state, xs.plus(x), ws.plus(w), grads, densities), None

        x, w = look(pilot.position, target)
        xs, ws = no_moments(x, dense=True), no_moments(w)
        counts = (pilot.num_grad_evals, pilot.num_density_evals)
        state = sibling_init(pilot.position, target)
        keys = jax.random.split(look_key, NUM_LOOKS)
        carry, _ = jax.lax.scan(watch, (state, xs, ws, *counts), keys)
        state, xs, ws, grads, densities = carry

        position, dtype = state.position, xs.mean.dtype
        params = {
            "step_size": jnp.asarray(0.02, dtype),
            "num_steps": jnp.asarray(1),
            "smoothing": jnp.asarray(smoothing, dtype),
            "adjusted": jnp.asarray(True),
            **metric(found, xs, ws.invertible_covariance()),
        }

        def tune(carry, key):
            state, adapt, grads = carry
            state, info = kernel(key, state, target, **adapt.params)
            return (
                state,
                update(adapt, state, info),
                grads + info.num_grad_evals,
            ), None

        state = init_state(position, target)
        adapt = start(position, params)
        keys = jax.random.split(tune_key, NUM_TUNING)
        (state, adapt, grads), _ = jax.lax.scan(tune, (state, adapt, grads), keys)
        params = {**adapt.params, "num_steps": jnp.asarray(0)}
        params["step_size"] = _tuned(adapt)
        if num_steps == 0:
            params["adjusted"] = jnp.asarray(False)
        begun = start(state.position, params)
        return begun._replace(num_grad_evals=grads, num_density_evals=densities + 1)

    def start(position, params) -> AdaptationState:
        averaging = jax.tree.map(jnp.asarray, da_init(params["step_size"]))
        return AdaptationState(params, position, inner=(jnp.asarray(0), averaging))

    def update(adapt, state, info) -> AdaptationState:
        del state
        step, averaging = adapt.inner
        # a NaN acceptance rate (nowhere to go) counts as a rejection; digits that step
        # and rate would amplify in each other until no two compilations agree are cut
        rate = jnp.round(jnp.nan_to_num(info.acceptance_rate), 3)
        averaging = da_update(averaging, rate)
        step_size = jnp.minimum(jnp.exp(averaging.log_step_size), 2 * MAX_STEP)
        params = {**adapt.params, "step_size": step_size}
        new = adapt._replace(params=params, inner=(step + 1, averaging))
        return jax.tree.map(
            lambda o, n: jnp.asarray(n, jnp.asarray(o).dtype), adapt, new
        )

    def _tuned(adapt) -> jax.Array:
        tuned = jnp.minimum(da_final(adapt.inner[1]), MAX_STEP)
        # without a single update the average is not defined
        step_size = jnp.where(adapt.inner[0] > 0, tuned, adapt.params["step_size"])
        return step_size.astype(adapt.params["step_size"].dtype)

    def final(adapt) -> dict[str, Any]:
        adjusted = jnp.asarray(False)
        return {**adapt.params, "step_size": _tuned(adapt), "adjusted": adjusted}

    return Warmup(init, update, final)
