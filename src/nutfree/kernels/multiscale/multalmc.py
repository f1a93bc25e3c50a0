"""MultALMC: multiscale annealed Langevin, for multimodal posteriors with a gradient.

Reference: Cordero-Encinar, Duncan, Reich and Akyildiz, arXiv 2508.15069. One
transition walks X_lambda = sqrt(lambda) X + sqrt(1 - lambda) sigma z, z Gaussian or
Student-t, from lambda near 0 to lambda near 1; for a Gaussian z

    slow:  dx = (sqrt(lambda) y - x) / (sigma^2 (1 - lambda)) dt + sqrt(2) dB,
    fast:  dy = (1/eps) grad_y log rho_lambda(y | x) dt + sqrt(2/eps) dB',
           rho_lambda(y | x) ~ pi(y) N(x; sqrt(lambda) y, sigma^2 (1 - lambda)),

and so draws anew each time. The law at the end of a path lags behind its levels, and is
biased in order one of the slow (underdamped: order two) and of the fast step.
Gradients: num_levels x num_fast_steps, and then 1 + num_steps + num_jumps. With
heavy tails a Student-t z helps, but the lag is worst far out: MultCDiff keeps more.

It differs from the paper in five ways. A pilot sets the coordinates, sigma and the
step of each level. The slow drift averages y and the target-score form with the weights
that leave the least variance (`denoisers.slow_fast`). Early in the path the fast chain
starts again at every level, from the pilot's modes as x sees them or from
x / sqrt(lambda); later it is carried, as the paper carries it throughout. A Student-t
z has a scale of its own in the fast chain, in place of the paper's Ito diffusion. The
path ends in y at a small noise, and then in Metropolis-adjusted moves on pi itself
(`paths.polish`): Langevin steps repair the shape inside a mode, jumps between the
pilot's modes their weights.
"""

from dataclasses import dataclass

from nutfree.facts import separate_modes
from nutfree.paths import base as _path
from nutfree.paths.base import LevelOptions, PathOptions
from nutfree.paths.base import PathInfo as MultALMCInfo
from nutfree.paths.base import PathState as MultALMCState
from nutfree.paths.slow import annealed_overdamped, annealed_underdamped
from nutfree.registry import KernelSpec, option

__all__ = ["SPEC", "MultALMCInfo", "MultALMCState", "build_kernel", "init", "warmup"]

init = _path.init
warmup = _path.warmup


def build_kernel(
    *,
    num_levels: int = 16,
    schedule: str = "sigmoid",
    dynamics: str = "overdamped",
    slow_step_size: float = 1.0,
    base: str = "gaussian",
    degrees_of_freedom: float = 4.0,
    num_fast_steps: int = 4,
    fast: str = "langevin",
    num_stages: int = 3,
    restart: str = "modes",
    num_jumps: int = 12,
):
    """Return `kernel(rng_key, state, logdensity_fn, **params)`, a `path_kernel`."""
    heavy = base == "student_t"
    # near the centre two Student-t coordinates have this share of their variance
    narrowing = degrees_of_freedom / (degrees_of_freedom + 2.0) if heavy else 1.0
    if dynamics == "underdamped":
        slow = annealed_underdamped(slow_step_size, narrowing=narrowing)
    else:
        slow = annealed_overdamped(slow_step_size, narrowing)
    walk = _path.level_walk(
        lambda levels: slow,
        num_levels=num_levels,
        num_fast_steps=num_fast_steps,
        restart=restart,
        schedule=schedule,
        fast=fast,
        num_stages=num_stages,
        degrees_of_freedom=degrees_of_freedom if heavy else None,
    )
    return _path.path_kernel(walk, num_jumps=num_jumps)


@dataclass(frozen=True)
class Options(PathOptions, LevelOptions):
    slow_step_size: float = option(
        1.0, "slow step at each level, in relaxation times", gt=0, lt=2
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
    concerns=_path.concerns,
    findings=_path.findings,
    draws="independent",
    suits=separate_modes,
    guarantee="biased",
    bias="each draw is a fresh path followed by finitely many exact moves: inside a "
    "mode the bias falls with accuracy, which sets num_steps; the kernel Stein "
    "discrepancy shows it; "
    "the weights of known modes converge with num_jumps; a mode that the pilot's "
    "num_starts missed is hardly visited, and disagreement of mode weights between "
    "chains, each with a pilot of its own, shows it. The paper's algorithm alone, "
    "which is the path, lags less the more num_levels there are, and has an error "
    "that halves with slow_step_size when num_levels doubles",
    exact_form="multiscale",
)
