"""Which rows of the data a gradient is estimated from, and with what weights.

A batch is row numbers i_j and weights w_j with sum_j w_j f(i_j) an unbiased estimate
of the sum of f over all N rows. With n rows drawn uniformly w_j = N/n; with
replacement the estimate's variance is (N^2/n) var(f), without it (N - n)/(N - 1) of
that. Rows drawn with probabilities p_i have w_j = 1/(n p_i), and the least variance
where p_i is proportional to |f(i)| (Zhao and Zhang 2015; Putcha, Nemeth and Fearnhead,
arXiv 2206.13330).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.errors import InvalidOption, MissingCapability
from nutfree.target import Minibatch

SAMPLING = ("uniform", "importance")
#: Share of the draws that importance sampling makes uniformly, so that no weight is
#: more than ten times the uniform one.
UNIFORM_SHARE = 0.1
#: Up to this number of rows, distinct ones are the head of a permutation.
PERMUTED_ROWS = 4096
ROUNDS = 6


class Rows(NamedTuple):
    """Row numbers and weights, both of shape `(n,)`."""

    indices: jax.Array
    weights: jax.Array


class Shares(NamedTuple):
    """Cumulative probabilities: of blocks of rows, `(B,)`, and inside each, `(B, m)`.

    One sum over 10^6 rows would know a row's probability to 6 % in single precision.
    """

    blocks: jax.Array
    within: jax.Array


def check_sampling(sampling: str, replacement: bool) -> None:
    """Raise `InvalidOption` for importance sampling without replacement."""
    if sampling == "importance" and not replacement:
        raise InvalidOption(
            "sampling='importance' draws rows with replacement; leave "
            "replacement=False out, or write sampling='uniform'."
        )


def require_fixed_rows(minibatch: Minibatch, what: str) -> None:
    """Raise `MissingCapability` where a row number is not always the same row."""
    if minibatch.in_order is not None:
        raise MissingCapability(
            f"{what} needs to know each row by its number, and these rows come from "
            "disk in an order of their own. Hold them in memory, or write "
            "gradient='svrg' or gradient='control_variate', sampling='uniform'."
        )


def every_row(num_data: int) -> Rows:
    return Rows(jnp.arange(num_data), jnp.ones(num_data))


def draw_rows(
    rng_key: jax.Array, num_data: int, batch_size: int, replacement: bool = True
) -> Rows:
    """Rows drawn uniformly; every row once where the batch is all."""
    if batch_size >= num_data:
        return every_row(num_data)
    if replacement:
        indices = jax.random.randint(rng_key, (batch_size,), 0, num_data)
    else:
        indices = distinct_rows(rng_key, num_data, batch_size)
    return Rows(indices, jnp.full(batch_size, num_data / batch_size))


def distinct_rows(rng_key: jax.Array, num_data: int, batch_size: int) -> jax.Array:
    """Distinct row numbers, each row equally likely, without touching all N of them.

    The first n images of a random permutation: a Feistel network on a square of
    sqrt(N) with tables of random shifts, walked until the image is a row, and turned
    by a random amount, which makes each row's chance exactly n/N.
    """
    if num_data <= PERMUTED_ROWS:
        return jax.random.permutation(rng_key, num_data)[:batch_size]
    table_key, turn_key = jax.random.split(rng_key)
    side = int(num_data**0.5)
    side += side * side < num_data
    tables = jax.random.randint(table_key, (ROUNDS, 2, side), 0, side)

    def permute(k):
        high, low = k // side, k % side
        for left, right in tables:
            high = (high + left[low]) % side
            low = (low + right[high]) % side
        return high * side + low

    def outside(k):
        return jnp.any(k >= num_data)

    def walk(k):
        return jnp.where(k >= num_data, permute(k), k)

    k = jax.lax.while_loop(outside, walk, permute(jnp.arange(batch_size)))
    turn = jax.random.randint(turn_key, (), 0, num_data)
    # the sum of two row numbers may pass the largest integer
    return jnp.where(k >= num_data - turn, k - (num_data - turn), k + turn)


def row_shares(importance: jax.Array) -> Shares:
    """Probabilities in proportion to `importance`, `(N,)`, nine parts in ten."""
    num_data = importance.shape[0]
    usable = jnp.where(jnp.isfinite(importance) & (importance > 0), importance, 0)
    total = jnp.sum(usable)
    shares = jnp.where(total > 0, usable / jnp.where(total > 0, total, 1), 1 / num_data)
    shares = (1 - UNIFORM_SHARE) * shares + UNIFORM_SHARE / num_data
    width = int(num_data**0.5) + 1
    num_blocks = -(-num_data // width)
    padded = jnp.zeros(num_blocks * width, shares.dtype).at[:num_data].set(shares)
    within = jnp.cumsum(padded.reshape(num_blocks, width), axis=1)
    blocks = jnp.cumsum(within[:, -1])
    return Shares(blocks / blocks[-1], within / within[:, -1:])


def draw_by_shares(rng_key: jax.Array, shares: Shares, batch_size: int) -> Rows:
    """Rows with replacement, with the probabilities that `shares` holds."""
    width = shares.within.shape[1]
    block_draw, row_draw = jax.random.uniform(
        rng_key, (2, batch_size), shares.blocks.dtype
    )
    block = jnp.searchsorted(shares.blocks, block_draw, side="right")
    # the first place in the block whose cumulative probability exceeds the draw
    low, high = jnp.zeros(batch_size, int), jnp.full(batch_size, width - 1)
    for _ in range(width.bit_length()):
        middle = (low + high) // 2
        beyond = shares.within[block, middle] > row_draw
        low, high = jnp.where(beyond, low, middle + 1), jnp.where(beyond, middle, high)
    below = jnp.where(block > 0, shares.blocks[block - 1], 0)
    before = jnp.where(high > 0, shares.within[block, high - 1], 0)
    probability = shares.blocks[block] - below
    probability *= shares.within[block, high] - before
    return Rows(block * width + high, 1 / (batch_size * probability))


def is_first(indices: jax.Array) -> jax.Array:
    """True where a number occurs for the first time, shape `(n,)`."""
    order = jnp.argsort(indices, stable=True)
    found = indices[order]
    first = jnp.concatenate([jnp.ones(1, bool), found[1:] != found[:-1]])
    return jnp.zeros(indices.shape, bool).at[order].set(first)
