"""Paths: how (m, s) moves from a noisy look at the posterior to a sharp one.

A path is walked with any denoiser, an estimate of D(m, s) = E[X | X + s z = m]. With
the exact D what remains is the path's own error, of the discretised dynamics.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.dynamics.denoisers import Denoiser


class PathEnd(NamedTuple):
    """Where a path ended.

    look : (d,), the last m, whose law is that of X + s z.
    noise : the last s.
    carry : the denoiser's state there.
    count : evaluations made along the path.
    """

    look: jax.Array
    noise: jax.Array
    carry: Any
    spent: jax.Array


def noise_levels(num_levels: int, first, last) -> jax.Array:
    """`num_levels` noise levels from `first` down to `last`, evenly on a log scale."""
    return jnp.exp(jnp.linspace(jnp.log(first), jnp.log(last), num_levels))


def annealed_path(
    rng_key: jax.Array,
    denoiser: Denoiser,
    levels: jax.Array,
    *,
    dim: int,
    base_scale: jax.Array,
    width: Callable[[jax.Array], jax.Array] | jax.Array,
    step_size: float | jax.Array = 1.0,
    count: jax.Array | int = 0,
) -> PathEnd:
    """Annealed Langevin along X_lambda = sqrt(lambda) X + sqrt(1 - lambda) sigma z.

    The path of arXiv 2508.15069, with the base centred at the origin. A look is
    m = X_lambda / sqrt(lambda) with noise s = sigma sqrt((1 - lambda) / lambda), so the
    levels give s / sigma. At each of them one step of

        x' = x + (1 - a) V g + sqrt((1 - a^2) V) xi,    a = exp(-h),

    with g = (sqrt(lambda) D - x) / (sigma^2 (1 - lambda)) the score of X_lambda and
    V = lambda w^2 + (1 - lambda) sigma^2 its smallest variance. It is the
    Euler-Maruyama step to first order in h, and exact where the target is Gaussian of
    width w.

    Args:
        rng_key: a key.
        denoiser: the estimate of D.
        levels: (levels,), decreasing values of s / sigma.
        dim: d.
        base_scale: sigma: the standard deviation of the posterior, or more.
        width: w, (d,), how wide a mode is, or a function of m that gives it; the path
            is unstable in modes much narrower than this.
        step_size: h.
        count: evaluations so far.
    """
    first_key, path_key = jax.random.split(rng_key)
    x = base_scale * jax.random.normal(first_key, (dim,), levels.dtype)

    def level(i, carry):
        x, state, count = carry
        denoise_key, noise_key = jax.random.split(jax.random.fold_in(path_key, i))
        share = 1.0 / (1.0 + levels[i] ** 2)
        root = jnp.sqrt(share)
        m = x / root
        estimate, state, count = denoiser.step(
            denoise_key, state, m, levels[i] * base_scale, count
        )
        w = width(m) if callable(width) else width
        noise_variance = (1.0 - share) * base_scale**2
        score = (root * estimate - x) / noise_variance
        variance = share * w**2 + noise_variance
        decay = jnp.exp(-step_size)
        xi = jax.random.normal(noise_key, x.shape, x.dtype)
        x = x + (1.0 - decay) * variance * score
        return x + jnp.sqrt((1.0 - decay**2) * variance) * xi, state, count

    start = (x, denoiser.init(x), jnp.asarray(count))
    x, state, count = jax.lax.fori_loop(0, len(levels), level, start)
    last = levels[-1]
    return PathEnd(
        x * jnp.sqrt(1.0 + last**2), last * base_scale, state, jnp.asarray(count)
    )


def looks_path(
    rng_key: jax.Array,
    denoiser: Denoiser,
    num_looks: int,
    *,
    dim: int,
    base_scale: jax.Array,
    noise: jax.Array,
    num_steps: int,
    step_size: float | jax.Array = 0.7,
    friction: float | jax.Array = 1.0,
    count: jax.Array | int = 0,
) -> PathEnd:
    """Accumulate noisy looks y_m = X + sigma z_m, m = 1...M, each given the earlier.

    The path of arXiv 2305.19473: the mean ybar_m of the looks is all that matters,

        grad log p(y_m | y_1...y_(m-1)) = (D(ybar_m, sigma/sqrt(m)) - y_m) / sigma^2,

    and each look is drawn by underdamped Langevin that starts from the last look and
    its velocity. The integrator is half a position step, the velocity, half a position
    step, seen where it evaluates the force: there, and not between its steps, the
    variance of a position is right on a Gaussian.

    Args:
        rng_key: a key.
        denoiser: the estimate of D.
        num_looks: M.
        dim: d.
        base_scale: the standard deviation of the posterior, where the first starts.
        noise: sigma, an array, whose type the path has.
        num_steps: Langevin steps for each look.
        step_size: in units of sigma, the standard deviation of a look.
        friction: of the velocity, per unit of time.
        count: evaluations so far.
    """
    first_key, velocity_key, path_key = jax.random.split(rng_key, 3)
    shape, dtype = (dim,), noise.dtype
    y = jnp.sqrt(base_scale**2 + noise**2) * jax.random.normal(first_key, shape, dtype)
    half = 0.5 * step_size
    decay = jnp.exp(-friction * step_size)

    def look(index, carry):
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
            force = (estimate - y) / noise
            xi = jax.random.normal(noise_key, shape, dtype)
            velocity = decay * (velocity + half * force) + half * force
            velocity = velocity + jnp.sqrt(1.0 - decay**2) * xi
            y = y + step_size * noise * velocity
            return y, velocity, state, count

        y, velocity, state, count = jax.lax.fori_loop(
            0, num_steps, step, (y, velocity, state, count)
        )
        return y, velocity, mean + (y - mean) / m, state, count

    velocity = jax.random.normal(velocity_key, shape, dtype)
    zeros = jnp.zeros_like(y)
    start = (y, velocity, zeros, denoiser.init(y), jnp.asarray(count))
    _, _, mean, state, count = jax.lax.fori_loop(0, num_looks, look, start)
    return PathEnd(mean, noise / num_looks**0.5, state, jnp.asarray(count))
