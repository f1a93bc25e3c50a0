"""A posterior as a mixture of Laplace approximations, one for each known mode.

In the standardised coordinates of a pilot. It says how wide the density is where a
point lies, which mode that is, and what X is likely to be given a noisy look at it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Modes(NamedTuple):
    """Laplace approximations in standardised coordinates, the heaviest first.

    center : (modes, d), where each mode is.
    width : (modes, d), its standard deviations along its axes.
    axes : (modes, d, d), its principal axes as columns; (modes, 0, 0) above
        `pilot.MAX_DENSE` dimensions, where they are the coordinates themselves.
    log_weight : (modes,), log of its share of the mass, -inf for a spare row.
    """

    center: jax.Array
    width: jax.Array
    axes: jax.Array
    log_weight: jax.Array


def into_axes(axes: jax.Array, u: jax.Array) -> jax.Array:
    """Coordinates of `u` along the axes of one mode."""
    return axes.T @ u if axes.size else u


def out_of_axes(axes: jax.Array, u: jax.Array) -> jax.Array:
    """The inverse of `into_axes`."""
    return axes @ u if axes.size else u


def log_shares(modes: Modes, u: jax.Array, noise: jax.Array | float = 0.0) -> jax.Array:
    """Log density of each mode at `u`, weight included, up to one common constant.

    Args:
        modes: the mixture.
        u: shape `(d,)`.
        noise: standard deviation of the Gaussian that the mixture is smoothed by.

    Returns:
        Shape `(modes,)`.
    """

    def one(center, width, axes, log_weight):
        variance = width**2 + noise**2
        z = into_axes(axes, u - center)
        return log_weight - 0.5 * jnp.sum(z**2 / variance + jnp.log(variance))

    return jax.vmap(one)(*modes)


def along_coordinates(width, axes) -> jax.Array:
    """Standard deviation of each coordinate when the others stay put, `(d,)`."""
    return (axes**2 @ width**-2.0) ** -0.5 if axes.size else width


def conditional_width(modes: Modes, u: jax.Array) -> jax.Array:
    """Width of the mode nearest to `u` along each coordinate, `(d,)`."""
    nearest = jnp.argmax(log_shares(modes, u))
    return along_coordinates(modes.width[nearest], modes.axes[nearest])


def draw_given_look(rng_key, modes: Modes, m: jax.Array, s: jax.Array) -> jax.Array:
    """A draw of X given X + s z = m, for X from the mixture of the modes."""
    mode_key, noise_key = jax.random.split(rng_key)
    k = jax.random.categorical(mode_key, log_shares(modes, m, s))
    center, width, axes, _ = jax.tree.map(lambda leaf: leaf[k], modes)
    variance = 1.0 / (width**-2.0 + s**-2.0)
    xi = jax.random.normal(noise_key, m.shape, m.dtype)
    z = variance / s**2 * into_axes(axes, m - center) + jnp.sqrt(variance) * xi
    return center + out_of_axes(axes, z)


#: Degrees of freedom of the heavy-tailed mixture; an even few, for cheap draws.
DEGREES = 4


def heavy_log_density(modes: Modes, log_choice: jax.Array, u: jax.Array) -> jax.Array:
    """Log density at `u` of Student-t components at the modes, up to a constant.

    Args:
        modes: where the components are, and how wide.
        log_choice: log weight of each, shape `(modes,)`.
        u: shape `(d,)`.
    """

    def one(center, width, axes, _, log_weight):
        z = into_axes(axes, u - center) / width
        tail = 0.5 * (DEGREES + u.size) * jnp.log1p(jnp.sum(z**2) / DEGREES)
        return log_weight - tail - jnp.sum(jnp.log(width))

    return jax.nn.logsumexp(jax.vmap(one)(*modes, log_choice))


def heavy_draw(rng_key, modes: Modes, k: jax.Array) -> jax.Array:
    """A draw of the Student-t component at mode `k`, shape `(d,)`."""
    noise_key, tail_key = jax.random.split(rng_key)
    center, width, axes, _ = jax.tree.map(lambda leaf: leaf[k], modes)
    noise = jax.random.normal(noise_key, center.shape, center.dtype)
    chi_square = jnp.sum(jax.random.normal(tail_key, (DEGREES,), center.dtype) ** 2)
    z = noise * jnp.sqrt(DEGREES / chi_square)
    return center + out_of_axes(axes, width * z)
