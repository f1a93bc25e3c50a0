"""What kernels with a momentum share: their law on a Gaussian, and steps from it.

A coordinate of a Gaussian posterior with precision L and its momentum follow a linear
recursion z' = A z + noise of covariance Q, so that their stationary covariance S solves
S = A S A' + Q.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nutfree.numerics.langevin import steps_to_forget

#: The largest step that warm-up takes, in units of the fastest oscillation: where a
#: Gaussian says nothing against it, the curvature of others does.
MAX_STEP = 0.5
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


def underdamped_inflation(recursion: Callable) -> Callable:
    """`Dynamics.inflation` out of `recursion(step_size, noise, precision, **settings)`,
    which returns `(1 - A, Q)` for the pair of position and momentum."""

    def inflation(step_size, noise, curvature, num_steps, **settings) -> jax.Array:
        del num_steps
        slow = stationary_variance(recursion(step_size, noise, 1.0, **settings)) - 1
        fast = recursion(step_size, noise, curvature, **settings)
        fast = curvature * stationary_variance(fast) - 1
        return jnp.where(jnp.abs(fast) > jnp.abs(slow), fast, slow)

    return inflation


def underdamped_tune(inflation: Callable) -> Callable:
    """`Dynamics.tune`: the largest step up to `MAX_STEP` with the error asked for."""

    def tune(max_inflation, noise, curvature, settings) -> dict:
        top = MAX_STEP / jnp.sqrt(curvature)

        def good(step_size):
            predicted = inflation(step_size, noise, curvature, 1, **settings)
            return jnp.abs(predicted) <= max_inflation

        def bisect(_, bounds):
            low, high = bounds
            middle = jnp.sqrt(low * high)
            return (
                jnp.where(good(middle), middle, low),
                jnp.where(good(middle), high, middle),
            )

        low, _ = jax.lax.fori_loop(0, NUM_BISECTIONS, bisect, (1e-5 * top, top))
        return {"step_size": jnp.where(good(top), top, low)}

    return tune


def underdamped_steps(step_size, noise, **settings) -> jax.Array:
    """At friction 2, near critical damping, a time of 2 makes two draws nearly apart:
    their correlation is 0.4."""
    del noise, settings
    return steps_to_forget(step_size)
