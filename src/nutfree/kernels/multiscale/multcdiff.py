"""MultCDiff: the multiscale controlled diffusion, for multimodal posteriors.

Reference: Cordero-Encinar, Duncan, Reich and Akyildiz, arXiv 2508.15069. One
transition runs the Ornstein-Uhlenbeck process dX = -X dt + sqrt(2) sigma dB backwards,
from X_T ~ N(0, sigma^2) to X_0 ~ pi,

    slow:  dx = (x + 2 (sqrt(lambda) y - x) / (1 - lambda)) dt + sqrt(2) sigma dB,
    fast:  as in MultALMC,    lambda = exp(-2 (T - t)),

or its kinetic form, noise on a velocity alone. There is no lag as in MultALMC: the
path is biased by its start, and in order one of the slow step (num_levels) and of the
fast one. Gradients: num_levels x num_fast_steps, and then 1 + num_steps + num_jumps.

It differs from the paper as MultALMC does, and in its step: the fast variable's mean
is held fixed between two levels, not the score, which is stable at any step and exact
where pi is Gaussian of the width that the pilot found. A Student-t base makes the
diffusion's variance depend on x (`paths.slow`), overdamped only.
"""

from dataclasses import dataclass

from nutfree.errors import InvalidOption
from nutfree.facts import separate_modes
from nutfree.paths import base as _path
from nutfree.paths.base import LevelOptions, PathOptions
from nutfree.paths.base import PathInfo as MultCDiffInfo
from nutfree.paths.base import PathState as MultCDiffState
from nutfree.paths.slow import reverse_overdamped, reverse_underdamped
from nutfree.registry import KernelSpec

__all__ = ["SPEC", "MultCDiffInfo", "MultCDiffState", "build_kernel", "init", "warmup"]

init = _path.init
warmup = _path.warmup


def build_kernel(
    *,
    num_levels: int = 16,
    schedule: str = "sigmoid",
    dynamics: str = "overdamped",
    base: str = "gaussian",
    degrees_of_freedom: float = 4.0,
    num_fast_steps: int = 4,
    fast: str = "langevin",
    num_stages: int = 3,
    restart: str = "modes",
    num_jumps: int = 12,
):
    """Return `kernel(rng_key, state, logdensity_fn, **params)`, a `path_kernel`.

    Raises:
        InvalidOption: for underdamped dynamics from a Student-t base.
    """
    heavy = base == "student_t"
    if heavy and dynamics == "underdamped":
        raise InvalidOption(
            "The kernel 'multcdiff' has no underdamped dynamics for a student_t base; "
            "write dynamics=\"overdamped\", or take the kernel 'multalmc'."
        )

    def slow(levels):
        if dynamics == "underdamped":
            return reverse_underdamped(levels)
        return reverse_overdamped()

    walk = _path.level_walk(
        slow,
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
    pass


SPEC = KernelSpec(
    name="multcdiff",
    family="multiscale",
    summary="reverse-time diffusion with slow-fast averaging; independent draws",
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
    exact_form="multiscale",
    bias="as for multalmc: accuracy inside a mode, num_jumps for the weights of "
    "known modes, num_starts for finding them, with the kernel Stein discrepancy and "
    "disagreement between chains to show it. The paper's algorithm alone, which is "
    "the path, has an error that halves when num_levels doubles, once base_scale "
    "covers the posterior",
)
