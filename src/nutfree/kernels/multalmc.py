"""MultALMC: multiscale annealed Langevin, for multimodal posteriors with a gradient.

Reference: Cordero-Encinar, Duncan, Reich and Akyildiz, arXiv 2508.15069; overdamped
dynamics, Gaussian base. One transition walks X_lambda = sqrt(lambda) X
+ sqrt(1 - lambda) sigma z from lambda near 0 to lambda near 1,

    slow:  dx = (sqrt(lambda) y - x) / (sigma^2 (1 - lambda)) dt + sqrt(2) dB,
    fast:  dy = (1/eps) grad_y log rho_lambda(y | x) dt + sqrt(2/eps) dB',
           rho_lambda(y | x) ~ pi(y) N(x; sqrt(lambda) y, sigma^2 (1 - lambda)),

and so draws anew each time. The law at the end of a path is biased, in order one of the
slow and the fast step. Gradients: num_levels x num_fast_steps, and then 1 + num_steps +
num_jumps.

It differs from the paper in four ways. A pilot sets the coordinates, sigma and the
step of each level. The slow drift averages y and the target-score form with the weights
that leave the least variance (`denoisers.slow_fast`). Early in the path the fast chain
starts again at every level, from the pilot's modes as x sees them or from
x / sqrt(lambda); later it is carried, as the paper carries it throughout. The path ends
in y at a small noise, and then in Metropolis-adjusted moves on pi itself
(`dynamics.polish`): Langevin steps repair the shape inside a mode, jumps between the
pilot's modes their weights.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.adaptation import Warmup
from nutfree.adaptation.annealed import annealed_warmup
from nutfree.adaptation.pilot import standardised
from nutfree.dynamics.denoisers import slow_fast
from nutfree.dynamics.evaluation import counted_value_and_grad, flatten
from nutfree.dynamics.modes import conditional_width, draw_given_look
from nutfree.dynamics.paths import annealed_path, noise_levels
from nutfree.dynamics.polish import Point, polish, start_at
from nutfree.registry import KernelSpec, option
from nutfree.target import Position

#: The first noise, in units of sigma: nine tenths of the first x is noise.
FIRST_NOISE = 3.0
#: The fast chain starts again until the noise is this small, in posterior sds.
RESTART_ABOVE = 0.1
FAST_STEP_SIZE = 0.5
SLOW_STEP_SIZE = 1.0


class MultALMCState(NamedTuple):
    """A draw (a pytree), its log density, and the gradient there (a pytree)."""

    position: Position
    logdensity: jax.Array
    logdensity_grad: Position


class MultALMCInfo(NamedTuple):
    """Mean acceptance probabilities of the last Langevin steps and of the jumps.

    A path that ended where the density is not finite is divergent; the draw is then
    made by the Metropolis-adjusted moves alone, from the draw before.
    """

    acceptance_rate: jax.Array
    jump_rate: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array


def init(position, logdensity_fn, rng_key=None) -> MultALMCState:
    del rng_key
    return MultALMCState(position, *jax.value_and_grad(logdensity_fn)(position))


def standardised_point(state: MultALMCState, center, scale) -> Point:
    """The state in the coordinates u = (x - center) / scale."""
    x, _ = ravel_pytree(state.position)
    grad, _ = ravel_pytree(state.logdensity_grad)
    return Point((x - center) / scale, state.logdensity, scale * grad)


def state_at(point: Point, unravel, center, scale) -> MultALMCState:
    """The inverse of `standardised_point`."""
    position = unravel(center + scale * point.u)
    return MultALMCState(position, point.value, unravel(point.grad / scale))


def build_kernel(
    *,
    num_levels: int = 16,
    num_fast_steps: int = 4,
    num_steps: int = 192,
    num_jumps: int = 12,
    restart: str = "modes",
):
    """Return `kernel(rng_key, state, logdensity_fn, **params)`.

    The parameters are those of `annealed_warmup`: `step_size` of the last Langevin
    steps, `base_scale` (sigma, in posterior sds), and the pilot's coordinates
    u = (x - `center`) / `scale`, `width` and `modes`.
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
    ) -> tuple[MultALMCState, MultALMCInfo]:
        x, logdensity, unravel = flatten(state.position, logdensity_fn)
        target = standardised(logdensity, center, scale)
        evaluate = counted_value_and_grad(target)
        path_key, polish_key = jax.random.split(rng_key)

        def nearest_width(u):
            return conditional_width(modes, u)

        denoiser = slow_fast(
            target,
            num_steps=num_fast_steps,
            step_size=FAST_STEP_SIZE,
            width=nearest_width,
            restart=None
            if restart == "look"
            else lambda key, m, s: draw_given_look(key, modes, m, s),
            restart_above=RESTART_ABOVE,
        )
        path = annealed_path(
            path_key,
            denoiser,
            noise_levels(num_levels, FIRST_NOISE, 0.5 * jnp.min(width) / base_scale),
            dim=x.size,
            base_scale=base_scale,
            width=nearest_width,
            step_size=SLOW_STEP_SIZE,
        )
        previous = standardised_point(state, center, scale)
        start, lost, count = start_at(path.carry, previous, evaluate, path.spent)
        end = polish(
            polish_key,
            start,
            evaluate,
            modes,
            step_size=step_size,
            num_steps=num_steps,
            num_jumps=num_jumps,
            count=count,
        )
        info = MultALMCInfo(end.acceptance_rate, end.jump_rate, lost, end.spent)
        return state_at(end.point, unravel, center, scale), info

    return kernel


def warmup(
    *, num_starts: int = 256, num_descent_steps: int = 100, num_modes: int = 64
) -> Warmup:
    return annealed_warmup(
        num_starts=num_starts, num_descent_steps=num_descent_steps, num_modes=num_modes
    )


@dataclass(frozen=True)
class Options:
    num_levels: int = option(16, "noise levels of a path", ge=2)
    num_fast_steps: int = option(4, "fast Langevin steps at each level", ge=1)
    num_steps: int = option(192, "Metropolis-adjusted Langevin steps at its end", ge=1)
    num_jumps: int = option(12, "Metropolis jumps between modes, among them", ge=0)
    restart: str = option(
        "modes",
        "where the fast chain starts early in the path: at a draw from the pilot's "
        "modes, or at the look itself, which finds modes that the pilot missed",
        choices=("modes", "look"),
    )
    num_starts: int = option(256, "starts of the pilot", ge=2)
    num_descent_steps: int = option(100, "gradients of each of its descents", ge=1)
    num_modes: int = option(64, "the most modes that it keeps", ge=1)
    step_size: float | None = option(
        None, "step of the last Langevin moves, in widths of a mode", gt=0, tuned=True
    )
    base_scale: float | None = option(
        None, "sigma of the base, in posterior standard deviations", gt=0, tuned=True
    )


SPEC = KernelSpec(
    name="multalmc",
    family="multiscale",
    summary="annealed slow-fast Langevin from a pilot's modes; independent draws",
    paper="arXiv 2508.15069",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    draws="independent",
    guarantee="biased",
    bias="each draw is a fresh path followed by finitely many exact moves: inside a "
    "mode the bias falls with num_steps, and the kernel Stein discrepancy shows it; "
    "the weights of known modes converge with num_jumps; a mode that the pilot's "
    "num_starts missed is hardly visited, and disagreement of mode weights between "
    "chains, each with a pilot of its own, shows it",
    recommended=True,
)
