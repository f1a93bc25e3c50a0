"""A posterior as a mixture of Laplace approximations, one for each known mode.

The mixture lives in the standardised coordinates of a pilot. It says how wide the
density is around a point, which mode the point belongs to, and where X is likely to be
given a noisy observation of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

#: Degrees of freedom of the heavy-tailed mixture; a small whole number, so that
#: its chi-square variable is a sum of few squares.
DEGREES = 4
#: Share of the rows of `Modes` in use above which some modes may have found no room.
FULL = 0.75
#: Coordinates up to which a sum of products is faster than a call of a matrix product.
SMALL = 16


class Modes(NamedTuple):
    """Laplace approximations in standardised coordinates, the heaviest first.

    center : (modes, d), where each mode is.
    width : (modes, d), its standard deviations along its axes.
    axes : (modes, d, d), its principal axes as columns; (modes, 0, 0) above
        `candidates.MAX_DENSE` dimensions, where they are the coordinates themselves.
    log_weight : (modes,), log of its share of the mass; -inf for a spare row, which
        come last.
    log_volume : (modes,), sum of the logs of its widths.
    frame, offset : (d, modes d) and (modes d,), such that u @ frame - offset is
        `in_widths(modes, u)`, flattened; empty where `axes` is.
    """

    center: jax.Array
    width: jax.Array
    axes: jax.Array
    log_weight: jax.Array
    log_volume: jax.Array
    frame: jax.Array
    offset: jax.Array


class Mode(NamedTuple):
    """One row of `Modes`."""

    center: jax.Array
    width: jax.Array
    axes: jax.Array
    log_weight: jax.Array
    log_volume: jax.Array


def modes_of(center, width, axes, log_weight) -> Modes:
    """Build `Modes` from the fields that determine the others."""
    frame, offset = jnp.zeros((0, 0), center.dtype), jnp.zeros(0, center.dtype)
    if axes.size:
        frame = jnp.moveaxis(axes / width[:, None], 0, 1).reshape(center.shape[1], -1)
        offset = jax.vmap(into_axes)(axes, center) / width
    log_volume = jnp.sum(jnp.log(width), axis=-1)
    return Modes(center, width, axes, log_weight, log_volume, frame, offset.ravel())


def mode_at(modes: Modes, k: jax.Array) -> Mode:
    """Return the mode number `k`."""
    return Mode(*(leaf[k] for leaf in modes[: len(Mode._fields)]))


def with_mode(modes: Modes, k: jax.Array, center, width, axes) -> Modes:
    """Return the modes with another center, width and axes of number `k`."""
    frame, offset = modes.frame, modes.offset
    if axes.size:
        at = k * center.size
        frame = jax.lax.dynamic_update_slice_in_dim(frame, axes / width, at, 1)
        there = into_axes(axes, center) / width
        offset = jax.lax.dynamic_update_slice_in_dim(offset, there, at, 0)
    return Modes(
        modes.center.at[k].set(center),
        modes.width.at[k].set(width),
        modes.axes.at[k].set(axes),
        modes.log_weight,
        modes.log_volume.at[k].set(jnp.sum(jnp.log(width))),
        frame,
        offset,
    )


def number_of(modes: Modes) -> jax.Array:
    """Count the modes, spare rows left out."""
    return jnp.sum(jnp.isfinite(modes.log_weight))


def crowded(modes: Modes) -> jax.Array:
    """Tell whether there are so many modes that some are likely to be unknown."""
    return number_of(modes) > FULL * len(modes.log_weight)


def into_axes(axes: jax.Array, u: jax.Array) -> jax.Array:
    """Rotate `u`, `(d,)`, into coordinates along the axes of one mode."""
    if 0 < axes.size <= SMALL**2:
        return jnp.sum(axes * u[:, None], axis=0)
    return axes.T @ u if axes.size else u


def out_of_axes(axes: jax.Array, u: jax.Array) -> jax.Array:
    """Invert `into_axes`."""
    if 0 < axes.size <= SMALL**2:
        return jnp.sum(axes * u, axis=1)
    return axes @ u if axes.size else u


def transported(u: jax.Array, old: Mode, new: Mode) -> jax.Array:
    """Move `u` from one mode to another, C_new^(1/2) C_old^(-1/2) (u - old) + new."""
    # C^(1/2) = A diag(w) A' does not depend on the order or the signs of the axes
    z = out_of_axes(old.axes, into_axes(old.axes, u - old.center) / old.width)
    return new.center + out_of_axes(new.axes, new.width * into_axes(new.axes, z))


def in_widths(modes: Modes, u: jax.Array) -> jax.Array:
    """Express `u` relative to each mode, along its axes and in units of its widths.

    One product serves all modes, since one for each takes several times as long.

    Returns:
        Shape `(modes, d)`.
    """
    if not modes.frame.size:
        return (u - modes.center) / modes.width
    z = jnp.matmul(u, modes.frame, precision="highest") - modes.offset
    return z.reshape(modes.center.shape)


def log_shares_at(modes: Modes, z: jax.Array) -> jax.Array:
    """Compute `log_shares` from the coordinates `z = in_widths(modes, u)`."""
    return modes.log_weight - modes.log_volume - 0.5 * jnp.sum(z**2, axis=-1)


def log_shares(modes: Modes, u: jax.Array, noise: jax.Array | float = 0.0) -> jax.Array:
    """Compute each mode's log density at `u`, weight included, up to one constant.

    Args:
        modes: the mixture.
        u: shape `(d,)`.
        noise: standard deviation of the Gaussian that the mixture is smoothed by.

    Returns:
        Shape `(modes,)`.
    """
    variance = modes.width**2 + noise**2
    squares = (modes.width * in_widths(modes, u)) ** 2 / variance
    return modes.log_weight - 0.5 * jnp.sum(squares + jnp.log(variance), axis=-1)


def choose(rng_key: jax.Array, log_weight: jax.Array) -> jax.Array:
    """Draw an index with probability in proportion to exp(`log_weight`), by inversion.

    It takes one random number, where `jax.random.categorical` takes one an index.
    """
    cumulative = jnp.cumsum(jnp.exp(log_weight - jnp.max(log_weight)))
    at = jax.random.uniform(rng_key, (), cumulative.dtype) * cumulative[-1]
    # rounding must not lead past the last that has a weight
    return jnp.sum((cumulative <= at) & (cumulative < cumulative[-1]))


def conditional_sds(width, axes) -> jax.Array:
    """Compute the sd of each coordinate given all the others, `(d,)`, of one mode."""
    return (axes**2 @ width**-2.0) ** -0.5 if axes.size else width


def conditional_width(modes: Modes, u: jax.Array) -> jax.Array:
    """Compute the `conditional_sds` of the mode nearest to `u`."""
    nearest = mode_at(modes, jnp.argmax(log_shares(modes, u)))
    return conditional_sds(nearest.width, nearest.axes)


def draw_given_observation(rng_key, modes: Modes, m: jax.Array, s) -> jax.Array:
    """Draw X, of the mixture's law, given the noisy observation X + s z = m."""
    mode_key, noise_key = jax.random.split(rng_key)
    mode = mode_at(modes, choose(mode_key, log_shares(modes, m, s)))
    variance = 1.0 / (mode.width**-2.0 + s**-2.0)
    xi = jax.random.normal(noise_key, m.shape, m.dtype)
    z = variance / s**2 * into_axes(mode.axes, m - mode.center)
    # turned, so that the order and the signs of the axes do not matter
    z = z + jnp.sqrt(variance) * into_axes(mode.axes, xi)
    return mode.center + out_of_axes(mode.axes, z)


def heavy_log_density_at(
    modes: Modes, log_choice: jax.Array, z: jax.Array
) -> jax.Array:
    """Compute the log density of Student-t components at the modes, up to a constant.

    Args:
        modes: where the components are, and how wide.
        log_choice: log weight of each, shape `(modes,)`.
        z: the point's coordinates `in_widths`, `(modes, d)`.
    """
    tail = jnp.log1p(jnp.sum(z**2, axis=-1) / DEGREES)
    tail = 0.5 * (DEGREES + z.shape[-1]) * tail
    return jax.nn.logsumexp(log_choice - tail - modes.log_volume)


def heavy_draw(rng_key, modes: Modes, k: jax.Array) -> jax.Array:
    """Draw from the Student-t component at mode `k`, shape `(d,)`."""
    noise_key, tail_key = jax.random.split(rng_key)
    mode = mode_at(modes, k)
    noise = jax.random.normal(noise_key, mode.center.shape, mode.center.dtype)
    normals = jax.random.normal(tail_key, (DEGREES,), mode.center.dtype)
    # turned, as above
    z = into_axes(mode.axes, noise) * jnp.sqrt(DEGREES / jnp.sum(normals**2))
    return mode.center + out_of_axes(mode.axes, mode.width * z)
