"""MultALMC: multiscale annealed Langevin, for multimodal posteriors with a gradient.

Reference: Cordero-Encinar, Duncan, Reich and Akyildiz, arXiv 2508.15069. One
transition walks X_lambda = sqrt(lambda) X + sqrt(1 - lambda) sigma z, z Gaussian or
Student-t, from lambda near 0 to lambda near 1; for a Gaussian z

    slow:  dx = (sqrt(lambda) y - x) / (sigma^2 (1 - lambda)) dt + sqrt(2) dB,
    fast:  dy = (1/eps) grad_y log rho_lambda(y | x) dt + sqrt(2/eps) dB',
           rho_lambda(y | x) ~ pi(y) N(x; sqrt(lambda) y, sigma^2 (1 - lambda)),

and so draws anew each time. Metropolis-adjusted moves on pi follow (`paths.base`).

Bias: the law at the end of a path lags behind its levels, and is biased in order one of
the slow (underdamped: order two) and of the fast step; the bias that the moves leave of
it falls geometrically with num_steps. With heavy tails a Student-t z helps, but the lag
is worst far out: MultCDiff keeps more.
Gradients: num_levels x num_fast_steps, and then 1 + num_steps + num_jumps.

It differs from the paper in five ways. A pilot sets the coordinates, sigma and the
step of each level. The slow drift averages y and the target-score form with the weights
that leave the least variance (`paths.slow_fast`). Early in the path the fast chain
starts again at every level, from the pilot's modes as x sees them or from
x / sqrt(lambda); later it is carried, as the paper carries it throughout. A Student-t
z has a scale of its own in the fast chain, in place of the paper's Ito diffusion. The
path ends in y at a small noise, and then in moves on pi itself (`paths.polish`):
Langevin steps repair the shape inside a mode, jumps between the pilot's modes their
weights.
"""

from dataclasses import dataclass

from nutfree.paths.base import PathInfo as MultALMCInfo
from nutfree.paths.base import PathState as MultALMCState
from nutfree.paths.base import init, path_kernel, path_spec
from nutfree.paths.levels import LevelOptions, level_gradients, level_walk
from nutfree.paths.slow import annealed_overdamped, annealed_underdamped
from nutfree.paths.warmup import PathOptions, warmup
from nutfree.registry import option

__all__ = ["SPEC", "MultALMCInfo", "MultALMCState", "build_kernel", "init", "warmup"]


@dataclass(frozen=True)
class Options(PathOptions, LevelOptions):
    slow_step_size: float = option(
        1.0, "slow step at each level, in relaxation times", gt=0, lt=2
    )


def build_kernel(options=Options()):
    """Return `kernel(rng_key, state, logdensity_fn, **params)`, a `path_kernel`."""
    narrowing = 1.0
    if options.base == "student_t":
        # near the centre two Student-t coordinates have this share of their variance
        narrowing = options.degrees_of_freedom / (options.degrees_of_freedom + 2.0)
    underdamped = options.dynamics == "underdamped"
    dynamics = annealed_underdamped if underdamped else annealed_overdamped
    slow = dynamics(options.slow_step_size, narrowing)
    return path_kernel(level_walk(options, lambda levels: slow), options.num_jumps)


SPEC = path_spec(
    name="multalmc",
    family="multiscale",
    summary="annealed slow-fast Langevin from a pilot's modes; independent draws",
    paper="arXiv 2508.15069",
    build_kernel=build_kernel,
    options=Options,
    gradients=level_gradients,
    bias="The paper's algorithm alone, which is the path, lags less the more "
    "num_levels there are, and has an error that halves with slow_step_size when "
    "num_levels doubles",
    exact_form="multiscale",
)
