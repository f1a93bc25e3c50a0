"""Chain of log-concave Markov chains, for multimodal posteriors with a gradient.

Reference: Saremi, Park and Bach, arXiv 2305.19473; one observation at a time,
underdamped. Noisy observations y_m = X + sigma z_m, m = 1...M, are drawn each given
those before it, from a density that is log-concave when sigma covers the posterior and
that needs only their mean ybar_m:

    grad log p(y_m | y_1...y_(m-1)) = (D(ybar_m, sigma/sqrt(m)) - y_m) / sigma^2.

Then X is drawn given ybar_M, and Metropolis-adjusted moves on pi follow (`paths.base`).

Bias: the law of ybar_M is biased in the step of the observations' Langevin dynamics and
in the estimate of D; what the moves leave of it falls geometrically with num_steps.
Gradients: num_looks x num_look_steps x num_fast_steps, and for the draw
2 + num_tilted_steps + num_steps + num_jumps.

It differs from the paper in that D is estimated by a few Langevin steps that start at a
draw from a pilot's modes as ybar_m sees them, and in the end: the paper's jump to
D(ybar_M, sigma/sqrt(M)), a conditional mean, shrinks the law by about sigma^2/M, so the
default draws from pi(x) N(x; ybar_M, sigma^2/M) by Metropolis-adjusted Langevin and
then makes the moves on pi itself of `paths.polish`. For the paper's jump M is raised
until sigma/sqrt(M) is at most 0.3 widths of the narrowest mode, where variances are 8 %
too small. Where that takes more than 1,000 observations, every transition is refused:
it is divergent, and the chain stays where it is.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nutfree.modes.mixture import Modes, modes_of
from nutfree.paths.base import PathInfo as CLCInfo
from nutfree.paths.base import PathState as CLCState
from nutfree.paths.base import Posterior, final_gradients, init, path_kernel, path_spec
from nutfree.paths.paths import PathEnd, observations_path
from nutfree.paths.polish import polish, start_at
from nutfree.paths.slow_fast import slow_fast
from nutfree.paths.warmup import PathOptions, warmup
from nutfree.registry import option

__all__ = ["SPEC", "CLCInfo", "CLCState", "build_kernel", "init", "warmup"]

#: Step size h of the fast chain, an eighth of what is stable.
FAST_STEP_SIZE = 0.5
#: Step of the observations' dynamics, in units of sigma; stable below two. With two
#: steps each, their mean then has its variance on a Gaussian within a tenth.
OBSERVATION_STEP_SIZE = 1.4
#: Noise sigma/sqrt(M) up to which a conditional mean is taken for a draw, in widths of
#: the narrowest mode.
JUMP_NOISE = 0.3
#: Observations beyond which the conditional mean is refused.
MAX_LOOKS = 1000


@dataclass(frozen=True)
class _ObservationOptions:
    num_looks: int = option(
        24, "noisy observations M, accumulated; at least, for the paper's jump", ge=1
    )
    noise: float = option(1.5, "sigma of an observation, in units of base_scale", gt=0)
    num_look_steps: int = option(
        2, "underdamped Langevin steps for each observation", ge=1
    )
    num_fast_steps: int = option(2, "Langevin steps for each estimate of D", ge=1)
    num_tilted_steps: int = option(16, "steps that draw x given the observations", ge=1)
    final: str = option(
        "draw",
        "end in a draw of x given the observations, or in the paper's jump to its mean",
        choices=("draw", "jump"),
    )


@dataclass(frozen=True)
class Options(PathOptions, _ObservationOptions):
    pass


def build_kernel(options=Options()):
    """Return `kernel(rng_key, state, logdensity_fn, **params)`, a `path_kernel`."""
    jumps = options.final == "jump"

    def walk(rng_key, posterior: Posterior) -> tuple[jax.Array, jax.Array]:
        path_key, end_key = jax.random.split(rng_key)
        denoiser = slow_fast(
            posterior.target,
            num_steps=options.num_fast_steps,
            step_size=FAST_STEP_SIZE,
            width=posterior.nearest_width,
            restart=posterior.draw_given_observation,
            restart_above=0.0,
        )
        u = posterior.previous.u
        num_looks, refused = _num_looks(options, posterior.base_scale, posterior.modes)
        path = observations_path(
            path_key,
            denoiser,
            num_looks,
            dim=u.size,
            base_scale=posterior.base_scale,
            noise=jnp.asarray(options.noise * posterior.base_scale, u.dtype),
            num_steps=options.num_look_steps,
            step_size=OBSERVATION_STEP_SIZE,
        )
        if jumps:
            end = denoiser.step(
                end_key, path.carry, path.observation, path.noise, path.spent
            )
            return jnp.where(refused, jnp.nan, end[0].mean), end[2]
        return _draw_given(end_key, path, posterior, options.num_tilted_steps)

    # the jump is where the paper ends
    return path_kernel(walk, options.num_jumps, polished=not jumps)


def _num_looks(options: Options, base_scale, modes: Modes):
    """Observations M, and whether the jump to a conditional mean is refused."""
    if options.final != "jump":
        return options.num_looks, False
    known = jnp.isfinite(modes.log_weight)[:, None]
    narrowest = jnp.min(jnp.where(known, modes.width, jnp.inf))
    needed = jnp.ceil((options.noise * base_scale / (JUMP_NOISE * narrowest)) ** 2)
    most = max(MAX_LOOKS, options.num_looks)
    # what is refused costs as little as it can
    refused = ~(needed <= most)
    raised = jnp.clip(jnp.where(refused, 0, needed), options.num_looks, most)
    return raised.astype(int), refused


def _draw_given(
    rng_key, path: PathEnd, posterior: Posterior, num_steps: int
) -> tuple[jax.Array, jax.Array]:
    """`(u, count)`, with u from pi(u) N(u; observation, noise^2) at the path's end."""

    def tilted(u, count):
        value, grad, count = posterior.evaluate(u, count)
        z = (u - path.observation) / path.noise
        return value - 0.5 * jnp.sum(z**2), grad - z / path.noise, count

    modes = posterior.modes
    # the tilt narrows every mode alike; without jumps their weights do not matter
    width = (modes.width**-2.0 + path.noise**-2.0) ** -0.5
    start, _, count = start_at(path.carry, posterior.previous, tilted, path.spent)
    drawn = polish(
        rng_key,
        start,
        tilted,
        modes_of(modes.center, width, modes.axes, modes.log_weight),
        step_size=posterior.step_size,
        num_steps=num_steps,
        num_jumps=0,
        count=count,
    )
    return drawn.point.u, drawn.spent


def _gradients(options: Options, params: dict, target):
    num_looks, _ = _num_looks(options, params["base_scale"], params["modes"])
    steps = num_looks * options.num_look_steps
    path = steps * options.num_fast_steps
    if options.final == "jump":
        return path + options.num_fast_steps + 1
    tilted = 1 + options.num_tilted_steps
    return path + tilted + final_gradients(options, params, target)


SPEC = path_spec(
    name="clc",
    family="chain",
    summary="chain of log-concave Markov chains of noisy observations; independent "
    "draws",
    paper="arXiv 2305.19473",
    build_kernel=build_kernel,
    options=Options,
    gradients=_gradients,
    bias="final='jump' makes no such moves, and shrinks the law by about "
    "noise^2 / num_looks; it raises num_looks until that is 8 % of a mode's variance, "
    "and refuses, with every transition divergent, where that takes more than 1,000",
    recommended=True,
)
