"""The ends of a pilot's descents: Laplace approximations there, and their masses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

#: Up to this many coordinates the curvature at a mode is a full matrix.
MAX_DENSE = 64
#: Products with random signs that estimate the diagonal of the curvature above it.
NUM_PROBES = 16
#: A width from the curvature that is larger than the first, in units of the
#: coordinates, says nothing of a mode; none is looked for that is below the second.
WIDEST, NARROWEST = 10.0, 1e-4
#: A log density this much above that of the known modes says that there is another.
UNEXPLAINED = 3.0


class Ends(NamedTuple):
    """Ends of descents, and what is to be told of the density around them.

    ends : (ends, d).
    curvature : (ends, d, d), minus the second derivatives there; (ends, d), their
        diagonal, above `MAX_DENSE` dimensions.
    width, axes : of the Laplace approximation, as in `modes.record.Modes`.
    values : (ends,), the log density; -inf for an end that does not count.
    """

    ends: jax.Array
    curvature: jax.Array
    width: jax.Array
    axes: jax.Array
    values: jax.Array

    @property
    def log_mass(self) -> jax.Array:
        log_mass = self.values + jnp.sum(jnp.log(self.width), axis=-1)
        return jnp.where(jnp.isfinite(log_mass), log_mass, -jnp.inf)

    @property
    def weights(self) -> jax.Array:
        return _weights(self.ends, self.width, self.axes, self.log_mass)


def unknown(points: jax.Array) -> Ends:
    """Nothing found yet, and no density told anywhere."""
    number, dim = points.shape
    ones = jnp.ones_like(points)
    if dim > MAX_DENSE:
        axes = jnp.zeros((number, 0, 0), points.dtype)
        return Ends(points, ones, ones, axes, jnp.full_like(ones[:, 0], -jnp.inf))
    axes = jnp.broadcast_to(jnp.eye(dim, dtype=points.dtype), (number, dim, dim))
    return Ends(points, axes, ones, axes, jnp.full_like(ones[:, 0], -jnp.inf))


def laplace_at(logdensity, ends, values, rng_key) -> tuple[Ends, jax.Array]:
    """What the ends of descents, where the log density is `values`, tell.

    Returns:
        `(found, evaluations)`.
    """
    keys = jax.random.split(rng_key, len(ends))
    curvature, products = jax.vmap(lambda u, key: _curvature(logdensity, u, key))(
        ends, keys
    )
    curvature, probes = jax.vmap(lambda u, value, h: _probed(logdensity, u, value, h))(
        ends, values, curvature
    )
    width, axes = jax.vmap(principal)(curvature)
    count = jnp.sum(products) + jnp.sum(probes)
    return Ends(ends, curvature, width, axes, values), count


def newton_decrement(logdensity, found: Ends) -> jax.Array:
    """Squared length of the gradient at each end in widths of its mode, `(ends,)`."""

    def one(u, width, axes):
        grad = jax.grad(logdensity)(u)
        return jnp.sum((width * (axes.T @ grad if axes.size else grad)) ** 2)

    return jax.vmap(one)(found.ends, found.width, found.axes)


def surplus_at(looks, seen, found: Ends) -> jax.Array:
    """By how much the log density `seen` at each look is above that of the modes; -inf
    where that is less than `UNEXPLAINED`."""
    heights = jnp.where(jnp.isfinite(found.values), found.values, -jnp.inf)

    def known(u):
        z = jax.vmap(lambda c, w, a: ((u - c) @ a if a.size else u - c) / w)(
            found.ends, found.width, found.axes
        )
        return jax.nn.logsumexp(heights - 0.5 * jnp.sum(z**2, axis=-1))

    surplus = seen - jax.lax.map(known, looks, batch_size=256)
    return jnp.where(surplus > UNEXPLAINED, surplus, -jnp.inf)


def _curvature(logdensity, u, rng_key) -> tuple[jax.Array, jax.Array]:
    """Minus the Hessian, `(d, d)`, or above `MAX_DENSE` its estimated diagonal."""

    def product(count, v):
        return count + 2, -jax.jvp(jax.grad(logdensity), (u,), (v,))[1]

    if u.size <= MAX_DENSE:
        count, matrix = jax.lax.scan(
            product, jnp.asarray(0), jnp.eye(u.size, dtype=u.dtype)
        )
        return 0.5 * (matrix + matrix.T), count
    signs = jax.random.rademacher(rng_key, (NUM_PROBES, u.size), u.dtype)
    count, products = jax.lax.scan(product, jnp.asarray(0), signs)
    return jnp.mean(signs * products, axis=0), count


def _probed(logdensity, u, value, curvature) -> tuple[jax.Array, jax.Array]:
    """The curvature and, where it says nothing of a width, as at the kink of a Laplace
    density, that of a Gaussian as wide as where the log density has fallen by one.

    Returns:
        `(curvature, evaluations)`.
    """
    widest, axes = principal(curvature)

    def fall(i, width):
        axis = axes[:, i] if axes.size else jnp.zeros_like(u).at[i].set(1.0)
        ends = jnp.stack([u - width * axis, u + width * axis])
        return value - jnp.mean(jax.vmap(logdensity)(ends))

    def halve(carry):
        width, pending, count = carry
        falls = jax.lax.map(lambda pair: fall(*pair), (jnp.arange(u.size), width))
        pending = pending & ~(falls <= 1.0) & (width > NARROWEST)
        return jnp.where(pending, 0.5 * width, width), pending, count + 2 * u.size

    flat = (widest > 0.99 * WIDEST) & jnp.isfinite(value)
    start = (widest, flat, jnp.asarray(0))
    width, _, count = jax.lax.while_loop(lambda c: jnp.any(c[1]), halve, start)
    found = (axes * width**-2) @ axes.T if axes.size else width**-2
    return jnp.where(jnp.any(width < widest), found, curvature), count


def principal(curvature) -> tuple[jax.Array, jax.Array]:
    """Widths and axes; where the density curves upwards, as if it curved down."""

    def width(c):
        return jnp.maximum(jnp.abs(c), WIDEST**-2) ** -0.5

    curvature = jnp.nan_to_num(curvature)
    if curvature.ndim == 1:
        return width(curvature), jnp.zeros((0, 0), curvature.dtype)
    # whose squares overflow where a start lies far out
    size = jnp.maximum(jnp.max(jnp.abs(curvature)), 1.0)
    eigenvalues, axes = jnp.linalg.eigh(curvature / size)
    return width(size * eigenvalues), axes


def _weights(ends, width, axes, log_mass) -> jax.Array:
    """Each mode's share of the mass, given to the best of the ends that lie in it."""

    def distance(w, a, center):
        away = ends - center
        z = (away @ a if a.size else away) / w
        return jnp.sum(z**2, axis=-1)

    near = jax.vmap(distance)(width, axes, ends) < 1.0 + 0.1 * ends.shape[1]
    index = jnp.arange(len(ends))
    # rounding must not choose between ends that are as good as each other
    rank = jnp.round(100.0 * log_mass)
    better = (rank[:, None] > rank) | (
        (rank[:, None] == rank) & (index[:, None] < index)
    )
    repeated = jnp.any(near & better, axis=0)
    log_weight = jnp.where(repeated, -jnp.inf, log_mass)
    # nowhere finite: let every start count the same
    lost = jnp.all(jnp.isneginf(log_weight))
    return jax.nn.softmax(jnp.where(lost, 0.0, log_weight))
