"""Independent draws of one chain, made side by side in lanes.

A chain whose transitions are independent draws runs in several lanes after warm-up:
lane k of L makes draws k, L + k, 2L + k, … States and draws have a leading axis of
chains times lanes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.hosts.state import NutfreeState, like_key, typed_key

#: Fields of a `NutfreeState` that count over a whole run.
TOTALS = ("total_grad_evals", "total_density_evals")


def in_lanes(state: NutfreeState, lanes: int) -> NutfreeState:
    """Every chain's state once a lane, each with random numbers of its own.

    The first lane keeps the totals, so that their sum stays what it was.
    """
    if lanes == 1:
        return state
    keys = jax.vmap(lambda key: jax.random.split(key, lanes))(
        typed_key(state.rng_key)
    ).reshape(-1)
    whole = jax.tree.map(lambda x: jnp.repeat(x, lanes, axis=0), state)
    first = jnp.arange(len(keys)) % lanes == 0
    counts = {name: jnp.where(first, getattr(whole, name), 0) for name in TOTALS}
    return whole._replace(rng_key=like_key(keys, state.rng_key), **counts)


def of_first_lane(state: NutfreeState, lanes: int) -> NutfreeState:
    """One state a chain: that of its first lane, with the totals of all."""
    if lanes == 1:
        return state
    counts = {name: getattr(state, name).reshape(-1, lanes).sum(1) for name in TOTALS}
    return jax.tree.map(lambda x: x[::lanes], state)._replace(**counts)


def in_order(draws: np.ndarray, lanes: int) -> np.ndarray:
    """Draws of shape `(chains, draws, ...)` from those of shape
    `(chains * lanes, draws / lanes, ...)`."""
    if lanes == 1:
        return draws
    draws = draws.reshape(-1, lanes, *draws.shape[1:])
    return draws.swapaxes(1, 2).reshape(len(draws), -1, *draws.shape[3:])
