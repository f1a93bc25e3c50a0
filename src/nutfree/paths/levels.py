"""The walk over noise levels of arXiv 2508.15069, shared by MultALMC and MultCDiff.

It is `paths.annealed_path` with the slow-fast denoiser, and ends in the fast variable
y at a small noise. Gradients: num_levels x num_fast_steps, times num_stages + 1 for
SK-ROCK.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from nutfree.numerics import skrock
from nutfree.paths.base import Posterior, final_gradients
from nutfree.paths.paths import SCHEDULES, annealed_path, noise_levels
from nutfree.paths.slow import Slow
from nutfree.paths.slow_fast import slow_fast
from nutfree.registry import option

#: The first noise, in units of sigma: nine tenths of the first x is noise.
FIRST_NOISE = 3.0
#: The last noise, in widths of the narrowest mode.
LAST_NOISE = 0.5
#: The noise below which the fast chain is carried along, in posterior sds.
RESTART_ABOVE = 0.1
#: Step size h of the fast chain, an eighth of what is stable.
FAST_STEP_SIZE = 0.5
#: Step size of SK-ROCK in units of its reach, a third of what is stable, as it damps
#: what is stiff.
SK_ROCK_SHARE = 2.0 / 3.0


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
        "modes, or at the observation x / sqrt(lambda) itself, which finds modes that "
        "the pilot missed",
        choices=("modes", "look"),
    )


def level_walk(options: LevelOptions, slow: Callable[[jax.Array], Slow]) -> Callable:
    """Return the walk for `base.path_kernel`, with `slow(levels)` as its dynamics."""
    num_stages = {"langevin": 0, "sk_rock": options.num_stages}[options.fast]
    step_size = (
        SK_ROCK_SHARE * skrock.reach(num_stages) if num_stages else FAST_STEP_SIZE
    )
    tails = {"gaussian": None, "student_t": options.degrees_of_freedom}
    degrees_of_freedom = tails[options.base]
    from_modes = options.restart == "modes"

    def walk(rng_key, posterior: Posterior) -> tuple[jax.Array, jax.Array]:
        denoiser = slow_fast(
            posterior.target,
            num_steps=options.num_fast_steps,
            step_size=step_size,
            num_stages=num_stages,
            width=posterior.nearest_width,
            restart=posterior.draw_given_observation if from_modes else None,
            restart_above=RESTART_ABOVE,
            degrees_of_freedom=degrees_of_freedom,
        )
        last = LAST_NOISE * jnp.min(posterior.width) / posterior.base_scale
        levels = noise_levels(options.num_levels, FIRST_NOISE, last, options.schedule)
        path = annealed_path(
            rng_key,
            denoiser,
            levels,
            dim=posterior.previous.u.size,
            base_scale=posterior.base_scale,
            width=posterior.nearest_width,
            slow=slow(levels),
            degrees_of_freedom=degrees_of_freedom,
        )
        return path.carry, path.spent

    return walk


def level_gradients(options: Any, params: dict, target: Any) -> Any:
    """Gradients of a transition of a kernel with this walk."""
    each = options.num_stages + 1 if options.fast == "sk_rock" else 1
    path = options.num_levels * options.num_fast_steps * each
    return path + final_gradients(options, params, target)
