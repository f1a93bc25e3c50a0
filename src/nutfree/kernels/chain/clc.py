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
then makes the moves on pi itself of `paths.polish`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nutfree.facts import separate_modes
from nutfree.modes.mixture import modes_of
from nutfree.paths import base as _path
from nutfree.paths.base import PathInfo as CLCInfo
from nutfree.paths.base import PathOptions
from nutfree.paths.base import PathState as CLCState
from nutfree.paths.denoisers import slow_fast
from nutfree.paths.paths import looks_path
from nutfree.paths.polish import polish, start_at
from nutfree.registry import KernelSpec, option

__all__ = ["SPEC", "CLCInfo", "CLCState", "build_kernel", "init", "warmup"]

init = _path.init
warmup = _path.warmup

FAST_STEP_SIZE = 0.5
#: Of the looks' dynamics, in units of sigma; stable below two. With two steps a look,
#: the mean of the looks then has its variance on a Gaussian within a tenth.
LOOK_STEP_SIZE = 1.4


def build_kernel(
    *,
    num_looks: int = 24,
    noise: float = 1.5,
    num_look_steps: int = 2,
    num_fast_steps: int = 2,
    num_tilted_steps: int = 16,
    num_jumps: int = 12,
    final: str = "draw",
):
    """Return `kernel(rng_key, state, logdensity_fn, **params)`, a `path_kernel`.

    Noise is in units of `base_scale`.
    """

    def walk(rng_key, at: _path.Setting) -> tuple[jax.Array, jax.Array]:
        path_key, end_key = jax.random.split(rng_key)
        denoiser = slow_fast(
            at.target,
            num_steps=num_fast_steps,
            step_size=FAST_STEP_SIZE,
            width=at.nearest_width,
            restart=at.modes_given_look,
            restart_above=0.0,
        )
        u = at.previous.u
        path = looks_path(
            path_key,
            denoiser,
            num_looks,
            dim=u.size,
            base_scale=at.base_scale,
            noise=jnp.asarray(noise * at.base_scale, u.dtype),
            num_steps=num_look_steps,
            step_size=LOOK_STEP_SIZE,
        )
        if final == "jump":
            jump, _, count = denoiser.step(
                end_key, path.carry, path.look, path.noise, path.spent
            )
            return jump, count

        def tilted(u, count):
            value, grad, count = at.evaluate(u, count)
            z = (u - path.look) / path.noise
            return value - 0.5 * jnp.sum(z**2), grad - z / path.noise, count

        # the tilt narrows every mode alike; without jumps their weights do not matter
        width = (at.modes.width**-2.0 + path.noise**-2.0) ** -0.5
        start, _, count = start_at(path.carry, at.previous, tilted, path.spent)
        drawn = polish(
            end_key,
            start,
            tilted,
            modes_of(at.modes.center, width, *at.modes[2:4]),
            step_size=at.step_size,
            num_steps=num_tilted_steps,
            num_jumps=0,
            count=count,
        )
        return drawn.point.u, drawn.spent

    # the jump is where the paper ends
    return _path.path_kernel(walk, num_jumps=num_jumps, polished=final != "jump")


@dataclass(frozen=True)
class _LookOptions:
    num_looks: int = option(24, "noisy looks M that are accumulated", ge=1)
    noise: float = option(1.5, "sigma of a look, in units of base_scale", gt=0)
    num_look_steps: int = option(2, "underdamped Langevin steps for each look", ge=1)
    num_fast_steps: int = option(2, "Langevin steps for each estimate of D", ge=1)
    num_tilted_steps: int = option(16, "steps that draw x given the looks", ge=1)
    final: str = option(
        "draw",
        "end in a draw of x given the looks, or in the paper's jump to its mean",
        choices=("draw", "jump"),
    )


@dataclass(frozen=True)
class Options(PathOptions, _LookOptions):
    pass


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
    suits=separate_modes,
    guarantee="biased",
    bias="each draw is a fresh chain of looks followed by finitely many exact moves: "
    "inside a mode the bias falls with accuracy, which sets num_steps, and the kernel "
    "Stein discrepancy shows it; the weights of known modes converge with num_jumps; a "
    "mode that the pilot's num_starts missed is hardly visited, and disagreement of "
    "mode weights between chains, each with a pilot of its own, shows it; final='jump' "
    "shrinks the law by about noise^2 / num_looks",
    concerns=_path.concerns,
    findings=_path.findings,
    recommended=True,
)
