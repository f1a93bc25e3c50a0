"""The slow-fast denoiser: Langevin on the tilted density, carried along the path.

Reference: Cordero-Encinar, Duncan, Reich and Akyildiz, arXiv 2508.15069. With
C = (1/w^2 + 1/s^2)^-1, the variance of the tilted density where pi has width w, and
b(y) = grad log pi(y) - (y - m)/s^2, each fast step and estimate are

    y' = y + (h/2) C b(y) + sqrt(h C) xi,    D = mean of y + C b(y).

The estimate is the convex combination of the paper's two, y itself and the target-score
form m + s^2 grad log pi(y), that has no variance where pi is Gaussian of width w: y
when s is large, the other when s is small. b has mean zero, so any w that does not
depend on y is unbiased. The later half of the steps is averaged. The unadjusted fast
chain has a bias of order h, which C b takes out of the mean of a Gaussian. One gradient
a step.

Student-t noise, z = (normal)/sqrt(g) with g ~ Gamma(nu/2, nu/2), tilts pi by
(1 + |y - m|^2 / (nu s^2))^(-(nu + d)/2). The fast chain is then of (y, g), whose
marginal is that: s is s/sqrt(g) above, and before each step

    g | y ~ Gamma((nu + d)/2, (nu + |y - m|^2/s^2)/2).

Given g, b has mean zero, and the score of the law of m is E[g (y + C b - m)]/s^2; the
mean of g given y is the factor (nu + d)/(nu + |y - m|^2/s^2) of the direct form. The
paper has no g, but an Ito diffusion with a variance that depends on y.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.numerics.evaluation import counted_value_and_grad
from nutfree.numerics.skrock import sk_rock
from nutfree.paths.denoisers import Denoiser, Estimate
from nutfree.target import LogDensity

#: The longest move C b along a coordinate, in posterior sds: a steep density far out
#: cannot throw the chain away.
REACH = 1.0


class Tilt(NamedTuple):
    """The tilted density pi(y) N(y; m, `variance`), where pi has this `width`."""

    m: jax.Array
    variance: jax.Array
    width: jax.Array

    @property
    def scale(self) -> jax.Array:
        """C, the variance of the tilted density."""
        return 1.0 / (self.width**-2.0 + 1.0 / self.variance)


def slow_fast(
    logdensity: LogDensity,
    *,
    num_steps: int,
    width: Callable[[jax.Array], jax.Array],
    step_size: float = 1.0,
    num_stages: int = 0,
    degrees_of_freedom: float | None = None,
    restart: Callable[..., jax.Array] | None = None,
    restart_above: float = jnp.inf,
) -> Denoiser:
    """Return the denoiser of this module.

    Args:
        logdensity: of a vector `(d,)`, in units of about one posterior sd.
        num_steps: fast steps of each estimate.
        width: `width(y) -> w`, `(d,)`; where it changes with y there is a small bias.
        step_size: h; the chain is stable below four, where w is right.
        num_stages: of SK-ROCK in place of the Euler-Maruyama step above, with one
            gradient a stage and one more; then h may be `2 * skrock.reach`. Zero for
            none.
        degrees_of_freedom: nu of Student-t noise; None for Gaussian.
        restart: `restart(rng_key, m, s) -> y`, where the chain starts again; from m
            where None.
        restart_above: it starts again whenever s is larger than this, which keeps it
            from being trapped in a mode early in the path.
    """
    num_discarded = num_steps // 2
    heavy = degrees_of_freedom is not None
    fast_step = _fast_step(logdensity, width, step_size, num_stages, degrees_of_freedom)

    def started_again(rng_key, y, m, s):
        if heavy:
            g_key, rng_key = jax.random.split(rng_key)
            s = s / jnp.sqrt(_precision(g_key, y, m, s, degrees_of_freedom)[0])
        return m if restart is None else restart(rng_key, m, s)

    def step(rng_key, y, m, s, count):
        restart_key, rng_key = jax.random.split(rng_key)
        y = jnp.where(s > restart_above, started_again(restart_key, y, m, s), y)

        def add_step(i, carry):
            y, total, count = carry
            y, new, count = fast_step(jax.random.fold_in(rng_key, i), y, m, s, count)
            late = i >= num_discarded
            total = jax.tree.map(lambda t, n: t + jnp.where(late, n, 0.0), total, new)
            return y, total, count

        none = Estimate(jnp.zeros_like(y), jnp.zeros_like(y), jnp.zeros((), y.dtype))
        y, total, count = jax.lax.fori_loop(0, num_steps, add_step, (y, none, count))
        found = jax.tree.map(lambda t: t / (num_steps - num_discarded), total)
        if not heavy:
            return Estimate(found.mean, found.mean), y, count
        return found._replace(pulled=m + found.pulled), y, count

    # given m itself, g would be far too large
    return Denoiser(jnp.zeros_like if heavy else lambda m: m, step)


def _fast_step(
    logdensity, width, step_size, num_stages, degrees_of_freedom
) -> Callable:
    """`(rng_key, y, m, s, count) -> (y', estimate at y, count)`."""
    drift_at = _scaled_drift(logdensity)

    def moved(y, drift, noise, tilt, count):
        if not num_stages:
            return y + 0.5 * step_size * drift + noise, count

        def half_drift(y, count):
            drift, count = drift_at(y, tilt, count)
            return 0.5 * drift, count

        stages = {"step_size": step_size, "num_stages": num_stages}
        return sk_rock(half_drift, y, noise, count, **stages)

    def fast_step(rng_key, y, m, s, count):
        g, spread = jnp.ones((), y.dtype), jnp.ones((), y.dtype)
        if degrees_of_freedom is not None:
            g_key, rng_key = jax.random.split(rng_key)
            g, spread = _precision(g_key, y, m, s, degrees_of_freedom)
        tilt = Tilt(m, s**2 / g, width(y))
        drift, count = drift_at(y, tilt, count)
        estimate = Estimate(g * (y + drift - m), y + drift, spread)
        noise = jax.random.normal(rng_key, y.shape, y.dtype)
        noise = jnp.sqrt(step_size * tilt.scale) * noise
        y, count = moved(y, drift, noise, tilt, count)
        return y, estimate, count

    return fast_step


def _scaled_drift(logdensity: LogDensity) -> Callable:
    """`(y, tilt, count) -> (C b(y), count)`, cut off at `REACH`."""
    evaluate = counted_value_and_grad(logdensity)

    def drift_at(y, tilt: Tilt, count):
        value, grad, count = evaluate(y, count)
        # where there is no density to speak of, the way is back to the centre
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
        grad = jnp.where(finite, grad, -y / tilt.width**2)
        drift = tilt.scale * (grad - (y - tilt.m) / tilt.variance)
        return jnp.clip(drift, -REACH, REACH), count

    return drift_at


def _precision(rng_key, y, m, s, degrees_of_freedom: float):
    """A draw of g given y, and E[1/g] given y."""
    shape = 0.5 * (degrees_of_freedom + m.size)
    rate = 0.5 * (degrees_of_freedom + jnp.sum((y - m) ** 2) / s**2)
    g = jax.random.gamma(rng_key, jnp.asarray(shape, m.dtype)) / rate
    return g, rate / (shape - 1.0)
