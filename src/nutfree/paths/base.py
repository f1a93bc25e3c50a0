"""State, transition and specification shared by the annealed path samplers.

Every transition walks a path in the coordinates of the pilot, and draws anew at its
end. Metropolis-adjusted moves on pi itself follow (`paths.polish`).

Order of the bias: whatever law the paths end in, its distance to pi falls
geometrically with the number of these moves, faster than any power of num_steps inside
a mode and of num_jumps between the known modes.
Gradients: those of the path, one where it ends, and one each move.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.facts import separate_modes
from nutfree.modes.mixture import (
    Modes,
    conditional_width,
    draw_given_observation,
    number_of,
)
from nutfree.modes.search import standardised
from nutfree.numerics.evaluation import (
    Spent,
    counted_value_and_grad,
    flatten,
    noticing_blind,
)
from nutfree.paths.polish import Point, polish, start_at
from nutfree.paths.warmup import NUM_STEPS, PathOptions, warmup
from nutfree.registry import KernelSpec
from nutfree.target import LogDensity, Position

#: A base narrower than this, in posterior sds, is told to the user.
NARROW = 0.5


class PathState(NamedTuple):
    """A draw (a pytree), its log density, and the gradient there (a pytree)."""

    position: Position
    logdensity: jax.Array
    logdensity_grad: Position


class PathInfo(NamedTuple):
    """Mean acceptance probabilities of the last Langevin steps and of the jumps.

    A path that ended where the density is not finite is divergent; the draw is then
    made by the Metropolis-adjusted moves alone, from the draw before. So is a
    transition that met a gradient which is not finite where the density is. The log
    densities are those of `paths.polish.Polished`.
    """

    acceptance_rate: jax.Array
    jump_rate: jax.Array
    log_densities: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array


class Posterior(NamedTuple):
    """What a walk knows of the posterior, in the pilot's coordinates.

    target : log density of a vector `(d,)`.
    evaluate : `(u, count) -> (log density, gradient, count)`.
    previous : the draw before.
    step_size, base_scale, width, modes : as `warmup` finds them.
    """

    target: LogDensity
    evaluate: Callable
    previous: Point
    step_size: jax.Array
    base_scale: jax.Array
    width: jax.Array
    modes: Modes

    def nearest_width(self, u: jax.Array) -> jax.Array:
        return conditional_width(self.modes, u)

    def draw_given_observation(self, rng_key, m, s) -> jax.Array:
        return draw_given_observation(rng_key, self.modes, m, s)


def init(position, logdensity_fn, rng_key=None, options=PathOptions()) -> PathState:
    del rng_key, options
    return PathState(position, *jax.value_and_grad(logdensity_fn)(position))


def path_kernel(walk: Callable, num_jumps: int, polished: bool = True) -> Callable:
    """Return `kernel(rng_key, state, logdensity_fn, **params)`.

    The parameters are those of `warmup`: `step_size` and `num_steps` of the last
    Langevin steps, `base_scale` (sigma, in posterior sds), and the pilot's coordinates
    u = (x - `center`) / `scale`, `width` and `modes`.

    Args:
        walk: `walk(rng_key, posterior) -> (u, count)`, the end of a path.
        num_jumps: jumps among the moves that follow it.
        polished: whether any moves follow.
    """

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        base_scale,
        center,
        scale,
        width,
        modes,
        num_steps=NUM_STEPS,
    ) -> tuple[PathState, PathInfo]:
        x, logdensity, unravel = flatten(state.position, logdensity_fn)
        target = standardised(logdensity, center, scale)
        evaluate = counted_value_and_grad(target)
        path_key, polish_key = jax.random.split(rng_key)
        grad, _ = ravel_pytree(state.logdensity_grad)
        previous = Point((x - center) / scale, state.logdensity, scale * grad)
        posterior = Posterior(
            target, evaluate, previous, step_size, base_scale, width, modes
        )
        u, count = walk(path_key, posterior)
        evaluate = noticing_blind(evaluate, previous.value)
        spent = Spent(count, jnp.asarray(False))
        start, lost, spent = start_at(u, previous, evaluate, spent)
        end = polish(
            polish_key,
            start,
            evaluate,
            modes,
            step_size=step_size,
            num_steps=num_steps if polished else 0,
            num_jumps=num_jumps if polished else 0,
            count=spent,
        )
        point, spent = end.point, end.spent
        position = unravel(center + scale * point.u)
        new = PathState(position, point.value, unravel(point.grad / scale))
        info = PathInfo(
            end.acceptance_rate,
            end.jump_rate,
            end.log_densities,
            lost | spent.blind,
            spent.evaluations,
        )
        return new, info

    return kernel


def final_gradients(options: PathOptions, params: dict, target) -> Any:
    """Gradients of a transition after its path."""
    del target
    return 1 + params["num_steps"] + options.num_jumps


#: What reduces the bias of a path sampler, and what shows it.
BIAS = (
    "each draw is a fresh path followed by finitely many exact moves: inside a mode "
    "the bias falls geometrically with num_steps, which warm-up sets from accuracy, "
    "and the kernel Stein discrepancy shows it; the weights of known modes converge "
    "with num_jumps; a mode that the pilot's num_starts missed is hardly visited, and "
    "disagreement of mode weights between chains, each with a pilot of its own, shows "
    "it. "
)


def path_spec(*, bias: str, **particular: Any) -> KernelSpec:
    """The specification of a path sampler; `bias` is that of its path alone."""
    return KernelSpec(
        init=init,
        warmup=warmup,
        draws="independent",
        suits=separate_modes,
        guarantee="biased",
        bias=BIAS + bias,
        bias_order={"num_steps": -math.inf},
        concerns=concerns,
        findings=findings,
        **particular,
    )


def findings(params: dict) -> dict[str, jax.Array]:
    return {"num_modes": number_of(params["modes"])}


def concerns(params: dict) -> list[str]:
    """What the parameters of a path say against it, for the user to read."""
    base_scale = float(jnp.min(params["base_scale"]))
    if base_scale >= NARROW:
        return []
    return [
        f"The base is narrow: base_scale is {base_scale:.3g}, and the modes that the "
        "pilot found spread over 1, in units of the posterior's standard deviation. "
        "Paths will start among a few of the modes and give them too much weight; "
        "leave base_scale to warm-up, or give it at least 1."
    ]
