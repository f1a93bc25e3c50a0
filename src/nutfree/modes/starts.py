"""Where a search for modes begins: starts, probes, and choices among them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from nutfree.target import Target


def starts_and_probes(
    rng_key, x, target: Target, num_starts: int, num_probes: int
) -> tuple[jax.Array, jax.Array]:
    """Make points of one law, and take starts from among the probes evenly."""
    number = num_starts + num_probes
    points = _points(rng_key, x, target, number)
    # without a prior they are ever farther out
    own = np.arange(num_starts) * number // num_starts
    return points[own], jnp.delete(points, own, axis=0)


def _points(rng_key, x, target: Target, number: int) -> jax.Array:
    """Return `x` and prior draws, or Gaussians of many widths around it."""
    keys = jax.random.split(rng_key, number - 1)
    prior = target.prior
    if prior is not None:
        points = jax.vmap(lambda key: ravel_pytree(prior.sample(key))[0])(keys)
    else:
        width = jnp.logspace(-0.5, 1.75, number - 1, dtype=x.dtype)[:, None]
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape, x.dtype))(keys)
        points = x + width * noise
    points = jnp.where(jnp.isfinite(points), points, x)
    return jnp.concatenate([x[None], points.astype(x.dtype)])


def median_and_spread(points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute robust location and scale of each coordinate; scale one if all agree."""
    low, middle, high = jnp.quantile(points, jnp.array([0.16, 0.5, 0.84]), axis=0)
    spread = 0.5 * (high - low)
    return middle, jnp.where(spread > 0, spread, 1.0)


def far_apart(points: jax.Array, values: jax.Array, num_chosen: int) -> jax.Array:
    """Choose the best of the points, then each time the farthest from those chosen.

    Args:
        points: `(n, d)`.
        values: `(n,)`, their log densities; one that is not finite comes last.
        num_chosen: how many indices to return.
    """
    finite = jnp.isfinite(values)
    best = jnp.argmax(jnp.where(finite, values, -jnp.inf))
    distance = jnp.where(finite, jnp.inf, -1.0).astype(points.dtype)

    def choose(carry, _):
        distance, chosen = carry
        squares = jnp.sum((points - points[chosen]) ** 2, axis=-1)
        distance = jnp.minimum(distance, squares)
        # one that is chosen is not chosen again
        distance = distance.at[chosen].set(-1.0)
        return (distance, jnp.argmax(distance)), chosen

    return jax.lax.scan(choose, (distance, best), None, length=num_chosen)[1]
