"""Which rows of the data a gradient is estimated from, and with what weights.

A batch is row numbers i_j and weights w_j with sum_j w_j f(i_j) an unbiased estimate
of the sum of f over all N rows. With n rows drawn uniformly w_j = N/n; with
replacement the estimate's variance is (N^2/n) var(f), without it (N - n)/(N - 1) of
that. Rows drawn with probabilities p_i have w_j = 1/(n p_i), and the least variance
where p_i is proportional to |f(i)| (Zhao and Zhang 2015; Putcha, Nemeth and Fearnhead,
arXiv 2206.13330).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.errors import InvalidOption, MissingCapability
from nutfree.target import Minibatch

SAMPLING = ("auto", "uniform", "importance")
#: Share of the draws that importance sampling makes uniformly, so that no weight is
#: more than about ten times the uniform one.
UNIFORM_SHARE = 0.1
#: Entries of the table of importance sampling, for each row on average.
ENTRIES = 4
#: Entries of the table of importance sampling, in all and at least.
MIN_ENTRIES = 4096
#: Up to this number of rows, distinct ones are the head of a permutation.
PERMUTED_ROWS = 4096
#: Rounds of the Feistel network.
ROUNDS = 6


class Rows(NamedTuple):
    """Row numbers and weights, both of shape `(n,)`."""

    indices: jax.Array
    weights: jax.Array


class Shares(NamedTuple):
    """Row numbers of which each is equally likely, and how often each row is there.

    A row's probability is a whole number of entries over all of them, so that its
    weight is known exactly, and a draw costs two look-ups.

    table
        Row numbers, `(M,)`, M a multiple of N.
    entries
        Of each row, `(N,)`, at least one.
    """

    table: jax.Array
    entries: jax.Array


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


def _entries_per_row(num_data: int) -> int:
    return max(ENTRIES, -(-MIN_ENTRIES // num_data))


def row_shares(importance: jax.Array) -> Shares:
    """Probabilities in proportion to `importance`, `(N,)`, nine parts in ten."""
    num_data = importance.shape[0]
    usable = jnp.where(jnp.isfinite(importance) & (importance > 0), importance, 0)
    total = jnp.sum(usable)
    shares = jnp.where(total > 0, usable / jnp.where(total > 0, total, 1), 1 / num_data)
    shares = (1 - UNIFORM_SHARE) * shares + UNIFORM_SHARE / num_data
    length = num_data * _entries_per_row(num_data)
    # one entry a row is set apart; a thousandth is what the sum's rounding may add
    further = jnp.maximum(length * shares - 1, 0)
    further *= 0.999 * (length - num_data) / jnp.sum(further)
    whole = further.astype(jnp.int32)
    left = length - num_data - jnp.sum(whole)
    # the others go to where the fractions' sum passes a whole number
    passed = jnp.cumsum(further - whole + 1e-3)
    passed = jnp.round(jax.lax.cummax(passed / passed[-1]) * left).astype(jnp.int32)
    passed = jnp.minimum(passed, left).at[-1].set(left)
    entries = 1 + whole + jnp.diff(passed, prepend=0)
    table = jnp.repeat(jnp.arange(num_data), entries, total_repeat_length=length)
    return Shares(table.astype(jnp.int32), entries.astype(jnp.int32))


def even_shares(num_data: int) -> Shares:
    """Every row equally often, in a table of the size that `row_shares` makes."""
    entries = _entries_per_row(num_data)
    table = jnp.tile(jnp.arange(num_data, dtype=jnp.int32), entries)
    return Shares(table, jnp.full(num_data, entries, jnp.int32))


def draw_by_shares(rng_key: jax.Array, shares: Shares, batch_size: int) -> Rows:
    """Rows with replacement, with the probabilities that `shares` holds."""
    length = shares.table.shape[0]
    entry = jax.random.randint(rng_key, (batch_size,), 0, length)
    indices = shares.table[entry]
    return Rows(indices, length / (batch_size * shares.entries[indices]))


def row_sampler(
    num_data: int, batch_size: int, replacement: bool = True
) -> Callable[[jax.Array, Any], Rows]:
    """`(rng_key, shares) -> Rows`, drawn evenly where `shares` is empty."""

    def draw(rng_key, shares):
        if isinstance(shares, Shares):
            return draw_by_shares(rng_key, shares, batch_size)
        return draw_rows(rng_key, num_data, batch_size, replacement)

    return draw


def is_first(indices: jax.Array) -> jax.Array:
    """True where a number occurs for the first time, shape `(n,)`."""
    order = jnp.argsort(indices, stable=True)
    found = indices[order]
    first = jnp.concatenate([jnp.ones(1, bool), found[1:] != found[:-1]])
    return jnp.zeros(indices.shape, bool).at[order].set(first)
