"""The law of kernels with a momentum on a Gaussian, and the step sizes that follow.

A coordinate of a Gaussian posterior with precision L and its momentum follow a linear
recursion z' = A z + noise of covariance Q, so that their stationary covariance S solves
S = A S A' + Q.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nutfree.kernels.sgld.stochastic import Dynamics
from nutfree.numerics.langevin import steps_to_forget

#: Critical damping of a posterior of unit variance, per unit of time.
FRICTION = 2.0
#: The largest step that warm-up takes, in units of the fastest oscillation: where a
#: Gaussian says nothing against it, the curvature of others does.
MAX_STEP = 0.5
#: Halvings of the step's logarithm, from a range of 1e5.
NUM_BISECTIONS = 30


def draw_momentum(rng_key, u) -> jax.Array:
    return jax.random.normal(rng_key, u.shape, u.dtype)


def stationary_variance(recursion) -> jax.Array:
    """Of the position, the first of two coordinates; infinite where there is none.

    The `recursion` is 1 - A, whose digits are kept where the step is small, and Q.
    """
    less, Q = recursion
    (p, q), (r, s) = less
    both, cross = p + s - p * s, q * r
    # 1 - det A, and 1 + det A - and + tr A: all positive, the first of them below two,
    # where the eigenvalues of A lie inside the unit circle
    lost, below, above = both + cross, p * s - cross, 4 - both - cross - p - s
    stable = (lost > 0) & (lost < 2) & (below > 0) & (above > 0)
    # Cramer's rule, for S_11, S_12 and S_22
    m22, m23, m32, m33 = both - cross, q * (1 - s), 2 * r * (1 - s), s * (2 - s)
    S = Q[0, 0] * (m22 * m33 - m23 * m32)
    S -= 2 * (1 - p) * q * (Q[0, 1] * m33 - m23 * Q[1, 1])
    S -= q**2 * (Q[0, 1] * m32 - m22 * Q[1, 1])
    divisor = lost * above * below
    return jnp.where(stable, S / jnp.where(stable, divisor, 1), jnp.inf)


def underdamped_dynamics(
    move: Callable,
    recursion: Callable,
    start: Callable = draw_momentum,
    max_step: float = jnp.inf,
) -> Dynamics:
    """The dynamics of a kernel whose momentum has a friction.

    A transition is a time of 2: at friction 2, near critical damping, it makes two
    draws nearly independent, of correlation 0.4.

    Args:
        move: as in `Dynamics`, with `friction` as its setting.
        recursion: `(step_size, noise, precision, *, friction) -> (1 - A, Q)`, for the
            pair of position and momentum.
        start: as in `Dynamics`.
        max_step: the largest step that warm-up takes, whatever the curvature.
    """

    def inflation(step_size, noise, curvature, num_steps, **settings) -> jax.Array:
        del num_steps
        slow = stationary_variance(recursion(step_size, noise, 1.0, **settings)) - 1
        fast = recursion(step_size, noise, curvature, **settings)
        fast = curvature * stationary_variance(fast) - 1
        return jnp.where(jnp.abs(fast) > jnp.abs(slow), fast, slow)

    def tune(max_inflation, noise, curvature, settings) -> dict:
        def good(step_size):
            predicted = inflation(step_size, noise, curvature, 1, **settings)
            return jnp.abs(predicted) <= max_inflation

        top = jnp.minimum(MAX_STEP / jnp.sqrt(curvature), max_step)
        return {"step_size": _longest(good, top)}

    return Dynamics(
        start=start,
        move=move,
        inflation=inflation,
        tune=tune,
        num_steps=lambda step_size, noise, **settings: steps_to_forget(step_size),
        settings={"friction": FRICTION},
    )


def _longest(good: Callable, top: jax.Array) -> jax.Array:
    """The longest step up to `top` that is good, by bisection of its logarithm."""

    def bisect(_, bounds):
        low, high = bounds
        middle = jnp.sqrt(low * high)
        return (
            jnp.where(good(middle), middle, low),
            jnp.where(good(middle), high, middle),
        )

    low, _ = jax.lax.fori_loop(0, NUM_BISECTIONS, bisect, (1e-5 * top, top))
    return jnp.where(good(top), top, low)
