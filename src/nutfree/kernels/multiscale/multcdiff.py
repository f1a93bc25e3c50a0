"""MultCDiff: the multiscale controlled diffusion, for multimodal posteriors.

Reference: Cordero-Encinar, Duncan, Reich and Akyildiz, arXiv 2508.15069. One
transition runs the Ornstein-Uhlenbeck process dX = -X dt + sqrt(2) sigma dB backwards,
from X_T ~ N(0, sigma^2) to X_0 ~ pi,

    slow:  dx = (x + 2 (sqrt(lambda) y - x) / (1 - lambda)) dt + sqrt(2) sigma dB,
    fast:  as in MultALMC,    lambda = exp(-2 (T - t)),

or its kinetic form, noise on a velocity alone. Metropolis-adjusted moves on pi follow
(`paths.base`).

Bias: there is no lag as in MultALMC; the path is biased by its start, and in order one
of the slow step (num_levels) and of the fast one. What the moves leave of it falls
geometrically with num_steps.
Gradients: num_levels x num_fast_steps, and then 1 + num_steps + num_jumps.

It differs from the paper as MultALMC does, and in its step: the fast variable's mean
is held fixed between two levels, not the score, which is stable at any step and exact
where pi is Gaussian of the width that the pilot found. A Student-t base makes the
diffusion's variance depend on x (`paths.slow`), overdamped only.
"""

from dataclasses import dataclass

from nutfree.errors import InvalidOption
from nutfree.paths.base import PathInfo as MultCDiffInfo
from nutfree.paths.base import PathState as MultCDiffState
from nutfree.paths.base import init, path_kernel, path_spec
from nutfree.paths.levels import LevelOptions, level_gradients, level_walk
from nutfree.paths.slow import reverse_overdamped, reverse_underdamped
from nutfree.paths.warmup import PathOptions, warmup

__all__ = ["SPEC", "MultCDiffInfo", "MultCDiffState", "build_kernel", "init", "warmup"]


@dataclass(frozen=True)
class Options(PathOptions, LevelOptions):
    pass


def build_kernel(options=Options()):
    """Return `kernel(rng_key, state, logdensity_fn, **params)`, a `path_kernel`.

    Raises:
        InvalidOption: for underdamped dynamics from a Student-t base.
    """
    underdamped = options.dynamics == "underdamped"
    if underdamped and options.base == "student_t":
        raise InvalidOption(
            "The kernel 'multcdiff' has no underdamped dynamics for a student_t base; "
            "write dynamics=\"overdamped\", or take the kernel 'multalmc'."
        )

    def slow(levels):
        return reverse_underdamped(levels) if underdamped else reverse_overdamped()

    return path_kernel(level_walk(options, slow), options.num_jumps)


SPEC = path_spec(
    name="multcdiff",
    family="multiscale",
    summary="reverse-time diffusion with slow-fast averaging; independent draws",
    paper="arXiv 2508.15069",
    build_kernel=build_kernel,
    options=Options,
    gradients=level_gradients,
    exact_form="multiscale",
    bias="The paper's algorithm alone, which is the path, has an error that halves "
    "when num_levels doubles, once base_scale covers the posterior",
)
