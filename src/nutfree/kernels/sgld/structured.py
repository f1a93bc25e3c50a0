"""The self-averaged energy of structured SGMCMC, as a gradient estimator.

Reference: Alexos, Boyd and Mandt, ICML 2022, arXiv 2107.09028. With theta_1 ... theta_M
the groups of coordinates, the chain's energy is

    U_S(theta) = sum_i E[U(theta_i, past_-i)],

past_j drawn from earlier states of group j, each group by itself; with dropout, where
each group is current with probability rho and past otherwise, by masks r,

    U_S(theta) = (1/rho) E[U(r theta + (1 - r) past)].

On a Gaussian of precision P, U_S is that of P with its blocks between groups set to
zero; with dropout, multiplied by rho.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.minibatch.estimators import Estimator, estimator
from nutfree.numerics.laplace import Laplace, inverse
from nutfree.numerics.preconditioning import root

#: How many earlier states of the chain are kept.
NUM_PAST = 128


class Past(NamedTuple):
    """Earlier states, `(NUM_PAST, d)`; how many were kept so far; the groups, as rows
    of zeros and ones, `(M, d)`; and the data of the key that the next draw uses."""

    draws: jax.Array
    num_kept: jax.Array
    groups: jax.Array
    key_data: jax.Array


def group_of_coordinates(position) -> np.ndarray:
    """The number of each coordinate's group, `(d,)`: the sites of a model, which are
    the keys of a dict, or the leaves of any other pytree."""
    leaves = jax.tree_util.tree_leaves_with_path(position)
    keys = [str(path[:1] if isinstance(position, dict) else path) for path, _ in leaves]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    of_leaf = [np.full(np.size(leaf), numbers[k]) for k, (_, leaf) in zip(keys, leaves)]
    return np.concatenate(of_leaf)


def no_past(position, x: jax.Array) -> Past:
    """Nothing but the present."""
    numbers = group_of_coordinates(position)
    groups = jnp.asarray(np.arange(numbers.max() + 1)[:, None] == numbers, x.dtype)
    draws = jnp.broadcast_to(x, (NUM_PAST, x.size))
    key_data = jax.random.key_data(jax.random.key(0))
    return Past(draws, jnp.asarray(0), groups, key_data)


def remember(past: Past, x: jax.Array, rng_key: jax.Array) -> Past:
    """With x in place of the oldest state, and a fresh key."""
    draws = past.draws.at[past.num_kept % NUM_PAST].set(x)
    key_data = jax.random.key_data(rng_key)
    return Past(draws, past.num_kept + 1, past.groups, key_data)


def structured(name: str, dropout: float | None) -> Estimator:
    """The gradient of -U_S, from one draw of the past.

    Args:
        name: of the estimator for the log density itself, one without a memory.
        dropout: the probability 1 - rho that a group is past, or None for one gradient
            per group, of which the others are past.
    """
    base = estimator(name)

    def at_mixture(minibatch, rows, x, current, past, rng_key, control, count):
        """Gradient where groups with `current`, `(M,)`, are at x, and others past."""
        which = jax.random.randint(rng_key, current.shape, 0, NUM_PAST)
        which = past.groups.T.astype(int) @ which
        others = past.draws[which, jnp.arange(x.size)]
        mixed = jnp.where(past.groups.T @ current > 0, x, others)
        g, _, count = base.gradient(minibatch, rows, mixed, control, (), count)
        # `current` is zero where g is not the group's own
        return jnp.where(jnp.isfinite(g), (past.groups.T @ current) * g, g), count

    def estimate(minibatch, rows, x, control, memory, count):
        num_groups = memory.groups.shape[0]
        keys = jax.random.split(jax.random.wrap_key_data(memory.key_data))
        rng_key, key_data = keys[0], jax.random.key_data(keys[1])
        memory = memory._replace(key_data=key_data)
        if dropout is not None:
            mask_key, past_key = jax.random.split(rng_key)
            kept = jax.random.bernoulli(mask_key, 1 - dropout, (num_groups,))
            g, count = at_mixture(
                minibatch,
                rows,
                x,
                kept.astype(x.dtype),
                memory,
                past_key,
                control,
                count,
            )
            return g / (1 - dropout), memory, count

        def one(carry, group):
            total, count = carry
            current, key = group
            g, count = at_mixture(
                minibatch, rows, x, current, memory, key, control, count
            )
            return (total + g, count), None

        groups = (
            jnp.eye(num_groups, dtype=x.dtype),
            jax.random.split(rng_key, num_groups),
        )
        (g, count), _ = jax.lax.scan(one, (jnp.zeros_like(x), count), groups)
        return g, memory, count

    return base._replace(gradient=estimate)


def _precisions(mode: Laplace, position, dropout):
    """The posterior's precision at the mode, and that of U_S, both `(d, d)`."""
    numbers = group_of_coordinates(position)
    precision = inverse(mode.covariance)
    between = 0.0 if dropout is None else 1 - dropout
    same = numbers[:, None] == numbers
    return precision, jnp.where(same, 1.0, between) * precision


def structured_mode(mode: Laplace, position, dropout) -> Laplace:
    """With the covariance that U_S has there."""
    if mode.covariance.ndim == 1:
        return mode
    _, own = _precisions(mode, position, dropout)
    return mode._replace(covariance=inverse(own))


def structured_noise(mode: Laplace, position, noise, dropout) -> jax.Array:
    """The variance of the gradient of U_S, `(d,)`, where `noise` is that of batches.

    On the Gaussian at the mode: what the draw of the past adds, and what dropout does.
    """
    extra = jnp.zeros_like(noise)
    if mode.covariance.ndim == 2:
        precision, own = _precisions(mode, position, dropout)
        numbers = group_of_coordinates(position)
        apart = jnp.where(numbers[:, None] == numbers, 0.0, precision)
        covariance = inverse(own)
        factor = root(covariance)
        pushed = factor.T @ apart
        extra = jnp.sum((pushed @ covariance) * pushed, axis=1)
    if dropout is None:
        return noise + extra
    return (dropout * (1 + extra) + noise) / (1 - dropout) + dropout * extra
