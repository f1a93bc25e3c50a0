"""The state of a kernel under NumPyro's `MCMC`; how its numbers and keys are made."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.target import Position
from nutfree.warmup import AdaptationState


class NutfreeState(NamedTuple):
    """State of a kernel under NumPyro's `MCMC`; names are those of `HMCState`.

    i
        Number of transitions made, warm-up included.
    z
        The draw, on the sampling space.
    potential_energy
        Minus its log density; NaN where the kernel never evaluates it.
    num_steps, num_grad_evals
        Full-data gradients spent on the last transition.
    num_density_evals
        Density evaluations without a gradient spent on the last transition.
    accept_prob, mean_accept_prob
        Acceptance probability of the last transition, and its mean since warm-up
        ended; NaN for a kernel that never rejects.
    diverging
        Whether the last transition met a value that is not finite.
    total_grad_evals, total_density_evals
        Spent so far, pilot and warm-up included.
    lost_evals
        What rounding has kept out of the two totals.
    kernel_state, info
        The kernel's own state and what its last transition reports.
    adapt_state
        What warm-up tunes; `adapt_state.params`, `adapt_state.step_size`.
    rng_key
        The key of the transitions to come.
    """

    i: jax.Array
    z: Position
    potential_energy: jax.Array
    num_steps: jax.Array
    num_grad_evals: jax.Array
    num_density_evals: jax.Array
    accept_prob: jax.Array
    mean_accept_prob: jax.Array
    diverging: jax.Array
    total_grad_evals: jax.Array
    total_density_evals: jax.Array
    lost_evals: jax.Array
    kernel_state: Any
    info: Any
    adapt_state: AdaptationState
    rng_key: jax.Array


#: Axes of `vmap` over chains: they share `i`, and nothing else.
_AXES: Any = {name: None if name == "i" else 0 for name in NutfreeState._fields}
ACROSS_CHAINS = NutfreeState(**_AXES)


def as_float(x):
    return jnp.asarray(x, jnp.result_type(x, float))


def strongly_typed(x):
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return jax.lax.convert_element_type(x, x.dtype)


def compensated_add(total, term, lost):
    """Return `total + term` and what rounding has lost (Kahan 1965)."""
    term = term + lost
    new = total + term
    return new, term - (new - total)


def typed_key(rng_key):
    """Return a typed key for a typed or a legacy one."""
    if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key):
        return rng_key
    return jax.random.wrap_key_data(rng_key)


def like_key(rng_key, like):
    """Return a typed key in the form of `like`, typed or legacy."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return rng_key
    return jax.random.key_data(rng_key)


def is_batch(rng_key) -> bool:
    typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    return jnp.ndim(rng_key) > (0 if typed else 1)


def split_key(rng_key, batched: bool):
    """Return three keys: of the chain, of its starting point, of its pilot."""
    split = partial(jax.random.split, num=3)
    if batched:
        return jnp.swapaxes(jax.vmap(split)(rng_key), 0, 1)
    return split(rng_key)
