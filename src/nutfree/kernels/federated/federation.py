"""Federated Langevin dynamics as plain functions of what crosses the wire.

An owner calls `fit_surrogate` once and `local_steps` at each visit; the server calls
`pool`, `visit_probabilities` and `server_step`. Only positions and surrogates go
between them, and values and gradients while the mode is sought. A simulation calls all
in one program, a deployment in several. See `fsgld` for the method.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.minibatch.gradients import flat_minibatch, plain
from nutfree.minibatch.sampling import draw_rows
from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.laplace import positive, precision
from nutfree.numerics.preconditioning import guarded_step, matvec
from nutfree.target import Target


class Surrogate(NamedTuple):
    """log q, a quadratic by its expansion at `centre`: what an owner sends, once.

    `gradient` has shape `(d,)`, `precision` `(d, d)` or, for a diagonal one, `(d,)`.
    """

    centre: jax.Array
    gradient: jax.Array
    precision: jax.Array


def surrogate_gradient(surrogate: Surrogate, x: jax.Array) -> jax.Array:
    """grad log q(x)."""
    return surrogate.gradient - matvec(surrogate.precision, x - surrogate.centre)


def fit_surrogate(rng_key, logdensity: Callable, centre, count, cost: float = 1.0):
    """An owner's part: expand its log density at a centre that owners share.

    Negative curvature is reflected, so that q_s is a Gaussian; an expansion that is
    not finite is answered with a flat one, which leaves that owner uncorrected.
    """
    gradient = jax.grad(logdensity)(centre)
    matrix, count = precision(rng_key, logdensity, centre, count + cost, cost)
    fitted = Surrogate(centre, gradient, positive(matrix))
    flat = Surrogate(centre, jnp.zeros_like(gradient), jnp.zeros_like(matrix))
    finite = is_finite(gradient, matrix)
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), fitted, flat), count


def pool(surrogates: Surrogate) -> Surrogate:
    """The server's part: the product of the owners' stacked surrogates."""
    centre, gradient, matrix = surrogates
    return Surrogate(centre[0], jnp.sum(gradient, axis=0), jnp.sum(matrix, axis=0))


def local_gradient(gradient, x, probability, own=None, pooled=None) -> jax.Array:
    """v_s(x) from the owner's gradient; without surrogates, that of DSGLD."""
    if own is None:
        return gradient / probability
    excess = gradient - surrogate_gradient(own, x)
    return excess / probability + surrogate_gradient(pooled, x)


class Chain(NamedTuple):
    """What the server sends to an owner, and the owner back.

    position
        The last position at which an owner found its log density finite, `(d,)`.
    ahead
        The step from it, at which the next gradient is taken, `(d,)`.
    """

    position: jax.Array
    ahead: jax.Array


def local_steps(
    rng_key: jax.Array,
    chain: Chain,
    gradient_fn: Callable,
    drift: Callable,
    step_size: jax.Array,
    factor: jax.Array,
    num_local_steps: int,
) -> tuple[Chain, jax.Array, jax.Array]:
    """What a visited owner does: K Langevin steps from where the chain is.

    Args:
        gradient_fn: `(rng_key, x, count) -> (gradient, count)` of log p_s.
        drift: `(gradient, x) -> v_s(x)`.
        factor: R with R R' = C.

    Returns:
        `(chain, divergent, count)`: what to send back, and the gradients spent.
    """

    def step(i, carry):
        (x, ahead), divergent, count = carry
        rows_key, noise_key = jax.random.split(jax.random.fold_in(rng_key, i))
        gradient, count = gradient_fn(rows_key, ahead, count)
        v = drift(gradient, ahead)
        x, ahead, failed = guarded_step(noise_key, x, ahead, v, step_size, factor)
        return Chain(x, ahead), divergent | failed, count

    start = (chain, jnp.asarray(False), jnp.zeros((), chain.position.dtype))
    return jax.lax.fori_loop(0, num_local_steps, step, start)


def server_step(chain: Chain, answer: Chain) -> tuple[Chain, jax.Array]:
    """What the server does with an answer: take it if it is finite.

    Returns:
        `(chain, refused)`.
    """
    finite = is_finite(answer)
    return select(finite, answer, chain), ~finite


def visit_probabilities(shards: Sequence[Target], visits: str) -> tuple[float, ...]:
    """f_s: proportional to the owners' numbers of rows where all are known, or even."""
    if visits == "size":
        return data_shares(shards)
    return tuple(1 / len(shards) for _ in shards)


def data_shares(shards: Sequence[Target]) -> tuple[float, ...]:
    """What fraction of a full-data gradient each owner's gradient is."""
    sizes = [shard.minibatch.num_data for shard in shards if shard.minibatch]
    if len(sizes) < len(shards):
        return tuple(1 / len(shards) for _ in shards)
    return tuple(size / sum(sizes) for size in sizes)


def owner_gradient(shard: Target, unravel, batch_size: int | None, share: float):
    """`(rng_key, x, count) -> (gradient, count)` of one owner's log density."""
    if batch_size is None or shard.minibatch is None:

        def full(rng_key, x, count):
            del rng_key
            value, gradient = jax.value_and_grad(lambda x: shard(unravel(x)))(x)
            return jnp.where(jnp.isfinite(value), gradient, jnp.nan), count + share

        return full
    minibatch = flat_minibatch(shard.minibatch, unravel)

    def batch(rng_key, x, count):
        rows = draw_rows(rng_key, minibatch.num_data, batch_size)
        gradient, cost = plain(minibatch, rows, x, (), 0.0)
        return gradient, count + share * cost

    return batch


def owner_cost(shard: Target, batch_size: int | None) -> float:
    """What a step of a visited owner spends, in gradients over all of its rows."""
    if batch_size is None or shard.minibatch is None:
        return 1.0
    return min(1.0, batch_size / shard.minibatch.num_data)


def owner_noise(
    keys, draw, gradients, f, surrogates, whiten, num_local_steps, batches, count: Any
):
    """V: variance of v_s over owners times K, and over minibatches, worst coordinate.

    The owner stays for K steps, so its deviation adds up over them; minibatches are
    drawn anew at each step.
    """
    pooled = None if surrogates is None else pool(surrogates)

    def one(carry, key):
        total, count = carry
        draw_key, *batch_keys = jax.random.split(key, 3)
        x = draw(draw_key)
        exact = [full(x) for full, _ in gradients]
        count = count + 1
        mean = sum(exact)
        variance = jnp.zeros_like(x)
        for s, (_, estimate) in enumerate(gradients):
            own = None
            if surrogates is not None:
                own = jax.tree.map(lambda a, s=s: a[s], surrogates)
            v = local_gradient(exact[s], x, f[s], own, pooled)
            variance += f[s] * num_local_steps * whiten(v - mean) ** 2
            if batches:
                first, count = estimate(batch_keys[0], x, count)
                second, count = estimate(batch_keys[1], x, count)
                variance += whiten(first - second) ** 2 / (2 * f[s])
        return (total + variance, count), None

    zeros = jnp.zeros_like(draw(keys[0]))
    (total, count), _ = jax.lax.scan(one, (zeros, count), keys)
    worst = jnp.max(total / keys.shape[0])
    return jnp.where(jnp.isfinite(worst), worst, 1.0), count
