"""The mode of a minibatch posterior, and the scale, curvature and noise there."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.hessian import hessian_product
from nutfree.numerics.laplace import hutchinson_diagonal

#: Products with the Hessian for its diagonal, and as many for its largest eigenvalue.
NUM_PROBES = 16
#: Gradients per probe: two products of two gradients each, and one for the noise.
BATCHES_PER_PROBE = 5


class Curvature(NamedTuple):
    """What the pilot measures at the mode.

    scale
        Of each coordinate: one over the root of the curvature, shape `(d,)`.
    largest
        Largest eigenvalue of the precision in coordinates of this scale.
    noise
        Variance of the batch's gradient there, a mean over the coordinates.
    """

    scale: jax.Array
    largest: jax.Array
    noise: jax.Array


def draw_rows(rng_key, num_data: int, batch_size: int) -> jax.Array:
    if batch_size >= num_data:
        return jnp.arange(num_data)
    return jax.random.randint(rng_key, (batch_size,), 0, num_data)


def gradient_on_scale(target, position, scale):
    """Return the gradient estimate in z = x / scale, z itself, and the way back."""
    x, unravel = ravel_pytree(position)

    def logdensity(z, rows):
        return target.minibatch.logdensity(unravel(z * scale), rows)

    return jax.grad(logdensity), x / scale, lambda z: unravel(z * scale)


def find_mode(rng_key, position, target, batch_size, num_steps):
    """Run Adam on batches from `position`; where it leads nowhere, stay there."""
    x, unravel = ravel_pytree(position)
    adam = optax.adam(optax.cosine_decay_schedule(0.1, num_steps, 1e-2))

    def loss(v, rows):
        return -target.minibatch.logdensity(unravel(v), rows)

    def body(carry, key):
        v, state = carry
        rows = draw_rows(key, target.minibatch.num_data, batch_size)
        updates, state = adam.update(jax.grad(loss)(v, rows), state)
        return (v + updates, state), None

    keys = jax.random.split(rng_key, num_steps)
    (end, _), _ = jax.lax.scan(body, (x, adam.init(x)), keys)
    return unravel(select(is_finite(end), end, x))


def measure_curvature(rng_key, position, target, batch_size) -> Curvature:
    x, _ = ravel_pytree(position)
    row_key, sign_key, noise_key = jax.random.split(rng_key, 3)
    keys = jax.random.split(row_key, NUM_PROBES)

    def times_precision(scale, v, key):
        rows = draw_rows(key, target.minibatch.num_data, batch_size)
        grad, z, _ = gradient_on_scale(target, position, scale)
        return -hessian_product(lambda u: grad(u, rows), z)(v)

    signs = jax.random.rademacher(sign_key, (NUM_PROBES, x.size), x.dtype)
    product = partial(times_precision, jnp.ones_like(x))
    diagonal = jnp.nan_to_num(hutchinson_diagonal(product, signs, keys))
    floor = 1e-4 * jnp.max(jnp.abs(diagonal))
    scale = jax.lax.rsqrt(jnp.maximum(diagonal, jnp.maximum(floor, 1e-12)))

    def power(v, key):
        product = times_precision(scale, v, key)
        size = jnp.linalg.norm(product)
        return product / jnp.maximum(size, 1e-12), size

    _, sizes = jax.lax.scan(power, signs[0] / jnp.sqrt(x.size), keys)
    grad, z, _ = gradient_on_scale(target, position, scale)

    def gradient(key):
        return grad(z, draw_rows(key, target.minibatch.num_data, batch_size))

    grads = jax.vmap(gradient)(jax.random.split(noise_key, NUM_PROBES))
    largest = jnp.maximum(jnp.nan_to_num(sizes[-1]), 1.0)
    noise = jnp.maximum(jnp.mean(jnp.nan_to_num(jnp.var(grads, axis=0))), 1e-6)
    return Curvature(scale, largest, noise)
