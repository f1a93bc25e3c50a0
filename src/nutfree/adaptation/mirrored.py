"""Warm-up of the Bregman kernels: a step size, and the centre and scale of each map.

Stan's schedule of windows, as in `window`, with three differences. It runs on the
coordinates that the kernel moves in, which need not be those of its position. It starts
with a pilot, a short warm-up of its own, so that the first transition of the host has
a step to take. And it asks the kernel to be Metropolis-adjusted as long as it tunes
(`adjusted` in the parameters), so that a step that is too long costs a rejection
instead of the chain. Adjustment compares smoothed densities, so the smoothing is held
within a window (`held_lambda`), and the first step after a change is not adjusted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.staged_adaptation import build_schedule
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from nutfree.adaptation.base import AdaptationState, Warmup
from nutfree.dynamics.evaluation import select

#: The smoothed target's acceptance rate that an unadjusted step should have.
ACCEPTANCE = 0.9
#: The longest step without adjustment; a Gaussian's variance is then 5 % too large.
MAX_STEP = 0.1


class Moments(NamedTuple):
    """Welford's number, mean and sum of squares of one window."""

    num: jax.Array
    mean: jax.Array
    squares: jax.Array

    def add(self, x) -> "Moments":
        num = self.num + 1
        mean = self.mean + (x - self.mean) / num
        return Moments(num, mean, self.squares + (x - self.mean) * (x - mean))

    def variances(self) -> jax.Array:
        """Shrunk, as in Stan, to a thousandth: of one, or of the mean if smaller."""
        variances = self.squares / jnp.maximum(self.num - 1, 1)
        small = 1e-3 * jnp.minimum(jnp.mean(variances), 1.0)
        return (self.num * variances + 5 * small) / (self.num + 5)


class MirroredState(NamedTuple):
    """The step, dual averaging, the window's moments, and the schedule of windows."""

    step: jax.Array
    averaging: Any
    moments: Moments
    schedule: jax.Array  # (num_steps, 2): slow window?, last of its window?


def mirrored_warmup(
    init_state: Callable,
    kernel: Callable,
    coordinates: Callable,
    smoothing: float,
    num_pilot: int,
) -> Warmup:
    """Tune `step_size`, `inverse_mass_matrix` and `center`, the latter of shape `(d,)`.

    Args:
        init_state: `(position, target) -> state`.
        kernel: the kernel that is tuned; its parameters have `adjusted`.
        coordinates: `state -> pytree`, the coordinates that it moves in.
        smoothing: lambda over gamma, passed on as it is.
        num_pilot: transitions of the pilot.
    """
    da_init, da_update, da_final = dual_averaging_adaptation(ACCEPTANCE)

    def start(position, params, num_steps) -> AdaptationState:
        schedule = jnp.asarray(build_schedule(max(num_steps, 1)), jnp.int32)
        averaging = jax.tree.map(jnp.asarray, da_init(params["step_size"]))
        moments = _no_moments(params["center"])
        inner = MirroredState(jnp.asarray(0), averaging, moments, schedule)
        return AdaptationState(params, position, inner=inner)

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        state = init_state(position, target)
        center, _ = ravel_pytree(coordinates(state))
        params = {
            "step_size": jnp.asarray(0.1 * center.size ** (-1 / 3), center.dtype),
            "smoothing": jnp.asarray(smoothing, center.dtype),
            "inverse_mass_matrix": jnp.ones_like(center),
            "center": center,
            "held_lambda": jnp.asarray(smoothing * MAX_STEP, center.dtype),
            "adjusted": jnp.asarray(True),
        }

        def pilot(carry, key):
            state, adapt, count = carry
            state, info = kernel(key, state, target, **adapt.params)
            count = count + info.num_grad_evals
            return (state, update(adapt, state, info), count), None

        first_key, rng_key = jax.random.split(rng_key)
        # a step of no length gives the state this smoothing
        still = {"step_size": 1e-10 * params["step_size"], "adjusted": False}
        state, info = kernel(first_key, state, target, **{**params, **still})
        carry = (state, start(position, params, num_pilot), info.num_grad_evals)
        keys = jax.random.split(rng_key, num_pilot)
        (state, adapt, count), _ = jax.lax.scan(pilot, carry, keys)
        params = final(adapt)
        if num_steps > 0:
            # not adjusted yet: the host's first state knows of no smoothing
            params["held_lambda"] = smoothing * params["step_size"]
        begun = start(state.position, params, num_steps)
        return begun._replace(num_grad_evals=count)

    def update(adapt, state, info) -> AdaptationState:
        step, averaging, moments, schedule = adapt.inner
        slow, last = schedule[step] == 1
        # a NaN acceptance rate (nowhere to go) counts as a rejection
        averaging = da_update(averaging, jnp.nan_to_num(info.acceptance_rate))
        flat, _ = ravel_pytree(coordinates(state))
        moments = select(slow, moments.add(flat), moments)
        params = {
            **adapt.params,
            "step_size": jnp.minimum(jnp.exp(averaging.log_step_size), 2 * MAX_STEP),
            "inverse_mass_matrix": jnp.where(
                last & jnp.any(moments.squares > 0),
                moments.variances(),
                adapt.params["inverse_mass_matrix"],
            ),
            "center": jnp.where(last, moments.mean, adapt.params["center"]),
            "held_lambda": jnp.where(
                last,
                smoothing * jnp.minimum(da_final(averaging), MAX_STEP),
                adapt.params["held_lambda"],
            ),
            "adjusted": ~last,
        }
        averaging = select(last, da_init(da_final(averaging)), averaging)
        moments = select(last, _no_moments(flat), moments)
        inner = MirroredState(step + 1, averaging, moments, schedule)
        new = adapt._replace(params=params, inner=inner)
        return jax.tree.map(
            lambda o, n: jnp.asarray(n, jnp.asarray(o).dtype), adapt, new
        )

    def final(adapt) -> dict[str, Any]:
        tuned = jnp.minimum(da_final(adapt.inner.averaging), MAX_STEP)
        # without a single update the average is not defined
        ran = adapt.inner.step > 0
        step_size = jnp.where(ran, tuned, adapt.params["step_size"])
        return {
            **adapt.params,
            "step_size": step_size.astype(adapt.params["step_size"].dtype),
            "held_lambda": jnp.zeros_like(adapt.params["held_lambda"]),
            "adjusted": jnp.asarray(False),
        }

    return Warmup(init, update, final)


def _no_moments(like: jax.Array) -> Moments:
    zero = jnp.zeros_like(like)
    return Moments(jnp.zeros((), like.dtype), zero, zero)
