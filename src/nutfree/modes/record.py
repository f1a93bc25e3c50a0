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
        `ends.MAX_DENSE` dimensions, where they are the coordinates themselves.
    log_weight : (modes,), log of its share of the mass; -inf for a spare row, which
        come last.
    log_volume : (modes,), sum of the logs of its widths.
    frame, offset : (d, modes d) and (modes d,), such that u @ frame - offset is where
        u lies in all of them, see `in_widths`; empty where `axes` is.
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
    """Modes of these widths; see `Modes`."""
    frame, offset = jnp.zeros((0, 0), center.dtype), jnp.zeros(0, center.dtype)
    if axes.size:
        frame = jnp.moveaxis(axes / width[:, None], 0, 1).reshape(center.shape[1], -1)
        offset = jax.vmap(into_axes)(axes, center) / width
    log_volume = jnp.sum(jnp.log(width), axis=-1)
    return Modes(center, width, axes, log_weight, log_volume, frame, offset.ravel())


def number_of(modes: Modes) -> jax.Array:
    """How many there are, spare rows left out."""
    return jnp.sum(jnp.isfinite(modes.log_weight))


#: A record of modes that is fuller than this may have no room for some.
FULL = 0.75


def crowded(modes: Modes) -> jax.Array:
    """Whether there are so many that some are likely to be unknown."""
    return number_of(modes) > FULL * len(modes.log_weight)


#: How many of the shortest ways between modes are kept.
NUM_SHIFTS = 256
#: Vectors that differ by less than the first, of the longer one's length, are the same;
#: one is worth replacing by another that is shorter by the second.
SAME, SHORTER = 0.1, 0.95
#: The most times that each of them is.
MAX_SWEEPS = 32


class Shifts(NamedTuple):
    """Ways from one mode to another.

    between : (2, shifts, d), the shortest differences of two centres, and what those
        are sums of.
    number : (2,), how many rows are such.
    """

    between: jax.Array
    number: jax.Array


def shifts_between(modes: Modes) -> Shifts:
    """At most `NUM_SHIFTS`, of each pair in one direction.

    What they are sums of is only told of modes that are too many to be known, as are
    the combinations of a few wells: there it is the way from a well to the next.
    """
    center = modes.center
    if len(center) == 1:
        return Shifts(jnp.zeros((2, *center.shape)), jnp.zeros(2, int))
    first, second = jnp.triu_indices(len(center), k=1)
    live = jnp.isfinite(modes.log_weight)
    squares = jnp.sum(center**2, axis=-1)
    squares = squares[:, None] + squares - 2.0 * center @ center.T
    squares = jnp.where(live[:, None] & live, squares, jnp.inf)[first, second]
    shortest = jnp.argsort(squares)[:NUM_SHIFTS]
    live = jnp.isfinite(squares[shortest])
    between = center[second[shortest]] - center[first[shortest]]
    between = jnp.where(live[:, None], between, 0.0)
    # every difference is one of two that are from the first mode
    pool = jnp.concatenate([between, jnp.nan_to_num(center[1:] - center[0])])
    known = jnp.concatenate([live, jnp.isfinite(modes.log_weight[1:])])
    parts, left = summands(pool, known & crowded(modes))
    rows = len(between)
    number = jnp.stack([jnp.sum(live), jnp.minimum(jnp.sum(left), rows)])
    return Shifts(jnp.stack([between, parts[:rows]]), number)


def summands(vectors: jax.Array, live: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Short vectors of which all the live ones are sums and differences.

    Each in turn becomes the shortest sum or difference with another, if that is
    shorter, and one that becomes nothing is dropped (pairwise lattice reduction).

    Returns:
        `(vectors, live)`, the live ones first.
    """
    number = len(vectors)
    live = live & jnp.any(vectors != 0, axis=1)

    def shorten(carry):
        vectors, live, step, last = carry
        i = step % number
        v, squares = vectors[i], jnp.sum(vectors**2, axis=1)
        square, along = squares[i], vectors @ v
        others = live & (jnp.arange(number) != i)
        new = jnp.where(others, square + squares - 2 * jnp.abs(along), jnp.inf)
        j = jnp.argmin(new)
        better = live[i] & (new[j] < SHORTER**2 * square)
        same = better & (new[j] < SAME**2 * squares[j])
        way = jnp.where(along[j] > 0, -1.0, 1.0)
        vectors = vectors.at[i].add(jnp.where(better, way * vectors[j], 0.0))
        live = live.at[i].set(live[i] & ~same)
        return vectors, live, step + 1, jnp.where(better, step, last)

    def going(carry):
        _, live, step, last = carry
        busy = (step <= last + number) & (step < MAX_SWEEPS * number)
        return busy & jnp.any(live)

    none = jnp.asarray(0)
    vectors, live, *_ = jax.lax.while_loop(going, shorten, (vectors, live, none, none))
    order = jnp.argsort(~live)
    return jnp.where(live[:, None], vectors, 0.0)[order], live[order]


def mode_at(modes: Modes, k: jax.Array) -> Mode:
    """The mode number `k`."""
    return Mode(*(leaf[k] for leaf in modes[: len(Mode._fields)]))


def with_mode(modes: Modes, k: jax.Array, center, width, axes) -> Modes:
    """The modes with another center, width and axes of number `k`."""
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


#: Up to this many coordinates a sum of products is over before a product has started.
SMALL = 16


def into_axes(axes: jax.Array, u: jax.Array) -> jax.Array:
    """Coordinates of `u`, `(d,)`, along the axes of one mode."""
    if 0 < axes.size <= SMALL**2:
        return jnp.sum(axes * u[:, None], axis=0)
    return axes.T @ u if axes.size else u


def out_of_axes(axes: jax.Array, u: jax.Array) -> jax.Array:
    """The inverse of `into_axes`."""
    if 0 < axes.size <= SMALL**2:
        return jnp.sum(axes * u, axis=1)
    return axes @ u if axes.size else u


def in_widths(modes: Modes, u: jax.Array) -> jax.Array:
    """Where `u` lies in each mode, along its axes and in its widths.

    One product for all modes, since one for each takes several times as long.

    Returns:
        Shape `(modes, d)`.
    """
    if not modes.frame.size:
        return (u - modes.center) / modes.width
    z = jnp.matmul(u, modes.frame, precision="highest") - modes.offset
    return z.reshape(modes.center.shape)


def log_shares_at(modes: Modes, z: jax.Array) -> jax.Array:
    """`log_shares` of a point whose place `in_widths` is `z`."""
    return modes.log_weight - modes.log_volume - 0.5 * jnp.sum(z**2, axis=-1)


def log_shares(modes: Modes, u: jax.Array, noise: jax.Array | float = 0.0) -> jax.Array:
    """Log density of each mode at `u`, weight included, up to one common constant.

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
    """An index with probability in proportion to exp(`log_weight`), by inversion.

    One random number, where `jax.random.categorical` draws one for each index.
    """
    cumulative = jnp.cumsum(jnp.exp(log_weight - jnp.max(log_weight)))
    at = jax.random.uniform(rng_key, (), cumulative.dtype) * cumulative[-1]
    # rounding must not lead past the last that has a weight
    return jnp.sum((cumulative <= at) & (cumulative < cumulative[-1]))


def along_coordinates(width, axes) -> jax.Array:
    """Standard deviation of each coordinate when the others stay put, `(d,)`."""
    return (axes**2 @ width**-2.0) ** -0.5 if axes.size else width


def conditional_width(modes: Modes, u: jax.Array) -> jax.Array:
    """Width of the mode nearest to `u` along each coordinate, `(d,)`."""
    nearest = mode_at(modes, jnp.argmax(log_shares(modes, u)))
    return along_coordinates(nearest.width, nearest.axes)


def draw_given_look(rng_key, modes: Modes, m: jax.Array, s: jax.Array) -> jax.Array:
    """A draw of X given X + s z = m, for X from the mixture of the modes."""
    mode_key, noise_key = jax.random.split(rng_key)
    k = choose(mode_key, log_shares(modes, m, s))
    center, width, axes, *_ = mode_at(modes, k)
    variance = 1.0 / (width**-2.0 + s**-2.0)
    xi = jax.random.normal(noise_key, m.shape, m.dtype)
    z = variance / s**2 * into_axes(axes, m - center) + jnp.sqrt(variance) * xi
    return center + out_of_axes(axes, z)


#: Degrees of freedom of the heavy-tailed mixture; an even few, for cheap draws.
DEGREES = 4


def heavy_log_density_at(
    modes: Modes, log_choice: jax.Array, z: jax.Array
) -> jax.Array:
    """Log density of Student-t components at the modes, up to a constant.

    Args:
        modes: where the components are, and how wide.
        log_choice: log weight of each, shape `(modes,)`.
        z: where the point lies, `in_widths`, `(modes, d)`.
    """
    tail = jnp.log1p(jnp.sum(z**2, axis=-1) / DEGREES)
    tail = 0.5 * (DEGREES + z.shape[-1]) * tail
    return jax.nn.logsumexp(log_choice - tail - modes.log_volume)


def heavy_draw(rng_key, modes: Modes, k: jax.Array) -> jax.Array:
    """A draw of the Student-t component at mode `k`, shape `(d,)`."""
    noise_key, tail_key = jax.random.split(rng_key)
    center, width, axes, *_ = mode_at(modes, k)
    noise = jax.random.normal(noise_key, center.shape, center.dtype)
    chi_square = jnp.sum(jax.random.normal(tail_key, (DEGREES,), center.dtype) ** 2)
    z = noise * jnp.sqrt(DEGREES / chi_square)
    return center + out_of_axes(axes, width * z)
