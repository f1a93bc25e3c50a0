"""The warm-up of kernels that anneal from a wide Gaussian: a pilot, then a step size.

The pilot finds the coordinates and the modes. The transitions tune the Langevin step
that ends each path to its acceptance rate, widen the base where draws turn out to lie
further apart than the modes said, and tell how many of the Langevin steps it takes
until the log density does not change any more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from nutfree.modes.pilot import PROBES_PER_START, run_pilot
from nutfree.modes.search import Effort
from nutfree.numerics.evaluation import flatten, is_finite, select
from nutfree.numerics.moments import Moments, no_moments
from nutfree.paths.polish import NUM_PARTS
from nutfree.warmup.base import AdaptationState, Warmup

#: Draws before their spread is believed.
MIN_DRAWS = 20
#: The base is widened by no more than this: a path from too wide a base ends in
#: outliers, which would widen it further.
MAX_BASE_SCALE = 1.5


class AnnealedState(NamedTuple):
    """Dual averaging, and the moments of the draws so far, of their log density, and of
    what its mean over each part of the moves lacks to that over the last."""

    dual_averaging: Any
    draws: Moments
    logdensity: Moments
    change: Moments


def annealed_warmup(
    *,
    num_starts: int,
    num_descent_steps: int,
    num_modes: int,
    num_steps: int,
    accuracy: float,
    target_acceptance_rate: float = 0.574,
) -> Warmup:
    """Find `center`, `scale`, `width`, `modes`, `base_scale`, `step_size`, `num_steps`.

    Args:
        num_starts, num_descent_steps, num_modes: of the pilot.
        num_steps: Langevin steps of the paths of warm-up.
        accuracy: error of the mean log density, in its standard deviations, that the
            number found may leave.
        target_acceptance_rate: what the mean of `info.acceptance_rate` should be.
    """
    da_init, da_update, da_final = dual_averaging_adaptation(target_acceptance_rate)

    def init(rng_key, position, target, num_transitions) -> AdaptationState:
        del num_transitions
        effort = Effort(
            num_starts=num_starts,
            num_steps=num_descent_steps,
            num_modes=num_modes,
            num_probes=PROBES_PER_START * num_starts,
        )
        found = run_pilot(rng_key, position, target, effort)
        x, _, unravel = flatten(position, target)
        # half of what is best on a Gaussian, 1.65^2 d^(-1/3)
        step_size = jnp.asarray(1.36 * x.size ** (-1 / 3), x.dtype)
        params = {
            "step_size": step_size,
            "num_steps": jnp.asarray(num_steps),
            "base_scale": jnp.ones((), x.dtype),
            "center": found.center,
            "scale": found.scale,
            "width": found.width,
            "modes": found.modes,
        }
        averaging = jax.tree.map(jnp.asarray, da_init(step_size))
        parts = jnp.zeros(NUM_PARTS, x.dtype)
        inner = AnnealedState(averaging, *map(no_moments, (x, x[0], parts)))
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
        draws = inner.draws.plus(u)
        spread = jnp.sqrt(jnp.max(draws.squares / draws.number + draws.mean**2))
        wider = jnp.where(
            draws.number >= MIN_DRAWS, jnp.clip(spread, 1.0, MAX_BASE_SCALE), 1.0
        )
        params = {
            **params,
            "step_size": jnp.exp(averaging.log_step_size),
            "base_scale": wider,
        }
        parts = info.log_densities
        known = is_finite(state.logdensity, parts)
        told = (
            inner.logdensity.plus(state.logdensity),
            inner.change.plus(parts - parts[0]),
        )
        told = select(known, told, inner[2:])
        inner = AnnealedState(averaging, draws, *told)
        new = adapt_state._replace(params=params, inner=inner)
        # a loop's carry keeps its types
        return jax.tree.map(lambda o, n: jnp.asarray(n, o.dtype), adapt_state, new)

    def final(adapt_state) -> dict:
        params, inner = adapt_state.params, adapt_state.inner
        tuned = da_final(inner.dual_averaging).astype(params["step_size"].dtype)
        step_size = jnp.where(inner.draws.number > 0, tuned, params["step_size"])
        needed = _steps_needed(inner.logdensity, inner.change, num_steps, accuracy)
        return {**params, "step_size": step_size, "num_steps": needed}

    return Warmup(init, update, final)


def _steps_needed(
    logdensity: Moments, change: Moments, num_steps: int, accuracy: float
) -> jax.Array:
    """Steps after which the mean log density is what it is at the end of `num_steps`.

    Halved as often as every part from there on agrees with the last half, within
    `accuracy` and a standard error; doubled where even the quarter before that half
    disagrees, by more than twice its error.
    """
    number = jnp.maximum(change.number, 2)
    error = jnp.sqrt(change.squares / (number * (number - 1)))
    allowed = accuracy * jnp.sqrt(logdensity.squares / (number - 1))
    agrees = jnp.abs(change.mean) + error <= allowed
    agrees = agrees & (change.number >= MIN_DRAWS)
    halvings = jnp.sum(jnp.cumprod(agrees[1:]))
    late = (jnp.abs(change.mean) - 2 * error > allowed)[1]
    late = late & (change.number >= MIN_DRAWS)
    return jnp.where(late, 2 * num_steps, num_steps // 2**halvings)
