"""The warm-up of the annealed path samplers is a pilot, and then a few paths.

The pilot finds the coordinates and the modes. The transitions tune the Langevin step
that ends each path to its acceptance rate, widen the base where draws turn out to lie
further apart than the modes said, and tell how many of the Langevin steps it takes
until the log density does not change any more.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from nutfree.modes.pilot import NUM_STARTS, PROBES_PER_START, run_pilot
from nutfree.modes.search import Effort
from nutfree.numerics.evaluation import flatten, is_finite, select
from nutfree.numerics.moments import Moments, no_moments
from nutfree.paths.polish import NUM_PARTS
from nutfree.registry import option
from nutfree.warmup.base import AdaptationState, Warmup

#: Langevin steps at the end of a path during warm-up, which finds how many it takes:
#: enough for the halvings that `_steps_needed` compares.
NUM_STEPS = 192
#: Acceptance rate of the last Langevin steps, optimal for MALA (`langevin.mala`).
ACCEPTANCE = 0.574
#: The first step size, of d^(-1/3): half of 1.65^2, which is best on a Gaussian.
FIRST_STEP_SIZE = 1.36
#: Draws before their spread is believed.
MIN_DRAWS = 20
#: The widest base, in posterior sds: a path from too wide a base ends in outliers,
#: which would widen it further.
MAX_BASE_SCALE = 1.5


@dataclass(frozen=True)
class PathOptions:
    """Options of the end of a path and of the warm-up."""

    accuracy: float = option(
        0.05,
        "error of the mean log density, in its sds, that sets num_steps",
        gt=0,
        le=1,
    )
    num_jumps: int = option(12, "Metropolis jumps between modes, among them", ge=0)
    num_starts: int = option(256, NUM_STARTS, ge=2)
    num_descent_steps: int = option(100, "gradients of each of its descents", ge=1)
    num_modes: int = option(64, "the most modes that it keeps", ge=1)
    step_size: float | None = option(
        None, "step of the last Langevin moves, in widths of a mode", gt=0, tuned=True
    )
    num_steps: int | None = option(
        None, "Metropolis-adjusted Langevin steps at its end", ge=1, tuned=True
    )
    base_scale: float | None = option(
        None, "sigma of the base, in posterior standard deviations", gt=0, tuned=True
    )


class PathWarmupState(NamedTuple):
    """What the paths of warm-up have told so far.

    dual_averaging : of the step size.
    draws : in the pilot's coordinates.
    logdensity : of the draws.
    change : (NUM_PARTS,), the mean log density over each part of the last moves less
        that over the last part.
    """

    dual_averaging: Any
    draws: Moments
    logdensity: Moments
    change: Moments


def warmup(options: PathOptions = PathOptions()) -> Warmup:
    """Find `center`, `scale`, `width`, `modes`, `base_scale`, `step_size`, `num_steps`.

    The first four, which the pilot finds, stay as they are during the transitions.
    """
    da_init, da_update, da_final = dual_averaging_adaptation(ACCEPTANCE)

    def init(rng_key, position, target, num_transitions) -> AdaptationState:
        del num_transitions
        effort = Effort(
            num_starts=options.num_starts,
            num_steps=options.num_descent_steps,
            num_modes=options.num_modes,
            num_probes=PROBES_PER_START * options.num_starts,
        )
        found = run_pilot(rng_key, position, target, effort)
        x, _, unravel = flatten(position, target)
        step_size = jnp.asarray(FIRST_STEP_SIZE * x.size ** (-1 / 3), x.dtype)
        params = {
            "step_size": step_size,
            "num_steps": jnp.asarray(NUM_STEPS),
            "base_scale": jnp.ones((), x.dtype),
            "center": found.center,
            "scale": found.scale,
            "width": found.width,
            "modes": found.modes,
        }
        averaging = jax.tree.map(jnp.asarray, da_init(step_size))
        parts = jnp.zeros(NUM_PARTS, x.dtype)
        inner = PathWarmupState(averaging, *map(no_moments, (x, x[0], parts)))
        position = unravel(found.best)
        return AdaptationState(params, position, found.num_grad_evals, inner=inner)

    def update(adapt_state, state, info) -> AdaptationState:
        params, inner = adapt_state.params, adapt_state.inner
        rate = jnp.nan_to_num(info.acceptance_rate)
        averaging = da_update(inner.dual_averaging, rate)
        x, _ = ravel_pytree(state.position)
        draws = inner.draws.plus((x - params["center"]) / params["scale"])
        logdensity, change = _with_path(inner, state.logdensity, info.log_densities)
        params = {
            **params,
            "step_size": jnp.exp(averaging.log_step_size),
            "base_scale": _base_scale(draws),
        }
        inner = PathWarmupState(averaging, draws, logdensity, change)
        new = adapt_state._replace(params=params, inner=inner)
        # a loop's carry keeps its types
        return jax.tree.map(lambda o, n: jnp.asarray(n, o.dtype), adapt_state, new)

    def final(adapt_state) -> dict:
        params, inner = adapt_state.params, adapt_state.inner
        tuned = da_final(inner.dual_averaging).astype(params["step_size"].dtype)
        step_size = jnp.where(inner.draws.number > 0, tuned, params["step_size"])
        needed = _steps_needed(inner.logdensity, inner.change, options.accuracy)
        return {**params, "step_size": step_size, "num_steps": needed}

    return Warmup(init, update, final)


def _with_path(inner: PathWarmupState, logdensity, parts) -> tuple[Moments, Moments]:
    """`logdensity` and `change` with one more path, if all of it is finite."""
    new = (inner.logdensity.plus(logdensity), inner.change.plus(parts - parts[0]))
    old = (inner.logdensity, inner.change)
    return select(is_finite(logdensity, parts), new, old)


def _base_scale(draws: Moments) -> jax.Array:
    """The largest root mean square of a coordinate of the draws, within limits."""
    spread = jnp.sqrt(jnp.max(draws.squares / draws.number + draws.mean**2))
    wide = jnp.clip(spread, 1.0, MAX_BASE_SCALE)
    return jnp.where(draws.number >= MIN_DRAWS, wide, 1.0)


def _steps_needed(logdensity: Moments, change: Moments, accuracy: float) -> jax.Array:
    """Steps after which the mean log density is what it is at the end of `NUM_STEPS`.

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
    return jnp.where(late, 2 * NUM_STEPS, NUM_STEPS // 2**halvings)
