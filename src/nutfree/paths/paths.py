"""Paths lead from a noisy observation of the posterior to a sharp one.

A path is walked with any denoiser, an estimate of D(m, s) = E[X | X + s z = m]. With
the exact D what remains is the path's own error, of the discretised dynamics.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.numerics.langevin import baoab_step
from nutfree.paths.denoisers import Denoiser
from nutfree.paths.slow import FRICTION, Level, Slow

#: `(xi, velocity, force) -> (displacement, velocity)` of an observation, in units of
#: sigma, with standard normal xi and the force of a density of unit variance.
type LookStep = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def underdamped_look(step_size: float) -> LookStep:
    """`baoab_step` with critical friction; stable below two."""
    return lambda xi, velocity, force: baoab_step(
        xi, velocity, force, step_size, FRICTION
    )


def overdamped_look(step_size: float) -> LookStep:
    """The exact step of time h towards a D that stays where it is; any h is stable."""
    decay = math.exp(-step_size)
    return lambda xi, velocity, force: (
        (1 - decay) * force + (1 - decay**2) ** 0.5 * xi,
        velocity,
    )


class PathEnd(NamedTuple):
    """Where a path ended.

    observation : (d,), the last m, whose law is that of X + s z.
    noise : the last s.
    carry : the denoiser's state there.
    spent : evaluations made along the path.
    """

    observation: jax.Array
    noise: jax.Array
    carry: Any
    spent: jax.Array


#: How lambda rises from near 0 to near 1.
SCHEDULES = ("sigmoid", "linear", "cosine")


def noise_levels(num_levels: int, first, last, schedule: str = "sigmoid") -> jax.Array:
    """`num_levels` noise levels s / sigma from `first` down to `last`.

    lambda = 1/(1 + (s/sigma)^2) rises along "sigmoid" as 1/(1 + e^-t), so that log s
    falls evenly, along "linear" evenly, and along "cosine" as sin^2 of an even angle.
    """
    along = jnp.linspace(0.0, 1.0, num_levels)

    def evenly(start, end):
        return start + along * (end - start)

    if schedule == "sigmoid":
        return jnp.exp(jnp.linspace(jnp.log(first), jnp.log(last), num_levels))
    if schedule == "linear":
        # 1 - lambda, which keeps its digits at the end
        rest = evenly(first**2 / (1.0 + first**2), last**2 / (1.0 + last**2))
        return jnp.sqrt(rest / (1.0 - rest))
    if schedule == "cosine":
        return jnp.tan(evenly(jnp.arctan(first), jnp.arctan(last)))
    raise ValueError(f"The schedule is {schedule!r}; write one of {SCHEDULES}.")


def annealed_path(
    rng_key: jax.Array,
    denoiser: Denoiser,
    levels: jax.Array,
    *,
    dim: int,
    base_scale: jax.Array,
    width: Callable[[jax.Array], jax.Array],
    slow: Slow,
    degrees_of_freedom: float | None = None,
) -> PathEnd:
    """Walk slow dynamics along X_lambda = sqrt(lambda) X + sqrt(1 - lambda) sigma z.

    The path of arXiv 2508.15069, with the base centred at the origin. The observation
    is m = X_lambda / sqrt(lambda) with noise s = sigma sqrt((1 - lambda) / lambda), so
    the levels give s / sigma. At each of them the denoiser is asked once, and the slow
    dynamics make a step.

    Args:
        rng_key: a key.
        denoiser: the estimate of D.
        levels: (levels,), decreasing values of s / sigma.
        dim: d.
        base_scale: sigma: the standard deviation of the posterior, or more.
        width: `width(m) -> w`, (d,), how wide a mode is there; the path is unstable in
            modes much narrower than this.
        slow: the dynamics.
        degrees_of_freedom: of a Student-t z; None for Gaussian.
    """
    first_key, path_key = jax.random.split(rng_key)
    x = base_scale * jax.random.normal(first_key, (dim,), levels.dtype)
    if degrees_of_freedom is not None:
        half = jnp.asarray(0.5 * degrees_of_freedom, levels.dtype)
        g = jax.random.gamma(jax.random.fold_in(first_key, 0), half) / half
        x = x / jnp.sqrt(g)
    auxiliary = slow.init(jax.random.fold_in(first_key, 1), x, base_scale)

    def advance(i, carry):
        x, auxiliary, state, count = carry
        denoise_key, noise_key = jax.random.split(jax.random.fold_in(path_key, i))
        s = levels[i]
        m = x * jnp.sqrt(1.0 + s**2)
        estimate, state, count = denoiser.step(
            denoise_key, state, m, s * base_scale, count
        )
        next_s = levels[jnp.minimum(i + 1, len(levels) - 1)]
        level = Level(i, s, next_s, base_scale, estimate, width(m))
        x, auxiliary = slow.step(noise_key, level, x, auxiliary)
        return x, auxiliary, state, count

    # the first observation says where the fast chain may start
    m = x * jnp.sqrt(1.0 + levels[0] ** 2)
    start = (x, auxiliary, denoiser.init(m), jnp.asarray(0))
    x, _, state, count = jax.lax.fori_loop(0, len(levels), advance, start)
    last = levels[-1]
    return PathEnd(x * jnp.sqrt(1.0 + last**2), last * base_scale, state, count)


def observations_path(
    rng_key: jax.Array,
    denoiser: Denoiser,
    num_observations: int | jax.Array,
    *,
    dim: int,
    base_scale: jax.Array,
    noise: jax.Array,
    num_steps: int | jax.Array,
    look_step: LookStep,
) -> PathEnd:
    """Draw observations y_m = X + sigma z_m, m = 1...M, each given the earlier ones.

    The path of arXiv 2305.19473: the mean ybar_m of the observations is all that
    matters,

        grad log p(y_m | y_1...y_(m-1)) = (D(ybar_m, sigma/sqrt(m)) - y_m) / sigma^2,

    and each is drawn by Langevin steps that start from the last observation and its
    velocity.

    All M at once, in R^(M d), is the same with one observation of noise sigma/sqrt(M):
    the score of each is (D(ybar_M, sigma/sqrt(M)) - y_m)/sigma^2, so that the mean of
    all, and sqrt(M) times the mean of their velocities, move as one observation does.

    Args:
        rng_key: a key.
        denoiser: the estimate of D.
        num_observations: M.
        dim: d.
        base_scale: the standard deviation of the posterior, where the first starts.
        noise: sigma, an array, whose type the path has.
        num_steps: Langevin steps for each observation.
        look_step: what they are.
    """
    first_key, velocity_key, path_key = jax.random.split(rng_key, 3)
    shape, dtype = (dim,), noise.dtype
    y = jnp.sqrt(base_scale**2 + noise**2) * jax.random.normal(first_key, shape, dtype)

    def observe(index, carry):
        y, velocity, mean, state, count = carry
        m = jnp.asarray(index + 1, dtype)
        key = jax.random.fold_in(path_key, index)

        def step(i, carry):
            y, velocity, state, count = carry
            denoise_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
            average = mean + (y - mean) / m
            estimate, state, count = denoiser.step(
                denoise_key, state, average, noise / jnp.sqrt(m), count
            )
            force = (estimate.mean - y) / noise
            xi = jax.random.normal(noise_key, shape, dtype)
            move, velocity = look_step(xi, velocity, force)
            return y + noise * move, velocity, state, count

        y, velocity, state, count = jax.lax.fori_loop(
            0, num_steps, step, (y, velocity, state, count)
        )
        return y, velocity, mean + (y - mean) / m, state, count

    velocity = jax.random.normal(velocity_key, shape, dtype)
    start = (y, velocity, jnp.zeros_like(y), denoiser.init(y), jnp.asarray(0))
    end = jax.lax.fori_loop(0, num_observations, observe, start)
    _, _, mean, state, count = end
    root = jnp.sqrt(jnp.asarray(num_observations, dtype))
    return PathEnd(mean, noise / root, state, count)
