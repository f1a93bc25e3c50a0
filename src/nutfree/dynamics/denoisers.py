"""Denoisers: estimates of D(m, s) = E[X | X + s z = m], X from the target.

X then has density proportional to pi(x) N(x; m, s^2), and the score of the smoothed
target is (D(m, s) - m) / s^2 (Tweedie). All of them are the same two functions, so
that a path can be walked with any of them, or with the closed form of a mixture.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.dynamics.evaluation import counted_value, counted_value_and_grad
from nutfree.target import LogDensity


class Denoiser(NamedTuple):
    """How D(m, s) is estimated.

    init
        `init(m) -> carry`, the state that is carried along a path.
    step
        `step(rng_key, carry, m, s, count) -> (estimate, carry, count)`, with m of shape
        `(d,)` and s a scalar. `count` is of gradients, or for a denoiser
        without gradients of densities.
    """

    init: Callable[[jax.Array], Any]
    step: Callable[..., tuple[jax.Array, Any, jax.Array]]


def slow_fast(
    logdensity: LogDensity,
    *,
    num_steps: int,
    width: Callable[[jax.Array], jax.Array] | jax.Array,
    step_size: float | jax.Array = 1.0,
    restart: Callable[..., jax.Array] | None = None,
    restart_above: float | jax.Array = jnp.inf,
    reach: float | jax.Array = 1.0,
) -> Denoiser:
    """Fast Langevin on the tilted density, its state carried along the path.

    With C = (1/w^2 + 1/s^2)^-1, the variance of the tilted density where pi has width
    w, and b(y) = grad log pi(y) - (y - m)/s^2, each fast step and estimate are

        y' = y + (h/2) C b(y) + sqrt(h C) xi,    D = mean of y + C b(y).

    The estimate is the convex combination of arXiv 2508.15069's two, y itself and the
    target-score form m + s^2 grad log pi(y), that has no variance where pi is Gaussian
    of width w: y when s is large, the other when s is small. b has mean zero, so any w
    is unbiased. The later half of the steps is averaged. The unadjusted fast chain has
    a bias of order h, which C b takes out of the mean of a Gaussian.

    Args:
        logdensity: of a vector `(d,)`.
        num_steps: fast steps, one gradient each.
        width: w, `(d,)`, or a function of y that gives it.
        step_size: h; the chain is stable below four, where w is right.
        restart: `restart(rng_key, m, s) -> y`, where the chain starts again; from m
            where None.
        restart_above: it starts again whenever s is larger than this, which keeps it
            from being trapped in a mode early in the path.
        reach: the longest move along a coordinate that the drift may make, so that a
            steep density far out cannot throw the chain away.
    """
    evaluate = counted_value_and_grad(logdensity)
    num_discarded = num_steps // 2

    def step(rng_key, y, m, s, count):
        restart_key, rng_key = jax.random.split(rng_key)
        again = m if restart is None else restart(restart_key, m, s)
        y = jnp.where(s > restart_above, again, y)

        def fast(i, carry):
            y, total, count = carry
            value, grad, count = evaluate(y, count)
            w = width(y) if callable(width) else width
            c = 1.0 / (w**-2.0 + s**-2.0)
            # where there is no density to speak of, the way is back to the centre
            finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
            grad = jnp.where(finite, grad, -y / w**2)
            drift = jnp.clip(c * (grad - (y - m) / s**2), -reach, reach)
            total = total + jnp.where(i >= num_discarded, y + drift, 0.0)
            noise = jax.random.normal(jax.random.fold_in(rng_key, i), y.shape, y.dtype)
            y = y + 0.5 * step_size * drift + jnp.sqrt(step_size * c) * noise
            return y, total, count

        y, total, count = jax.lax.fori_loop(
            0, num_steps, fast, (y, jnp.zeros_like(y), count)
        )
        return total / (num_steps - num_discarded), y, count

    return Denoiser(lambda m: m, step)


def langevin(logdensity: LogDensity, *, warm: bool = False, **options) -> Denoiser:
    """A short inner chain at every level, from m or, when `warm`, from the last state.

    The options are those of `slow_fast`, which lies between the two.
    """
    return slow_fast(logdensity, restart_above=jnp.inf if warm else -1.0, **options)


def plug_in(logdensity: LogDensity) -> Denoiser:
    """m + s^2 grad log pi(m), right when s is small. One gradient."""
    evaluate = counted_value_and_grad(logdensity)

    def step(rng_key, carry, m, s, count):
        del rng_key
        _, grad, count = evaluate(m, count)
        return m + s**2 * grad, carry, count

    return Denoiser(lambda m: (), step)


def importance(logdensity: LogDensity, *, num_draws: int) -> Denoiser:
    """Draws of N(m, s^2), weighted by pi and self-normalised. No gradient.

    The bias is of order 1/num_draws, and grows with the number of modes and of
    dimensions that N(m, s^2) covers.
    """
    evaluate = counted_value(logdensity)

    def step(rng_key, carry, m, s, count):
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
        return mean, carry, count

    return Denoiser(lambda m: (), step)


def gaussian_mixture_denoiser(weights, means, scales) -> Denoiser:
    """The closed form for a mixture of Gaussians: what the others are tested against.

    Args:
        weights: (components,).
        means: (components, d).
        scales: standard deviations, (components,) or (components, d).
    """
    means = jnp.asarray(means)
    log_weights = jnp.log(jnp.asarray(weights))
    scales = jnp.asarray(scales)
    scales = scales if scales.ndim == 2 else scales[:, None]
    variances = jnp.broadcast_to(scales**2, means.shape)

    def step(rng_key, carry, m, s, count):
        del rng_key
        total = variances + s**2
        logits = log_weights - 0.5 * jnp.sum(
            (m - means) ** 2 / total + jnp.log(total), axis=-1
        )
        each = (variances * m + s**2 * means) / total
        return jax.nn.softmax(logits) @ each, carry, count

    return Denoiser(lambda m: (), step)
