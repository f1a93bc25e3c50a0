"""What kernels share whose every transition walks a path and draws anew at its end.

A path, in the coordinates of the pilot, ends in a point; Metropolis-adjusted moves on
pi itself follow (`paths.polish`). Here are the state, the warm-up and the options of
all of them, and the walk over noise levels of the multiscale ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.modes.mixture import (
    Modes,
    conditional_width,
    draw_given_observation,
    number_of,
)
from nutfree.modes.pilot import NUM_STARTS
from nutfree.modes.search import standardised
from nutfree.numerics import skrock
from nutfree.numerics.evaluation import counted_value_and_grad, flatten
from nutfree.paths.denoisers import slow_fast
from nutfree.paths.paths import SCHEDULES, annealed_path, noise_levels
from nutfree.paths.polish import Point, polish, start_at
from nutfree.paths.slow import Slow
from nutfree.paths.warmup import annealed_warmup
from nutfree.registry import option
from nutfree.target import LogDensity, Position
from nutfree.warmup import Warmup

#: The first noise, in units of sigma: nine tenths of the first x is noise.
FIRST_NOISE = 3.0
#: The fast chain starts again until the noise is this small, in posterior sds.
RESTART_ABOVE = 0.1
#: Of the fast chain: an eighth of what is stable, and for SK-ROCK, which damps what
#: is stiff, a third.
FAST_STEP_SIZE = 0.5
SK_ROCK_SHARE = 2.0 / 3.0
#: Of the Langevin steps at a path's end, before warm-up knows how many it takes.
NUM_STEPS = 192
#: A base narrower than this share of the posterior's sd is told to the user.
NARROW = 0.5


class PathState(NamedTuple):
    """A draw (a pytree), its log density, and the gradient there (a pytree)."""

    position: Position
    logdensity: jax.Array
    logdensity_grad: Position


class PathInfo(NamedTuple):
    """Mean acceptance probabilities of the last Langevin steps and of the jumps.

    A path that ended where the density is not finite is divergent; the draw is then
    made by the Metropolis-adjusted moves alone, from the draw before. The log densities
    are those of `paths.polish.Polished`.
    """

    acceptance_rate: jax.Array
    jump_rate: jax.Array
    log_densities: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array


class Setting(NamedTuple):
    """What a walk knows of the posterior, in the pilot's coordinates.

    target : log density of a vector `(d,)`.
    evaluate : `(u, count) -> (log density, gradient, count)`.
    previous : the draw before.
    step_size, base_scale, width, modes : as `annealed_warmup` finds them.
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

    def modes_given_look(self, rng_key, m, s) -> jax.Array:
        return draw_given_observation(rng_key, self.modes, m, s)


def init(position, logdensity_fn, rng_key=None) -> PathState:
    del rng_key
    return PathState(position, *jax.value_and_grad(logdensity_fn)(position))


def path_kernel(walk: Callable, *, num_jumps: int, polished: bool = True) -> Callable:
    """Return `kernel(rng_key, state, logdensity_fn, **params)`.

    The parameters are those of `annealed_warmup`: `step_size` and number of the last
    Langevin steps, `base_scale` (sigma, in posterior sds), and the pilot's coordinates
    u = (x - `center`) / `scale`, `width` and `modes`.

    Args:
        walk: `walk(rng_key, setting) -> (u, count)`, the end of a path.
        num_jumps: of the moves that follow it.
        polished: whether any do.
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
        known = (step_size, base_scale, width, modes)
        u, count = walk(path_key, Setting(target, evaluate, previous, *known))
        start, lost, count = start_at(u, previous, evaluate, count)
        end = polish(
            polish_key,
            start,
            evaluate,
            modes,
            step_size=step_size,
            num_steps=num_steps if polished else 0,
            num_jumps=num_jumps if polished else 0,
            count=count,
        )
        point = end.point
        position = unravel(center + scale * point.u)
        new = PathState(position, point.value, unravel(point.grad / scale))
        info = PathInfo(
            end.acceptance_rate, end.jump_rate, end.log_densities, lost, end.spent
        )
        return new, info

    return kernel


def warmup(
    *,
    num_starts: int = 256,
    num_descent_steps: int = 100,
    num_modes: int = 64,
    accuracy: float = 0.05,
) -> Warmup:
    return annealed_warmup(
        num_starts=num_starts,
        num_descent_steps=num_descent_steps,
        num_modes=num_modes,
        num_steps=NUM_STEPS,
        accuracy=accuracy,
    )


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


def level_walk(
    slow: Callable[[jax.Array], Slow],
    *,
    num_levels: int,
    num_fast_steps: int,
    restart: str,
    schedule: str,
    fast: str,
    num_stages: int,
    degrees_of_freedom: float | None,
) -> Callable:
    """The walk of the multiscale kernels, for `path_kernel`.

    Args:
        slow: `slow(levels) -> Slow`.
        degrees_of_freedom: of the base; None for a Gaussian one.
        num_levels, num_fast_steps, restart, schedule, fast, num_stages: see
            `LevelOptions`.
    """
    stiff = fast == "sk_rock"
    fast_step = SK_ROCK_SHARE * skrock.reach(num_stages) if stiff else FAST_STEP_SIZE

    def walk(rng_key, at: Setting) -> tuple[jax.Array, jax.Array]:
        denoiser = slow_fast(
            at.target,
            num_steps=num_fast_steps,
            step_size=fast_step,
            num_stages=num_stages if stiff else 0,
            width=at.nearest_width,
            restart=None if restart == "look" else at.modes_given_look,
            restart_above=RESTART_ABOVE,
            degrees_of_freedom=degrees_of_freedom,
        )
        last = 0.5 * jnp.min(at.width) / at.base_scale
        levels = noise_levels(num_levels, FIRST_NOISE, last, schedule)
        path = annealed_path(
            rng_key,
            denoiser,
            levels,
            dim=at.previous.u.size,
            base_scale=at.base_scale,
            width=at.nearest_width,
            slow=slow(levels),
            degrees_of_freedom=degrees_of_freedom,
        )
        return path.carry, path.spent

    return walk


@dataclass(frozen=True)
class LevelOptions:
    """Options of the walk over noise levels."""

    num_levels: int = option(16, "noise levels of a path", ge=2)
    schedule: str = option(
        "sigmoid",
        "how lambda rises over the levels: as a sigmoid, so that the noise falls by "
        "the same factor each time, evenly, or as the square of a sine",
        choices=SCHEDULES,
    )
    dynamics: str = option(
        "overdamped",
        "slow dynamics, without or with a velocity",
        choices=("overdamped", "underdamped"),
    )
    base: str = option(
        "gaussian",
        "where a path starts; student_t keeps heavy tails if the estimate of the score "
        "is exact, and with a few fast steps makes little difference: there the last "
        "moves on the posterior bring the tails back",
        choices=("gaussian", "student_t"),
    )
    degrees_of_freedom: float = option(4.0, "of a student_t base", gt=1)
    num_fast_steps: int = option(4, "fast Langevin steps at each level", ge=1)
    fast: str = option(
        "langevin",
        "what makes them: Euler-Maruyama, with one gradient each, or the stabilised "
        "SK-ROCK, for tilted densities far narrower along some directions than the "
        "pilot says, with num_stages + 1",
        choices=("langevin", "sk_rock"),
    )
    num_stages: int = option(3, "stages of SK-ROCK", ge=2)
    restart: str = option(
        "modes",
        "where the fast chain starts early in the path: at a draw from the pilot's "
        "modes, or at the look itself, which finds modes that the pilot missed",
        choices=("modes", "look"),
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
