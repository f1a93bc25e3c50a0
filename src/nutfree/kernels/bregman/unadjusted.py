"""Several steps of an unadjusted Langevin kernel in one transition."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.langevin import steps_lasting

#: Most steps of one transition whose number the kernel chooses by itself.
MAX_STEPS = 500
#: The same while warm-up tunes, whose draws may be correlated.
MAX_TUNING_STEPS = 10


class UnadjustedInfo(NamedTuple):
    """The mean acceptance rate that the steps would have had, and costs.

    The distance of the rate from one measures the error of the step. A step to where
    the log density or its gradient is not finite is not taken, and is divergent.
    `predicted_inflation` is the relative error of variances, on average over the
    coordinates, see `predicted`; NaN where none is predicted.
    """

    acceptance_rate: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array
    num_steps: jax.Array
    predicted_inflation: jax.Array


def transition_length(step_size, num_steps, relaxation) -> jax.Array:
    """`num_steps`, or where it is 0 as many as forget 86 % of the slowest direction.

    Args:
        step_size: gamma.
        num_steps: asked for.
        relaxation: the largest variance in the coordinates that the noise is standard
            in, which is the time to forget 63 %.
    """
    enough = steps_lasting(2 * relaxation, step_size, MAX_STEPS)
    num_steps = jnp.asarray(num_steps, int)
    return jnp.where(num_steps > 0, num_steps, enough)


def gradients(options, params, target) -> jax.Array:
    """The steps of a transition."""
    del options, target
    return transition_length(
        params["step_size"], params["num_steps"], params["relaxation"]
    )


def transition(
    rng_key, state: Any, length, adjusted, propose: Callable, inflation
) -> tuple[Any, UnadjustedInfo]:
    """Make `length` steps from `state`.

    Args:
        length: number of steps, a traced integer.
        adjusted: a traced bool, whether steps are accepted with their rate, and the
            transition is short, as in warm-up.
        propose: `(rng_key, state, count) -> (state, log Metropolis ratio, count)`.
        inflation: that is predicted.
    """
    length = jnp.where(adjusted, jnp.minimum(length, MAX_TUNING_STEPS), length)

    def step(i, carry):
        state, rates, divergent, count = carry
        noise_key, accept_key = jax.random.split(jax.random.fold_in(rng_key, i))
        moved, log_ratio, count = propose(noise_key, state, count)
        finite = is_finite(moved)
        log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
        rate = jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
        taken = jax.random.uniform(accept_key) < rate
        taken = finite & (taken | jnp.logical_not(adjusted))
        return select(taken, moved, state), rates + rate, divergent | ~finite, count

    dtype = jnp.result_type(float)
    start = (state, jnp.zeros((), dtype), jnp.asarray(False), jnp.asarray(0))
    state, rates, divergent, count = jax.lax.fori_loop(
        0, length, lambda i, carry: _typed_like(carry, step(i, carry)), start
    )
    return state, UnadjustedInfo(rates / length, divergent, count, length, inflation)


def _typed_like(old, new):
    """`new` with the array types of `old`, so that it can be a loop's carry."""
    return jax.tree.map(lambda o, n: jnp.asarray(n, jnp.asarray(o).dtype), old, new)
