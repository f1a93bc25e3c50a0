"""Denoisers estimate D(m, s) = E[X | X + s z = m], where X is from the target.

Given the noisy observation m, X has density proportional to pi(x) N(x; m, s^2), and
the score of the smoothed target is (D(m, s) - m) / s^2 (Tweedie). A path can be walked
with any denoiser. The one that the kernels walk with is `slow_fast.slow_fast`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.numerics.evaluation import counted_value, counted_value_and_grad
from nutfree.target import LogDensity

#: Noises s that D may be from m along a coordinate; it rarely is as many as four.
FARTHEST = 4.0


class Estimate(NamedTuple):
    """What a path asks of an observation m = X + s z, with z = (normal) / sqrt(g).

    For Gaussian noise, g = 1, the first two are D. For Student-t noise g is
    Gamma(nu/2, nu/2), and the score, the mean and the spread are three things.

    pulled : (d,), m + s^2 (score of the law of m).
    mean : (d,), E[X | m].
    spread : scalar, E[1/g | m].
    """

    pulled: jax.Array
    mean: jax.Array
    spread: jax.Array | float = 1.0


class Denoiser(NamedTuple):
    """How D(m, s) is estimated.

    init
        `init(m) -> carry`, the state that is carried along a path.
    step
        `step(rng_key, carry, m, s, count) -> (Estimate, carry, count)`, with m of shape
        `(d,)` and s a scalar. `count` is of gradients, or for a denoiser without
        gradients of densities.
    """

    init: Callable[[jax.Array], Any]
    step: Callable[..., tuple[Estimate, Any, jax.Array]]


def without_carry(estimate: Callable) -> Denoiser:
    """A denoiser of `estimate(rng_key, m, s, count) -> (D, count)`, Gaussian noise."""

    def step(rng_key, carry, m, s, count):
        mean, count = estimate(rng_key, m, s, count)
        return Estimate(mean, mean), carry, count

    return Denoiser(lambda m: (), step)


def plug_in(logdensity: LogDensity) -> Denoiser:
    """m + s^2 grad log pi(m), right when s is small. One gradient.

    Where s is not small it can be far off, and is kept within `FARTHEST` s of m.
    """
    evaluate = counted_value_and_grad(logdensity)

    def estimate(rng_key, m, s, count):
        del rng_key
        _, grad, count = evaluate(m, count)
        pull = jnp.nan_to_num(s**2 * grad)
        return m + jnp.clip(pull, -FARTHEST * s, FARTHEST * s), count

    return without_carry(estimate)


def importance(logdensity: LogDensity, *, num_draws: int) -> Denoiser:
    """Draws of N(m, s^2) are weighted by pi, and self-normalised. No gradient.

    The bias is of order 1/num_draws, and grows with the number of modes and of
    dimensions that N(m, s^2) covers.
    """
    evaluate = counted_value(logdensity)

    def estimate(rng_key, m, s, count):
        def draw(i, carry):
            mean, log_total, count = carry
            z = jax.random.normal(jax.random.fold_in(rng_key, i), m.shape, m.dtype)
            x = m + s * z
            value, count = evaluate(x, count)
            value = jnp.where(jnp.isfinite(value), value, -jnp.inf)
            new_total = jnp.logaddexp(log_total, value)
            share = jnp.where(jnp.isneginf(value), 0.0, jnp.exp(value - new_total))
            return mean + share * (x - mean), new_total, count

        start = (m, jnp.asarray(-jnp.inf, m.dtype), count)
        mean, _, count = jax.lax.fori_loop(0, num_draws, draw, start)
        return mean, count

    return without_carry(estimate)
