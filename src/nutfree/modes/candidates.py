"""Laplace approximations where descents end, the candidates for modes.

At an end u the posterior is approximated by a Gaussian of covariance C there,
C^-1 = -(Hessian of log pi at u), and its mass, up to (2 pi)^(d/2), by
pi(u) sqrt(det C).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.numerics.laplace import precision

#: Coordinates up to which the curvature at a candidate is a full matrix.
MAX_DENSE = 64
#: Random sign vectors that estimate the diagonal of the curvature above that.
NUM_SIGNS = 16
#: Width, in units of the coordinates, above which the curvature says nothing of a mode.
WIDEST = 10.0
#: Width, in units of the coordinates, below which none is searched for.
NARROWEST = 1e-4
#: Nats by which the log density exceeds that of the known modes where there is another.
UNEXPLAINED = 3.0


class Candidates(NamedTuple):
    """Ends of descents with the Laplace approximation at each.

    position : (candidates, d).
    curvature : (candidates, d, d), minus the second derivatives there;
        (candidates, d), their diagonal, above `MAX_DENSE` dimensions.
    width, axes : of the Laplace approximation, as in `modes.mixture.Modes`.
    values : (candidates,), the log density; -inf for one that does not count.
    """

    position: jax.Array
    curvature: jax.Array
    width: jax.Array
    axes: jax.Array
    values: jax.Array

    @property
    def log_mass(self) -> jax.Array:
        """Log of the Laplace masses, up to d log(2 pi) / 2, `(candidates,)`."""
        log_mass = self.values + jnp.sum(jnp.log(self.width), axis=-1)
        return jnp.where(jnp.isfinite(log_mass), log_mass, -jnp.inf)

    @property
    def weights(self) -> jax.Array:
        """Shares of the mass; of candidates in one mode the heaviest has its all."""
        return _weights(self)


def no_candidates(points: jax.Array) -> Candidates:
    """Return candidates at these points of which none counts."""
    number, dim = points.shape
    ones = jnp.ones_like(points)
    if dim > MAX_DENSE:
        axes = jnp.zeros((number, 0, 0), points.dtype)
        return Candidates(points, ones, ones, axes, jnp.full_like(ones[:, 0], -jnp.inf))
    axes = jnp.broadcast_to(jnp.eye(dim, dtype=points.dtype), (number, dim, dim))
    return Candidates(points, axes, ones, axes, jnp.full_like(ones[:, 0], -jnp.inf))


def curvature_at(logdensity, u, rng_key) -> tuple[jax.Array, jax.Array]:
    """Evaluate the curvature at `u`, as in `Candidates`.

    Returns:
        `(curvature, evaluations)`.
    """
    return precision(
        rng_key,
        logdensity,
        u,
        jnp.asarray(0),
        cost=1,
        dense_dim=MAX_DENSE,
        num_probes=NUM_SIGNS,
        at_once=None,
    )


def laplace_at(logdensity, points, values, rng_key) -> tuple[Candidates, jax.Array]:
    """Approximate the posterior at each point, where the log density is `values`.

    Returns:
        `(candidates, evaluations)`.
    """

    keys = jax.random.split(rng_key, len(points))
    curvature, products = jax.vmap(lambda u, key: curvature_at(logdensity, u, key))(
        points, keys
    )
    curvature, width, axes, searched = jax.vmap(
        lambda *at: _curvature_where_flat(logdensity, *at)
    )(points, values, curvature)
    count = jnp.sum(products) + jnp.sum(searched)
    return Candidates(points, curvature, width, axes, values), count


def newton_decrement(gradients: jax.Array, found: Candidates) -> jax.Array:
    """Compute the squared length of each gradient in widths of its mode.

    Args:
        gradients: of the log density at the candidates, `(candidates, d)`.
    """

    def one(grad, width, axes):
        return jnp.sum((width * (axes.T @ grad if axes.size else grad)) ** 2)

    return jax.vmap(one)(gradients, found.width, found.axes)


def unexplained(points, values, found: Candidates) -> jax.Array:
    """Compute by how much the log density exceeds that of the modes.

    Args:
        points: `(points, d)`.
        values: `(points,)`, the log density there.
        found: the modes.

    Returns:
        Shape `(points,)`; -inf where it is less than `UNEXPLAINED`.
    """
    heights = jnp.where(jnp.isfinite(found.values), found.values, -jnp.inf)

    def of_modes(u):
        z = jax.vmap(lambda c, w, a: ((u - c) @ a if a.size else u - c) / w)(
            found.position, found.width, found.axes
        )
        return jax.nn.logsumexp(heights - 0.5 * jnp.sum(z**2, axis=-1))

    excess = values - jax.lax.map(of_modes, points, batch_size=256)
    return jnp.where(excess > UNEXPLAINED, excess, -jnp.inf)


def _curvature_where_flat(logdensity, u, value, curvature):
    """Replace the curvature along axes where it says nothing of a width.

    So it is at the kink of a Laplace density. There it becomes that of a Gaussian as
    wide as the distance at which the log density has fallen by one.

    Returns:
        `(curvature, width, axes, evaluations)`, see `principal`.
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
    curvature = jnp.where(jnp.any(width < widest), found, curvature)
    return curvature, width, axes, count


def principal(curvature) -> tuple[jax.Array, jax.Array]:
    """Compute widths and axes of a Laplace approximation from its curvature.

    Upward curvature is reflected, and no width exceeds `WIDEST`.
    """

    def width(c):
        return jnp.maximum(jnp.abs(c), WIDEST**-2) ** -0.5

    curvature = jnp.nan_to_num(curvature)
    if curvature.ndim == 1:
        return width(curvature), jnp.zeros((0, 0), curvature.dtype)
    # the squares of a curvature far out would overflow
    size = jnp.maximum(jnp.max(jnp.abs(curvature)), 1.0)
    eigenvalues, axes = jnp.linalg.eigh(curvature / size)
    return width(size * eigenvalues), axes


def _weights(found: Candidates) -> jax.Array:
    def squares(width, axes, center):
        away = found.position - center
        z = (away @ axes if axes.size else away) / width
        return jnp.sum(z**2, axis=-1)

    dim = found.position.shape[1]
    squared_distance = jax.vmap(squares)(found.width, found.axes, found.position)
    near = squared_distance < 1.0 + 0.1 * dim
    index = jnp.arange(len(found.position))
    # rounding must not choose between candidates that are as good as each other
    rank = jnp.round(100.0 * found.log_mass)
    better = (rank[:, None] > rank) | (
        (rank[:, None] == rank) & (index[:, None] < index)
    )
    repeated = jnp.any(near & better, axis=0)
    log_weight = jnp.where(repeated, -jnp.inf, found.log_mass)
    # nowhere finite: let every start count the same
    lost = jnp.all(jnp.isneginf(log_weight))
    return jax.nn.softmax(jnp.where(lost, 0.0, log_weight))
