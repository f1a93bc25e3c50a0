"""The warm-up of kernels that anneal from a wide Gaussian: a pilot, then a step size.

The pilot finds the coordinates and the modes. The transitions tune the Langevin step
that ends each path to its acceptance rate, and widen the base where draws turn out to
lie further apart than the modes said.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from nutfree.adaptation.base import AdaptationState, Warmup
from nutfree.adaptation.pilot import run_pilot
from nutfree.dynamics.evaluation import flatten

#: Draws before their spread is believed.
MIN_DRAWS = 20
#: The base is widened by no more than this: a path from too wide a base ends in
#: outliers, which would widen it further.
MAX_BASE_SCALE = 1.5


class AnnealedState(NamedTuple):
    """Dual averaging, and the first two moments of the draws so far."""

    dual_averaging: Any
    num_draws: jax.Array
    mean: jax.Array
    sum_of_squares: jax.Array


def annealed_warmup(
    *,
    num_starts: int,
    num_descent_steps: int,
    num_modes: int,
    target_acceptance_rate: float = 0.574,
) -> Warmup:
    """Find `center`, `scale`, `width`, `modes`, `base_scale` and `step_size`.

    Args:
        num_starts, num_descent_steps, num_modes: of the pilot.
        target_acceptance_rate: what the mean of `info.acceptance_rate` should be.
    """
    da_init, da_update, da_final = dual_averaging_adaptation(target_acceptance_rate)

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        del num_steps
        found = run_pilot(
            rng_key,
            position,
            target,
            num_starts=num_starts,
            num_steps=num_descent_steps,
            num_modes=num_modes,
        )
        x, _, unravel = flatten(position, target)
        # half of what is best on a Gaussian, 1.65^2 d^(-1/3)
        step_size = jnp.asarray(1.36 * x.size ** (-1 / 3), x.dtype)
        params = {
            "step_size": step_size,
            "base_scale": jnp.ones((), x.dtype),
            "center": found.center,
            "scale": found.scale,
            "width": found.width,
            "modes": found.modes,
        }
        averaging = jax.tree.map(jnp.asarray, da_init(step_size))
        zeros = jnp.zeros_like(x)
        inner = AnnealedState(averaging, jnp.asarray(0), zeros, zeros)
        return AdaptationState(
            params, unravel(found.best), found.num_grad_evals, inner=inner
        )

    def update(adapt_state, state, info) -> AdaptationState:
        params, inner = adapt_state.params, adapt_state.inner
        averaging = da_update(
            inner.dual_averaging, jnp.nan_to_num(info.acceptance_rate)
        )
        x, _ = ravel_pytree(state.position)
        u = (x - params["center"]) / params["scale"]
        count = inner.num_draws + 1
        mean = inner.mean + (u - inner.mean) / count
        squares = inner.sum_of_squares + (u - inner.mean) * (u - mean)
        spread = jnp.sqrt(jnp.max(squares / count + mean**2))
        wider = jnp.where(
            count >= MIN_DRAWS, jnp.clip(spread, 1.0, MAX_BASE_SCALE), 1.0
        )
        params = {
            **params,
            "step_size": jnp.exp(averaging.log_step_size),
            "base_scale": wider,
        }
        inner = AnnealedState(averaging, count, mean, squares)
        new = adapt_state._replace(params=params, inner=inner)
        # a loop's carry keeps its types
        return jax.tree.map(lambda o, n: jnp.asarray(n, o.dtype), adapt_state, new)

    def final(adapt_state) -> dict:
        params, inner = adapt_state.params, adapt_state.inner
        tuned = da_final(inner.dual_averaging).astype(params["step_size"].dtype)
        step_size = jnp.where(inner.num_draws > 0, tuned, params["step_size"])
        return {**params, "step_size": step_size}

    return Warmup(init, update, final)
