"""Denoisers: estimates of D(m, s) = E[X | X + s z = m], X from the target.

X then has density proportional to pi(x) N(x; m, s^2), and the score of the smoothed
target is (D(m, s) - m) / s^2 (Tweedie). All of them are the same two functions, so
that a path can be walked with any of them, or with the closed form of a mixture. Where
the noise z is Student-t, the score, the mean and the spread are three things, and the
estimate is an `Estimate`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.numerics.evaluation import counted_value, counted_value_and_grad
from nutfree.numerics.skrock import sk_rock
from nutfree.target import LogDensity


class Estimate(NamedTuple):
    """What a path asks of a look m = X + s z, with z = (normal) / sqrt(g).

    pulled : (d,), m + s^2 (score of the law of m).
    mean : (d,), E[X | m]; the same for Gaussian noise.
    spread : scalar, E[1/g | m]; one for Gaussian noise.
    """

    pulled: jax.Array
    mean: jax.Array
    spread: jax.Array | float = 1.0


def as_estimate(estimate: jax.Array | Estimate) -> Estimate:
    """An estimate of D alone as one for Gaussian noise."""
    if isinstance(estimate, Estimate):
        return estimate
    return Estimate(estimate, estimate)


class Denoiser(NamedTuple):
    """How D(m, s) is estimated.

    init
        `init(m) -> carry`, the state that is carried along a path.
    step
        `step(rng_key, carry, m, s, count) -> (estimate, carry, count)`, with m of shape
        `(d,)`, s a scalar, and the estimate D of shape `(d,)`, or an `Estimate`.
        `count` is of gradients, or for a denoiser without gradients of densities.
    """

    init: Callable[[jax.Array], Any]
    step: Callable[..., tuple[Any, Any, jax.Array]]


def slow_fast(
    logdensity: LogDensity,
    *,
    num_steps: int,
    width: Callable[[jax.Array], jax.Array] | jax.Array,
    step_size: float | jax.Array = 1.0,
    num_stages: int = 0,
    degrees_of_freedom: float | None = None,
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
    of width w: y when s is large, the other when s is small. b has mean zero, so any
    w that does not depend on y is unbiased. The later half of the steps is averaged.
    The unadjusted fast chain has a bias of order h, which C b takes out of the mean of
    a Gaussian.

    Student-t noise, z = (normal)/sqrt(g) with g ~ Gamma(nu/2, nu/2), tilts pi by
    (1 + |y - m|^2 / (nu s^2))^(-(nu + d)/2). The fast chain is then of (y, g), whose
    marginal is that: s is s/sqrt(g) above, and before each step

        g | y ~ Gamma((nu + d)/2, (nu + |y - m|^2/s^2)/2).

    Given g, b has mean zero, and the score of the law of m is E[g (y + C b - m)]/s^2;
    the mean of g given y is the factor (nu + d)/(nu + |y - m|^2/s^2) of the direct
    form. The paper has no g, but an Ito diffusion with a variance that depends on y.

    Args:
        logdensity: of a vector `(d,)`.
        num_steps: fast steps, one gradient each.
        width: w, `(d,)`, or a function of y that gives it, and then a small bias near
            where it changes.
        step_size: h; the chain is stable below four, where w is right.
        num_stages: of SK-ROCK in place of the Euler-Maruyama step above, with one
            gradient a stage and one more; then h may be `2 * skrock.reach`. Zero for
            none.
        degrees_of_freedom: nu of Student-t noise; None for Gaussian.
        restart: `restart(rng_key, m, s) -> y`, where the chain starts again; from m
            where None.
        restart_above: it starts again whenever s is larger than this, which keeps it
            from being trapped in a mode early in the path.
        reach: the longest move along a coordinate that the drift may make, so that a
            steep density far out cannot throw the chain away.
    """
    evaluate = counted_value_and_grad(logdensity)
    num_discarded = num_steps // 2
    heavy = degrees_of_freedom is not None

    def precision(rng_key, y, m, s):
        """g, and E[1/g], given y."""
        shape = 0.5 * (degrees_of_freedom + m.size)
        rate = 0.5 * (degrees_of_freedom + jnp.sum((y - m) ** 2) / s**2)
        g = jax.random.gamma(rng_key, jnp.asarray(shape, m.dtype)) / rate
        return g, rate / (shape - 1.0)

    def step(rng_key, y, m, s, count):
        restart_key, rng_key = jax.random.split(rng_key)
        tight = s
        if heavy:
            g_key, restart_key = jax.random.split(restart_key)
            tight = s / jnp.sqrt(precision(g_key, y, m, s)[0])
        again = m if restart is None else restart(restart_key, m, tight)
        y = jnp.where(s > restart_above, again, y)

        def moved(y, variance, c, w, count):
            """C b(y), cut off at `reach`."""
            value, grad, count = evaluate(y, count)
            # where there is no density to speak of, the way is back to the centre
            finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
            grad = jnp.where(finite, grad, -y / w**2)
            return jnp.clip(c * (grad - (y - m) / variance), -reach, reach), count

        def fast(i, carry):
            y, total, count = carry
            key = jax.random.fold_in(rng_key, i)
            g, spread = jnp.ones((), y.dtype), jnp.ones((), y.dtype)
            if heavy:
                g_key, key = jax.random.split(key)
                g, spread = precision(g_key, y, m, s)
            variance = s**2 / g
            w = width(y) if callable(width) else width
            c = 1.0 / (w**-2.0 + 1.0 / variance)
            drift, count = moved(y, variance, c, w, count)
            new = Estimate(g * (y + drift - m), y + drift, spread)
            late = i >= num_discarded
            total = jax.tree.map(lambda t, n: t + jnp.where(late, n, 0.0), total, new)
            noise = jax.random.normal(key, y.shape, y.dtype)
            noise = jnp.sqrt(step_size * c) * noise
            if not num_stages:
                return y + 0.5 * step_size * drift + noise, total, count

            def half_drift(y, count):
                drift, count = moved(y, variance, c, w, count)
                return 0.5 * drift, count

            stages = {"step_size": step_size, "num_stages": num_stages}
            y, count = sk_rock(half_drift, y, noise, count, **stages)
            return y, total, count

        none = Estimate(jnp.zeros_like(y), jnp.zeros_like(y), jnp.zeros((), y.dtype))
        y, total, count = jax.lax.fori_loop(0, num_steps, fast, (y, none, count))
        found = jax.tree.map(lambda t: t / (num_steps - num_discarded), total)
        if not heavy:
            return found.mean, y, count
        return found._replace(pulled=m + found.pulled), y, count

    # given m itself, g would be far too large
    return Denoiser(jnp.zeros_like if heavy else lambda m: m, step)


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
