"""A mixture of Student-t components, fitted to weighted points by EM.

Component k has weight w_k, centre m_k, and scale matrix C_k = L_k L_k':

    q(x) = sum_k w_k t_6(x; m_k, C_k).

EM is that of Cappe, Douc, Guillin, Marin and Robert, Statistics and Computing 18, 2008,
with n_0 = d + 1 points of the mean covariance within components added to each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

#: Degrees of freedom; a whole number, so that chi-square is a sum of squares.
DEGREES = 6
#: Effective points below which a component is given up.
MIN_POINTS = 2.0
#: Steps of EM that choose among starts, and those of the chosen one.
FIRST_STEPS, LAST_STEPS = 8, 6
#: Jitter of a covariance, relative to its diagonal.
JITTER = 1e-6


class StudentMixture(NamedTuple):
    """K components in d dimensions.

    log_weight : (K,), -inf for a spare one.
    center : (K, d).
    root : (K, d, d), lower triangular L.
    whitening : (K, d, d), the inverse of L.
    log_det : (K,), log |L|.
    """

    log_weight: jax.Array
    center: jax.Array
    root: jax.Array
    whitening: jax.Array
    log_det: jax.Array


def one_component(center, root, num_components: int) -> StudentMixture:
    """One component of weight one; the others are spare."""
    d = center.size
    identity = jnp.eye(d, dtype=center.dtype)
    whitening = jax.scipy.linalg.solve_triangular(root, identity, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diag(root)))
    first = jnp.arange(num_components) == 0
    log_weight = jnp.where(first, 0.0, -jnp.inf).astype(center.dtype)
    same = (center, root, whitening, log_det)
    return StudentMixture(
        log_weight,
        *(jnp.broadcast_to(leaf, (num_components, *leaf.shape)) for leaf in same),
    )


def together(a: StudentMixture, b: StudentMixture, share: float) -> StudentMixture:
    """The mixture of two mixtures, `b` with this share."""
    a = a._replace(log_weight=a.log_weight + jnp.log1p(-share))
    b = b._replace(log_weight=b.log_weight + jnp.log(share))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), a, b)


def draw(rng_key, mixture: StudentMixture) -> jax.Array:
    """One draw, `(d,)`."""
    which_key, normal_key, tail_key = jax.random.split(rng_key, 3)
    k = jax.random.categorical(which_key, mixture.log_weight)
    center, root = mixture.center[k], mixture.root[k]
    z = jax.random.normal(normal_key, center.shape, center.dtype)
    normals = jax.random.normal(tail_key, (DEGREES,), center.dtype)
    return center + root @ z * jnp.sqrt(DEGREES / jnp.sum(normals**2))


def log_density(mixture: StudentMixture, x: jax.Array) -> jax.Array:
    """log q at points `(n, d)`, normalised; shape `(n,)`."""
    return jax.nn.logsumexp(components(mixture, x)[0], axis=0)


def components(mixture: StudentMixture, x) -> tuple[jax.Array, jax.Array]:
    """Log density of each component, weight included, and squared distances, (K, n).

    One product of a `(K d, d)` matrix and the points, which lie along the last axis.
    """
    (n, d), num_components = x.shape, mixture.log_weight.size
    shift = jnp.einsum("kij,kj->ki", mixture.whitening, mixture.center)
    z = (mixture.whitening.reshape(-1, d) @ x.T).reshape(num_components, d, n)
    squares = jnp.sum((z - shift[:, :, None]) ** 2, axis=1)
    half = 0.5 * (DEGREES + d)
    constant = jax.scipy.special.gammaln(half) - jax.scipy.special.gammaln(DEGREES / 2)
    constant = constant - 0.5 * d * jnp.log(DEGREES * jnp.pi)
    tail = half * jnp.log1p(squares / DEGREES)
    height = mixture.log_weight - mixture.log_det + constant
    return height[:, None] - tail, squares


def fit(rng_key, current: StudentMixture, x, weights) -> StudentMixture:
    """The mixture of points with weights that sum to one.

    EM starts at points that lie apart (k-means++) and at `current`, each on half of the
    points; the other half chooses among what these come to and one component that has
    the points' moments.

    Args:
        current: the mixture before; its shape is that of the result.
        x: `(n, d)`.
        weights: `(n,)`.
    """
    num_components = current.log_weight.size
    held_x, held_out = x[1::2], weights[1::2]
    seen_x, seen = x[::2], _normalised(weights[::2])
    center, covariance = moments(seen_x, seen)
    root = jnp.linalg.cholesky(covariance)
    apart = _apart(rng_key, seen_x, seen, root, num_components)
    # t_6 has the covariance 6 / 4 C
    alone = one_component(center, (2 / 3) ** 0.5 * root, num_components)
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), alone, apart, current)

    def fitted(start_and_steps):
        start, num_steps = start_and_steps
        end = _em(seen_x, seen, start, covariance, num_steps)
        value = jnp.maximum(log_density(end, held_x), -1e6)
        return end, jnp.sum(held_out * value)

    # one after the other: side by side, their products would be slow batches
    num_steps = jnp.asarray([0, FIRST_STEPS, FIRST_STEPS])
    ends, scores = jax.lax.map(fitted, (starts, num_steps))
    best = jnp.argmax(jnp.nan_to_num(scores, nan=-jnp.inf))
    chosen = jax.tree.map(lambda leaf: leaf[best], ends)
    return _em(x, weights, chosen, moments(x, weights)[1], LAST_STEPS)


def fit_apart(rng_key, current: StudentMixture, x) -> StudentMixture:
    """The mixture of points `(n, d)` of equal weight, from a start at some that lie
    apart; for points that are spread so evenly that no other start is better."""
    weights = jnp.full(len(x), 1 / len(x), x.dtype)
    root = jnp.linalg.cholesky(moments(x, weights)[1])
    start = _apart(rng_key, x, weights, root, current.log_weight.size)
    return _em(x, weights, start, moments(x, weights)[1], FIRST_STEPS + LAST_STEPS)


def moments(x, weights) -> tuple[jax.Array, jax.Array]:
    """Mean and covariance, shrunk to its diagonal where the points are few for it."""
    center = weights @ x
    centred = x - center
    covariance = (weights[:, None] * centred).T @ centred
    shrink = jnp.minimum(x.shape[1] ** 2 * jnp.sum(weights**2) ** 2, 1.0)
    diagonal = jnp.diag(jnp.diag(covariance))
    mixed = (1 - shrink) * covariance + (shrink + JITTER) * diagonal
    tiny = jnp.finfo(x.dtype).tiny ** 0.5
    return center, mixed + tiny * jnp.eye(x.shape[1], dtype=x.dtype)


def _normalised(weights):
    return weights / jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)


def _apart(rng_key, x, weights, root, num_components: int) -> StudentMixture:
    """Components of half the width at points far from each other, by k-means++."""
    d = x.shape[1]
    log_weight = jnp.log(weights)
    y = jax.scipy.linalg.solve_triangular(root, x.T, lower=True).T

    def pick(i, carry):
        picked, nearest = carry
        odds = log_weight + jnp.where(i == 0, 0.0, jnp.log(nearest))
        j = jax.random.categorical(jax.random.fold_in(rng_key, i), odds)
        distances = jnp.sum((y - y[j]) ** 2, axis=1)
        return picked.at[i].set(j), jnp.minimum(nearest, distances)

    start = (jnp.zeros(num_components, int), jnp.full(len(x), 1e10, x.dtype))
    picked, _ = jax.lax.fori_loop(0, num_components, pick, start)
    width = (0.5 * num_components ** (-2 / d)) ** 0.5
    one = one_component(x[0], width * root, num_components)
    even = jnp.full(num_components, -jnp.log(num_components), x.dtype)
    return one._replace(log_weight=even, center=x[picked])


def _em(x, weights, mixture, covariance, num_steps) -> StudentMixture:
    d, effective = x.shape[1], 1 / jnp.sum(weights**2)
    identity, along = jnp.eye(d, dtype=x.dtype), x.T
    prior_points = d + 1.0

    def step(_, mixture: StudentMixture) -> StudentMixture:
        logs, squares = components(mixture, x)
        shares = weights * jax.nn.softmax(logs, axis=0)
        pull = shares * (DEGREES + d) / (DEGREES + squares)
        total, mass = jnp.sum(pull, axis=1), jnp.sum(shares, axis=1)
        center = (pull @ x) / jnp.maximum(total, 1e-30)[:, None]

        def scatter(component):
            pull, center = component
            centred = along - center[:, None]
            return (pull * centred) @ centred.T

        scatters = jax.lax.map(scatter, (pull, center))
        points = effective * mass
        alive = (points > MIN_POINTS) & jnp.isfinite(mixture.log_weight)
        within = jnp.sum(jnp.where(alive[:, None, None], scatters, 0.0), axis=0)
        within = within + 1e-4 * covariance
        scale = effective * scatters + prior_points * within
        scale = scale / (points + prior_points)[:, None, None]
        root = jnp.linalg.cholesky(jnp.where(alive[:, None, None], scale, identity))
        whitening = jax.vmap(
            lambda r: jax.scipy.linalg.solve_triangular(r, identity, lower=True)
        )(root)
        alive = alive & jnp.all(jnp.isfinite(whitening), (1, 2))
        log_weight = jnp.where(alive, jnp.log(jnp.maximum(mass, 1e-30)), -jnp.inf)
        new = StudentMixture(
            log_weight - jax.nn.logsumexp(log_weight),
            jnp.where(alive[:, None], center, 0.0),
            jnp.where(alive[:, None, None], root, identity),
            jnp.where(alive[:, None, None], whitening, identity),
            jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)), axis=1) * alive,
        )
        usable = jnp.any(alive)
        return jax.tree.map(
            lambda n, o: jnp.where(usable, n, o).astype(o.dtype), new, mixture
        )

    return jax.lax.fori_loop(0, num_steps, step, mixture)
