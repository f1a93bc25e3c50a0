"""Shifts from one mode to another, for jumps that keep a point's place in its mode.

Where modes are as many as there are combinations of a few wells, most are unknown. A
difference of two known modes then leads from an unknown one to another, and the
differences are sums of a few steps, each from one well to the next.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.modes.mixture import Modes, crowded

#: Shifts that are kept of each kind, the shortest.
NUM_SHIFTS = 256
#: Length of a difference, in those of the longer vector, below which two are the same.
SAME = 0.1
#: A vector is replaced by a sum or difference of less than this share of its length.
SHORTER = 0.95
#: The most times that each vector is shortened.
MAX_SWEEPS = 32


class Shifts(NamedTuple):
    """Shifts from one mode to another.

    vectors : (2, shifts, d), the shortest differences of two centres, and what those
        are sums of.
    number : (2,), how many rows of each are in use.
    """

    vectors: jax.Array
    number: jax.Array


def shifts_between(modes: Modes) -> Shifts:
    """Collect at most `NUM_SHIFTS` shifts, of each pair of modes in one direction.

    Those of the second kind are only there for modes that are too many to be known.
    """
    center = modes.center
    if len(center) == 1:
        return Shifts(jnp.zeros((2, *center.shape), center.dtype), jnp.zeros(2, int))
    first, second = jnp.triu_indices(len(center), k=1)
    live = jnp.isfinite(modes.log_weight)
    squares = jnp.sum(center**2, axis=-1)
    squares = squares[:, None] + squares - 2.0 * center @ center.T
    squares = jnp.where(live[:, None] & live, squares, jnp.inf)[first, second]
    shortest = jnp.argsort(squares)[:NUM_SHIFTS]
    live = jnp.isfinite(squares[shortest])
    differences = center[second[shortest]] - center[first[shortest]]
    differences = jnp.where(live[:, None], differences, 0.0)
    # every difference is one of two that are from the first mode
    pool = jnp.concatenate([differences, jnp.nan_to_num(center[1:] - center[0])])
    known = jnp.concatenate([live, jnp.isfinite(modes.log_weight[1:])])
    steps, left = summands(pool, known & crowded(modes))
    rows = len(differences)
    number = jnp.stack([jnp.sum(live), jnp.minimum(jnp.sum(left), rows)])
    return Shifts(jnp.stack([differences, steps[:rows]]), number)


def summands(vectors: jax.Array, live: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find short vectors of which all the live ones are sums and differences.

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
        square, products = squares[i], vectors @ v
        others = live & (jnp.arange(number) != i)
        new = jnp.where(others, square + squares - 2 * jnp.abs(products), jnp.inf)
        j = jnp.argmin(new)
        better = live[i] & (new[j] < SHORTER**2 * square)
        same = better & (new[j] < SAME**2 * squares[j])
        sign = jnp.where(products[j] > 0, -1.0, 1.0)
        vectors = vectors.at[i].add(jnp.where(better, sign * vectors[j], 0.0))
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
