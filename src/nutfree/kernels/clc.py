"""Chain of log-concave Markov chains, for multimodal posteriors with a gradient.

Reference: Saremi, Park and Bach, arXiv 2305.19473; one look at a time, underdamped.
Noisy looks y_m = X + sigma z_m, m = 1...M, are drawn each given those before it, from a
density that is log-concave when sigma covers the posterior and that needs only their
mean ybar_m:

    grad log p(y_m | y_1...y_(m-1)) = (D(ybar_m, sigma/sqrt(m)) - y_m) / sigma^2.

Then a draw of X given ybar_M. The law is biased in the step of the looks' Langevin
dynamics and in the estimate of D. Gradients: num_looks x num_look_steps x
num_fast_steps, and for the draw 2 + num_tilted_steps + num_steps + num_jumps.

It differs from the paper in that D is estimated by a few Langevin steps that start at a
draw from a pilot's modes as ybar_m sees them, and in the end: the paper's jump to
D(ybar_M, sigma/sqrt(M)), a conditional mean, shrinks the law by about sigma^2/M, so the
default draws from pi(x) N(x; ybar_M, sigma^2/M) by Metropolis-adjusted Langevin and
then makes the moves on pi itself of `dynamics.polish`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nutfree.adaptation import Warmup
from nutfree.adaptation.annealed import annealed_warmup
from nutfree.adaptation.pilot import standardised
from nutfree.dynamics.denoisers import slow_fast
from nutfree.dynamics.evaluation import counted_value_and_grad, flatten
from nutfree.dynamics.modes import conditional_width, draw_given_look
from nutfree.dynamics.paths import looks_path
from nutfree.dynamics.polish import polish, start_at
from nutfree.kernels import multalmc
from nutfree.kernels.multalmc import MultALMCInfo as CLCInfo
from nutfree.kernels.multalmc import MultALMCState as CLCState
from nutfree.kernels.multalmc import standardised_point, state_at
from nutfree.registry import KernelSpec, option

init = multalmc.init

FAST_STEP_SIZE = 0.5
#: Of the looks' dynamics, in units of sigma.
LOOK_STEP_SIZE = 0.7


def build_kernel(
    *,
    num_looks: int = 24,
    noise: float = 1.5,
    num_look_steps: int = 2,
    num_fast_steps: int = 2,
    num_tilted_steps: int = 16,
    num_steps: int = 192,
    num_jumps: int = 12,
    final: str = "draw",
):
    """Return `kernel(rng_key, state, logdensity_fn, **params)`.

    The parameters are those of `annealed_warmup`. Noise is in units of `base_scale`.
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
    ) -> tuple[CLCState, CLCInfo]:
        del width
        x, logdensity, unravel = flatten(state.position, logdensity_fn)
        target = standardised(logdensity, center, scale)
        evaluate = counted_value_and_grad(target)
        path_key, mean_key, tilted_key, polish_key = jax.random.split(rng_key, 4)
        previous = standardised_point(state, center, scale)

        denoiser = slow_fast(
            target,
            num_steps=num_fast_steps,
            step_size=FAST_STEP_SIZE,
            width=lambda y: conditional_width(modes, y),
            restart=lambda key, m, s: draw_given_look(key, modes, m, s),
            restart_above=0.0,
        )
        sigma = noise * base_scale
        path = looks_path(
            path_key,
            denoiser,
            num_looks,
            dim=x.size,
            base_scale=base_scale,
            noise=jnp.asarray(sigma, x.dtype),
            num_steps=num_look_steps,
            step_size=LOOK_STEP_SIZE,
        )
        if final == "jump":
            jump, _, count = denoiser.step(
                mean_key, path.carry, path.look, path.noise, path.spent
            )
            point, lost, count = start_at(jump, previous, evaluate, count)
            nan = jnp.full_like(point.value, jnp.nan)
            info = CLCInfo(nan, nan, lost, count)
            return state_at(point, unravel, center, scale), info

        def tilted(u, count):
            value, grad, count = evaluate(u, count)
            z = (u - path.look) / path.noise
            return value - 0.5 * jnp.sum(z**2), grad - z / path.noise, count

        # the tilt narrows every mode alike; without jumps their weights do not matter
        narrowed = modes._replace(width=(modes.width**-2.0 + path.noise**-2.0) ** -0.5)
        start, _, count = start_at(path.carry, previous, tilted, path.spent)
        drawn = polish(
            tilted_key,
            start,
            tilted,
            narrowed,
            step_size=step_size,
            num_steps=num_tilted_steps,
            num_jumps=0,
            count=count,
        )
        start, lost, count = start_at(drawn.point.u, previous, evaluate, drawn.spent)
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
        info = CLCInfo(end.acceptance_rate, end.jump_rate, lost, end.spent)
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
    num_looks: int = option(24, "noisy looks M that are accumulated", ge=1)
    noise: float = option(1.5, "sigma of a look, in units of base_scale", gt=0)
    num_look_steps: int = option(2, "underdamped Langevin steps for each look", ge=1)
    num_fast_steps: int = option(2, "Langevin steps for each estimate of D", ge=1)
    num_tilted_steps: int = option(16, "steps that draw x given the looks", ge=1)
    num_steps: int = option(192, "Metropolis-adjusted Langevin steps after that", ge=1)
    num_jumps: int = option(12, "Metropolis jumps between modes, among them", ge=0)
    final: str = option(
        "draw",
        "end in a draw of x given the looks, or in the paper's jump to its mean",
        choices=("draw", "jump"),
    )
    num_starts: int = option(256, "starts of the pilot", ge=2)
    num_descent_steps: int = option(100, "gradients of each of its descents", ge=1)
    num_modes: int = option(64, "the most modes that it keeps", ge=1)
    step_size: float | None = option(
        None, "step of the last Langevin moves, in widths of a mode", gt=0, tuned=True
    )
    base_scale: float | None = option(
        None, "spread of the first look, in posterior sds", gt=0, tuned=True
    )


SPEC = KernelSpec(
    name="clc",
    family="chain",
    summary="chain of log-concave Markov chains over noisy looks; independent draws",
    paper="arXiv 2305.19473",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    draws="independent",
    guarantee="biased",
    bias="each draw is a fresh chain of looks followed by finitely many exact moves: "
    "inside a mode the bias falls with num_steps, and the kernel Stein discrepancy "
    "shows it; the weights of known modes converge with num_jumps; a mode that the "
    "pilot's num_starts missed is hardly visited, and disagreement of mode weights "
    "between chains, each with a pilot of its own, shows it; final='jump' shrinks the "
    "law by about noise^2 / num_looks",
    recommended=True,
)
