"""A short walk of stochastic gradient Langevin dynamics that sets its own step size.

With g the mean of two batches' gradients,

    x' = x + (h/2) C g(x) + sqrt(h C) xi,

where h follows the noise of g: a running mean of half the squared difference of both.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.preconditioning import matvec, transpose

#: Steps of a walk.
WALK_STEPS = 2048
#: Steps over which a walk averages the noise for its step size.
WALK_MEMORY = 64


def langevin_walk(
    rng_key: jax.Array,
    estimate: Callable,
    start: jax.Array,
    centre: jax.Array,
    factor: jax.Array,
    places: jax.Array,
    step_for: Callable,
    count: Any,
    due: jax.Array,
) -> tuple[jax.Array, Any]:
    """Walk from `start`, and return the places of the second half, `(k, d)`.

    The walk goes back to the mode where it gets lost.

    Args:
        estimate: `(rng_key, (x, centre), count) -> (gradient, count)`.
        centre: the mode, `(d,)`.
        factor: R with R R' the preconditioner.
        places: what is returned where the walk is not `due`, of the same shape.
        step_for: `noise -> step size`, of the noise V of each coordinate, `(d,)`.
    """

    def step(i, carry):
        x, noise, places, count = carry
        noise_key, *keys = jax.random.split(jax.random.fold_in(rng_key, i), 3)

        def from_batch(count, key):
            g, count = estimate(key, (x, centre), count)
            return count, matvec(transpose(factor), g)

        count, g = jax.lax.scan(from_batch, count, jnp.stack(keys))
        seen = 0.5 * (g[0] - g[1]) ** 2
        noise += (seen - noise) / jnp.minimum(i + 1, WALK_MEMORY)
        h = step_for(noise)
        xi = jax.random.normal(noise_key, x.shape, x.dtype)
        move = 0.5 * h * jnp.mean(g, axis=0) + jnp.sqrt(h) * xi
        new = (x + matvec(factor, move), noise)
        x, noise = select(is_finite(new), new, (centre, jnp.zeros_like(noise)))
        # the places are those of the second half
        half = WALK_STEPS // 2
        slot = jnp.maximum((i - half) * len(places) // half, 0)
        return x, noise, places.at[slot].set(x), count

    carry = (start, jnp.zeros_like(centre), places, count)
    rounds = jnp.where(due, WALK_STEPS, 0)
    _, _, places, count = jax.lax.fori_loop(0, rounds, step, carry)
    return places, count
