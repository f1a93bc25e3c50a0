"""The Föllmer process, and its drift from the values of a density on an ensemble.

In coordinates where the reference is N(0, I), with f = dpi/dN(0, I) and Y_0 = 0,

    dY = b(Y, t) dt + dW,   b(y, t) = grad log E f(y + sqrt(1-t) z)
                                    = E[z f(y + sqrt(1-t) z)] / (sqrt(1-t) E f(..)),

so that Y_1 has density pi. As f(u) N(u; y, (1-t) I) is the law of Y_1 given Y_t = y,
b = (E[Y_1 | Y_t = y] - y) / (1 - t): a mean under weights, which all particles share.

The diffusion dX = -X ds + sqrt(2) dW, reversed, starts from N(0, I) at a large s, and
as s falls by ds,

    dR = (R + 2 (exp(-s) E[X_0 | X_s = R] - R) / (1 - exp(-2s))) ds + sqrt(2) dW,

is the same process: with t = exp(-2s) and Y_t = sqrt(t) R that is the equation above.
What differs is the start, which is exact here, and the steps. With 128 particles and
as many steps to t = .95, uniform in s from 2, 3 and 5, the variance of N(0, I/4) in the
plane was 4.5, 7 and 13 % too large, and within 1 % in steps uniform in t; the weights
of two modes were the same within their errors, .005 (100 ensembles).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Weights(NamedTuple):
    """Self-normalised weights of every node for every particle.

    values : (N, N), row i sums to one over the nodes.
    ess : scalar, mean over the particles of the effective share of the nodes, 1 /
        (N sum_j w_ij^2); 0 where the density is zero at all of them.
    """

    values: jax.Array
    ess: jax.Array


def draw_nodes(rng_key, y: jax.Array, t: jax.Array) -> jax.Array:
    """One node u_j = y_j + sqrt(1-t) z_j for each particle, shape `(N, d)`."""
    return y + jnp.sqrt(1 - t) * jax.random.normal(rng_key, y.shape, y.dtype)


def ensemble_weights(
    y: jax.Array, nodes: jax.Array, log_ratio: jax.Array, t: jax.Array
) -> Weights:
    """Weights of the nodes of all particles in the expectation of each.

        w_ij ∝ f(u_j) N(u_j; y_i, (1-t) I) / (1/N) sum_k N(u_j; y_k, (1-t) I):

    importance sampling from the mixture that the nodes were in truth drawn from.

    Args:
        y: particles, `(N, d)`.
        nodes: as `draw_nodes` made them, `(N, d)`.
        log_ratio: log f at the nodes, `(N,)`, up to a constant; -inf where f is zero.
        t: time in [0, 1).
    """
    log_kernel = -0.5 * squared_distances(y, nodes) / (1 - t)
    log_mixture = jax.nn.logsumexp(log_kernel, axis=0)
    logits = log_kernel + (log_ratio - log_mixture)[None]
    largest = jnp.max(logits, axis=1, keepdims=True)
    values = jnp.exp(logits - jnp.where(jnp.isfinite(largest), largest, 0.0))
    total = jnp.sum(values, axis=1, keepdims=True)
    n = y.shape[0]
    values = jnp.where(total > 0, values / total, 1 / n)
    share = 1 / (n * jnp.sum(values**2, axis=1))
    return Weights(values, jnp.mean(jnp.where(total[:, 0] > 0, share, 0.0)))


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """`|a_i - b_j|^2`, shape `(len(a), len(b))`, without an array of differences."""
    squares = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None]
    return jnp.maximum(squares - 2 * a @ b.T, 0.0)


def follmer_step(rng_key, y, mean, t, h) -> jax.Array:
    """Euler-Maruyama step of length h, given `mean`, E[Y_1 | Y_t = y]."""
    noise = jax.random.normal(rng_key, y.shape, y.dtype)
    return y + h * (mean - y) / (1 - t) + jnp.sqrt(h) * noise


def jump(rng_key, weights: Weights) -> jax.Array:
    """For each particle the index of one node, drawn by its weights: Y_1 given Y_t."""
    n = weights.values.shape[0]
    level = jax.random.uniform(rng_key, (n, 1), weights.values.dtype)
    cumulative = jnp.cumsum(weights.values, axis=1)
    below = jnp.sum(cumulative < level * cumulative[:, -1:], axis=1)
    return jnp.minimum(below, n - 1)
