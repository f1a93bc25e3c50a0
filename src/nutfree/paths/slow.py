"""Slow dynamics move a path from one noise level to the next.

A path holds x = X_lambda = sqrt(lambda) X + sqrt(1 - lambda) sigma z. Annealed dynamics
stay on the law of one level at a time; reverse dynamics undo the noise between two
levels, so that no lag is left, only the error of the step. All of them are exact to
first order in the step whatever the target, and in law where it is Gaussian of the
width that they are told.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.numerics.langevin import baoab_step
from nutfree.paths.denoisers import Estimate

#: Decay of a velocity per unit of time, critical: nothing returns faster to the law of
#: a level or of an observation.
FRICTION = 2.0


class Level(NamedTuple):
    """What the slow dynamics know at level i.

    s, next_s : the noise here and at the next level, in units of sigma; the last
        level is its own next.
    sigma : scale of the base.
    estimate : at m = x / sqrt(lambda).
    width : (d,), of the mode where m lies.
    """

    i: jax.Array
    s: jax.Array
    next_s: jax.Array
    sigma: jax.Array
    estimate: Estimate
    width: jax.Array


class Slow(NamedTuple):
    """Slow dynamics.

    init
        `init(rng_key, x, sigma) -> auxiliary`, the velocity, or ().
    step
        `step(rng_key, level, x, auxiliary) -> (x, auxiliary)`.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[jax.Array, Any]]


def _nothing(rng_key, x, sigma):
    del rng_key, x, sigma
    return ()


def _share(s):
    return 1.0 / (1.0 + s**2)


def _score_and_variance(level: Level, x, narrowing):
    """Score of X_lambda, and its smallest variance V."""
    share = _share(level.s)
    noise = (1.0 - share) * level.sigma**2
    score = (jnp.sqrt(share) * level.estimate.pulled - x) / noise
    return score, share * level.width**2 + narrowing * noise


def annealed_overdamped(step_size: float = 1.0, narrowing: float = 1.0) -> Slow:
    """MultALMC's annealed Langevin, one step at each level:

        x' = x + (1 - a) V score + sqrt((1 - a^2) V) xi,    a = exp(-h).

    Args:
        step_size: h.
        narrowing: what the variance of the noise is multiplied by in V.
    """

    def step(rng_key, level, x, auxiliary):
        score, variance = _score_and_variance(level, x, narrowing)
        decay = jnp.exp(-step_size)
        xi = jax.random.normal(rng_key, x.shape, x.dtype)
        x = x + (1.0 - decay) * variance * score
        return x + jnp.sqrt((1.0 - decay**2) * variance) * xi, auxiliary

    return Slow(_nothing, step)


def annealed_underdamped(step_size: float = 1.0, narrowing: float = 1.0) -> Slow:
    """MultALMC's kinetic form: mass 1/V, one `baoab_step` at each level.

    Args:
        step_size: h, in the time in which V is one; stable below two.
        narrowing: what the variance of the noise is multiplied by in V.
    """

    def init(rng_key, x, sigma):
        del sigma
        return jax.random.normal(rng_key, x.shape, x.dtype)

    def step(rng_key, level, x, velocity):
        score, variance = _score_and_variance(level, x, narrowing)
        xi = jax.random.normal(rng_key, x.shape, x.dtype)
        unit = jnp.sqrt(variance)
        force = unit * score
        move, velocity = baoab_step(xi, velocity, force, step_size, FRICTION)
        return x + unit * move, velocity

    return Slow(init, step)


def _conditional_variance(level: Level):
    """C, of X given the observation, where the target has the width."""
    noise = level.estimate.spread * (level.s * level.sigma) ** 2
    return 1.0 / (level.width**-2.0 + 1.0 / noise)


def reverse_overdamped() -> Slow:
    """MultCDiff: the reverse of dX = -X dt + sqrt(2) sigma dB, between two levels.

    Its drift is linear but for D, so with D held fixed the step is exact: the bridge
    from m to D. In m = x/sqrt(lambda), s -> s' and q = 1 - s'^2/s^2 it is

        m' = m + q (D - m) + sqrt(s'^2 q + q^2 C) xi,

    where C, the variance of X that D leaves out, is of second order in the step. With
    Student-t noise D is the mean of X, and s'^2 is multiplied by E[1/g | m]: the
    diffusion that has, at each level, the law of sqrt(lambda) X + (Student-t noise).
    """

    def step(rng_key, level, x, auxiliary):
        m = x / jnp.sqrt(_share(level.s))
        q = 1.0 - (level.next_s / level.s) ** 2
        left = level.estimate.spread * (level.next_s * level.sigma) ** 2
        variance = left * q + q**2 * _conditional_variance(level)
        xi = jax.random.normal(rng_key, x.shape, x.dtype)
        m = m + q * (level.estimate.mean - m) + jnp.sqrt(variance) * xi
        return m * jnp.sqrt(_share(level.next_s)), auxiliary

    return Slow(_nothing, step)


def reverse_underdamped(levels: jax.Array) -> Slow:
    """MultCDiff's kinetic form: the reverse of critically damped noising,

        dX = V dt,    dV = -X dt - 2 V dt + 2 sigma dB,    V_0 ~ N(0, sigma^2).

    Given X_0, (X_t, V_t) has mean e^-t (1 + t, -t) X_0 and, along the direction e of
    that vector, is sqrt(lambda) X_0 + sqrt(1 - lambda) sigma z with

        lambda = e^(-2t) (1 + 2t + 2t^2);

    across it, it is pure noise. So the part along e is an observation like any other
    and is held as x, the part across as the auxiliary. As in `reverse_overdamped` the
    step is the bridge to D, with the variance that D leaves out; Gaussian noise only.

    Args:
        levels: (levels,), decreasing values of s / sigma.
    """
    pull, keep, root = _bridge(levels)

    def init(rng_key, x, sigma):
        return sigma * jax.random.normal(rng_key, x.shape, x.dtype)

    def step(rng_key, level, x, across):
        i = level.i
        fresh = level.sigma * jax.random.normal(rng_key, (2, *x.shape), x.dtype)
        rest = jax.random.normal(jax.random.fold_in(rng_key, 1), x.shape, x.dtype)
        rest = jnp.sqrt(_conditional_variance(level)) * rest
        u = keep[i] @ jnp.stack([x, across]) + root[i] @ fresh
        u = u + pull[i][:, None] * (level.estimate.mean + rest)
        return u[0], u[1]

    return Slow(init, step)


def _bridge(levels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each level and the next: (n, 2), (n, 2, 2), (n, 2, 2), all for sigma = 1.

    The mean of u' is pull D + keep u, its variance root root'.
    """
    times = _times(levels)
    shares = _share(levels)
    later = jnp.append(levels[1:], levels[-1])
    eye = jnp.eye(2, dtype=levels.dtype)

    def frame(t):
        """Columns along and across e."""
        along = jnp.stack([1.0 + t, -t]) / jnp.sqrt((1.0 + t) ** 2 + t**2)
        return jnp.stack([along, jnp.stack([-along[1], along[0]])], axis=1)

    def one(t, next_t, s, next_s, share, next_share):
        delta = t - next_t
        forward = jnp.exp(-delta) * (
            eye + delta * jnp.array([[1.0, 1.0], [-1.0, -1.0]], levels.dtype)
        )
        # in the two frames, where given X the variances are diagonal
        forward = frame(t).T @ forward @ frame(next_t)
        before = jnp.diag(jnp.stack([next_s**2 * next_share, jnp.ones_like(s)]))
        precision = jnp.diag(jnp.stack([1.0 / (s**2 * share), jnp.ones_like(s)]))
        keep = before @ forward.T @ precision
        along = jnp.array([1.0, 0.0], levels.dtype)
        pull = jnp.sqrt(next_share) * along - keep @ along * jnp.sqrt(share)
        variance = before - keep @ forward @ before
        first = jnp.sqrt(jnp.maximum(variance[0, 0], 0.0))
        cross = jnp.where(first > 0, variance[1, 0] / jnp.where(first > 0, first, 1), 0)
        second = jnp.sqrt(jnp.maximum(variance[1, 1] - cross**2, 0.0))
        root = jnp.array([[1, 0], [0, 0]]) * first + jnp.array([[0, 0], [1, 0]]) * cross
        return pull, keep, root + jnp.array([[0, 0], [0, 1]]) * second

    later_times = jnp.append(times[1:], times[-1])
    return jax.vmap(one)(times, later_times, levels, later, shares, _share(later))


def _times(levels: jax.Array) -> jax.Array:
    """t where e^(-2t)(1 + 2t + 2t^2) = 1/(1 + s^2), by bisection."""
    wanted = -jnp.log1p(levels**2)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        # decreasing in t
        above = jnp.log1p(2.0 * middle + 2.0 * middle**2) - 2.0 * middle > wanted
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    # there log(1 + 2t + 2t^2) - 2t < wanted
    high = jnp.full_like(levels, 2.0) - wanted
    low, high = jax.lax.fori_loop(0, 60, halve, (jnp.zeros_like(levels), high))
    return 0.5 * (low + high)
