"""Chain of log-concave Markov chains, for multimodal posteriors with a gradient.

Reference: Saremi, Park and Bach, arXiv 2305.19473. Noisy observations
y_m = X + sigma z_m, m = 1...M, are drawn each given those before it, from a density
that is log-concave when sigma covers the posterior and that needs only their mean
ybar_m:

    grad log p(y_m | y_1...y_(m-1)) = (D(ybar_m, sigma/sqrt(m)) - y_m) / sigma^2.

All at once, the paper's comparison, they are drawn from their joint density, which is
not log-concave; their mean then moves by Langevin on the law of X + sigma/sqrt(M) z.

Then X is drawn given ybar_M, and Metropolis-adjusted moves on pi follow (`paths.base`).

Bias: the law of ybar_M is biased in the step of the observations' Langevin dynamics and
in the estimate of D; what the moves leave of it falls geometrically with num_steps.
Gradients: num_looks x num_look_steps x num_fast_steps, and for the draw
2 + num_tilted_steps + num_steps + num_jumps.

It differs from the paper in that D is estimated from a pilot's modes as ybar_m sees
them (`paths.by_modes`), and in the end: the paper's jump to
D(ybar_M, sigma/sqrt(M)), a conditional mean, shrinks the law by about sigma^2/M, so the
default draws from pi(x) N(x; ybar_M, sigma^2/M) by Metropolis-adjusted Langevin and
then makes the moves on pi itself of `paths.polish`. For the paper's jump M is raised
until sigma/sqrt(M) is at most 0.3 widths of the narrowest mode, where variances are 8 %
too small. Where that takes more than 1,000 observations, every transition is refused:
it is divergent, and the chain stays where it is.

Without the pilot (restart="look") the weights of separate modes are wrong: of two modes
that weigh .8 and .2 the lighter one has .44 to .47 of the draws at distances of 8 to 64
sds, where the pilot's are within .003 (`benchmarks/run.py tunnel`).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nutfree.modes.mixture import Modes, modes_of
from nutfree.paths.base import PathInfo as CLCInfo
from nutfree.paths.base import PathState as CLCState
from nutfree.paths.base import Posterior, final_gradients, init, path_kernel, path_spec
from nutfree.paths.by_modes import by_modes
from nutfree.paths.denoisers import Denoiser, importance, plug_in
from nutfree.paths.paths import (
    PathEnd,
    observations_path,
    overdamped_look,
    underdamped_look,
)
from nutfree.paths.polish import polish, start_at
from nutfree.paths.slow_fast import slow_fast
from nutfree.paths.warmup import PathOptions, warmup
from nutfree.registry import option

__all__ = ["SPEC", "CLCInfo", "CLCState", "build_kernel", "init", "warmup"]

#: Step size h of the fast chain, an eighth of what is stable.
FAST_STEP_SIZE = 0.5
#: Step of the observations' dynamics, in units of sigma; stable below two. With four
#: steps each and the exact D, two modes that weigh .8 and .2 come out within .003.
OBSERVATION_STEP_SIZE = 1.4
#: Least noise sigma, and the most that the last look may have, sigma/sqrt(M), where
#: sigma is chosen; in units of base_scale.
LEAST_NOISE, MOST_LAST_NOISE = 1.5, 0.45
#: Share of the mass from which on a mode has a say in sigma.
MIN_SHARE = 0.01
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
    noise: float | None = option(
        None,
        "sigma of an observation, in units of base_scale; by default 1.5, or more "
        "where modes lie so far apart that an observation of less noise has a density "
        "that is not log-concave, as long as num_looks is enough for it",
        gt=0,
    )
    num_look_steps: int = option(4, "Langevin steps for each observation", ge=1)
    look_dynamics: str = option(
        "underdamped",
        "these steps, with or without a velocity",
        choices=("underdamped", "overdamped"),
    )
    order: str = option(
        "one_at_a_time",
        "draw each observation given those before it, or all from their joint density, "
        "as many steps in all; that hardly moves between modes that lie apart",
        choices=("one_at_a_time", "all_at_once"),
    )
    denoiser: str = option(
        "langevin",
        "how D is estimated: by Langevin steps, by m + s^2 grad log pi(m) alone, which "
        "is right once s is small, or by weighted draws of N(m, s^2)",
        choices=("langevin", "plug_in", "importance"),
    )
    restart: str = option(
        "modes",
        "where the Langevin steps of an estimate start: at a draw from the pilot's "
        "modes, or at the look, the mean of the observations, itself, which needs far "
        "more of them",
        choices=("modes", "look"),
    )
    num_fast_steps: int = option(
        1, "Langevin steps, or weighted draws, of each estimate of D", ge=1
    )
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
    at_once = options.order == "all_at_once"
    look_step = {"underdamped": underdamped_look, "overdamped": overdamped_look}
    look_step = look_step[options.look_dynamics](OBSERVATION_STEP_SIZE)

    def walk(rng_key, posterior: Posterior) -> tuple[jax.Array, jax.Array]:
        path_key, end_key = jax.random.split(rng_key)
        denoiser = _denoiser(options, posterior)
        u, base_scale = posterior.previous.u, posterior.base_scale
        num_looks, refused = _num_looks(options, base_scale, posterior.modes)
        noise = jnp.asarray(_noise(options, base_scale, posterior.modes), u.dtype)
        together = num_looks if at_once else 1
        path = observations_path(
            path_key,
            denoiser,
            1 if at_once else num_looks,
            dim=u.size,
            base_scale=base_scale,
            noise=noise / jnp.sqrt(jnp.asarray(together, u.dtype)),
            num_steps=options.num_look_steps * together,
            look_step=look_step,
        )
        if jumps:
            end = denoiser.step(
                end_key, path.carry, path.observation, path.noise, path.spent
            )
            return jnp.where(refused, jnp.nan, end[0].mean), end[2]
        return _draw_given(end_key, path, posterior, options)

    # the jump is where the paper ends
    return path_kernel(walk, options.num_jumps, polished=not jumps)


def _denoiser(options: Options, posterior: Posterior) -> Denoiser:
    if options.denoiser == "plug_in":
        return plug_in(posterior.target)
    if options.denoiser == "importance":
        return importance(posterior.target, num_draws=options.num_fast_steps)
    num_steps = options.num_fast_steps
    if options.restart == "modes":
        return by_modes(
            posterior.target,
            posterior.modes,
            num_steps=num_steps,
            step_size=FAST_STEP_SIZE,
        )
    return slow_fast(
        posterior.target,
        num_steps=num_steps,
        width=posterior.nearest_width,
        step_size=FAST_STEP_SIZE,
        restart_above=0.0,
    )


def _noise(options: Options, base_scale, modes: Modes):
    """Sigma. An observation has a log-concave density where sigma is at least the sd of
    X given it, which between two modes is up to half their distance."""
    if options.noise is not None:
        return options.noise * base_scale
    counts = jnp.exp(jax.nn.log_softmax(modes.log_weight)) > MIN_SHARE
    apart = modes.center[:, None] - modes.center
    distance = jnp.sqrt(jnp.sum(apart**2, axis=-1))
    half = 0.5 * jnp.max(jnp.where(counts[:, None] & counts, distance, 0.0))
    most = max(LEAST_NOISE, MOST_LAST_NOISE * options.num_looks**0.5)
    return jnp.clip(half, LEAST_NOISE * base_scale, most * base_scale)


def _num_looks(options: Options, base_scale, modes: Modes):
    """Observations M, and whether the jump to a conditional mean is refused."""
    if options.final != "jump":
        return options.num_looks, False
    known = jnp.isfinite(modes.log_weight)[:, None]
    narrowest = jnp.min(jnp.where(known, modes.width, jnp.inf))
    noise = _noise(options, base_scale, modes)
    needed = jnp.ceil((noise / (JUMP_NOISE * narrowest)) ** 2)
    most = max(MAX_LOOKS, options.num_looks)
    # what is refused costs as little as it can
    refused = ~(needed <= most)
    raised = jnp.clip(jnp.where(refused, 0, needed), options.num_looks, most)
    return raised.astype(int), refused


def _draw_given(
    rng_key, path: PathEnd, posterior: Posterior, options: Options
) -> tuple[jax.Array, jax.Array]:
    """`(u, count)`, with u from pi(u) N(u; observation, noise^2) at the path's end."""

    def tilted(u, count):
        value, grad, count = posterior.evaluate(u, count)
        z = (u - path.observation) / path.noise
        return value - 0.5 * jnp.sum(z**2), grad - z / path.noise, count

    modes = posterior.modes
    # the tilt narrows every mode alike; without jumps their weights do not matter
    width = (modes.width**-2.0 + path.noise**-2.0) ** -0.5
    start_key, rng_key = jax.random.split(rng_key)
    first = path.observation
    if options.restart == "modes":
        first = posterior.draw_given_observation(start_key, first, path.noise)
    start, _, count = start_at(first, posterior.previous, tilted, path.spent)
    drawn = polish(
        rng_key,
        start,
        tilted,
        modes_of(modes.center, width, modes.axes, modes.log_weight),
        step_size=posterior.step_size,
        num_steps=options.num_tilted_steps,
        num_jumps=0,
        count=count,
    )
    return drawn.point.u, drawn.spent


def _gradients(options: Options, params: dict, target):
    num_looks, _ = _num_looks(options, params["base_scale"], params["modes"])
    each = 1 if options.denoiser == "plug_in" else options.num_fast_steps
    path = num_looks * options.num_look_steps * each
    if options.final == "jump":
        return path + each + 1
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
