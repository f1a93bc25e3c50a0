"""A chain of any kernel as the state that NumPyro's `MCMC` and ArviZ read."""

import jax
import jax.numpy as jnp

from nutfree.hosts import chain
from nutfree.hosts.chain import Algorithm
from nutfree.hosts.state import (
    NutfreeState,
    as_float,
    compensated_add,
    like_key,
    typed_key,
)
from nutfree.target import Target


def first_state(
    algorithm: Algorithm,
    target: Target,
    num_warmup: int,
    rng_key,
    start_key,
    pilot_key,
    position,
) -> NutfreeState:
    """Run the pilot, and return the state of one chain before its first transition."""
    del start_key
    position = jax.tree.map(as_float, position)
    pilot_key, init_key = jax.random.split(typed_key(pilot_key))
    begun = chain.begin(algorithm, target, pilot_key, init_key, position, num_warmup)
    info = jax.eval_shape(
        lambda: _kept(
            algorithm, chain.advance(algorithm, target, init_key, begun, 0)[1]
        )
    )
    info = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), info)
    energy, dtype = energy_of(begun.kernel_state), jnp.result_type(float)
    none = jnp.zeros((), dtype)
    return NutfreeState(
        i=begun.i,
        z=begun.kernel_state.position,
        potential_energy=energy,
        num_steps=none,
        num_grad_evals=none,
        num_density_evals=none,
        accept_prob=none,
        mean_accept_prob=none,
        diverging=jnp.asarray(False),
        total_grad_evals=jnp.asarray(begun.adapt_state.num_grad_evals, dtype),
        total_density_evals=jnp.asarray(begun.adapt_state.num_density_evals, dtype),
        lost_evals=jnp.zeros(2, dtype),
        kernel_state=begun.kernel_state,
        info=info,
        adapt_state=begun.adapt_state,
        rng_key=rng_key,
    )


def next_state(
    algorithm: Algorithm, target: Target, num_warmup: int, state: NutfreeState
) -> NutfreeState:
    """Make one transition of one chain; the first `num_warmup` tune the kernel."""
    next_key, step_key = jax.random.split(typed_key(state.rng_key))
    before = chain.Chain(state.i, state.kernel_state, state.adapt_state)
    after, info = chain.advance(algorithm, target, step_key, before, num_warmup)
    dtype = state.total_grad_evals.dtype
    grads = jnp.asarray(getattr(info, "num_grad_evals", 0.0), dtype)
    densities = jnp.asarray(getattr(info, "num_density_evals", 0.0), dtype)
    accept_prob = jnp.asarray(getattr(info, "acceptance_rate", jnp.nan), dtype)
    since = state.i - jnp.where(state.i < num_warmup, 0, num_warmup) + 1
    totals = jnp.stack([state.total_grad_evals, state.total_density_evals])
    totals, lost = compensated_add(
        totals, jnp.stack([grads, densities]), state.lost_evals
    )
    return NutfreeState(
        i=after.i,
        z=after.kernel_state.position,
        potential_energy=energy_of(after.kernel_state),
        num_steps=grads,
        num_grad_evals=grads,
        num_density_evals=densities,
        accept_prob=accept_prob,
        mean_accept_prob=state.mean_accept_prob
        + (accept_prob - state.mean_accept_prob) / since,
        diverging=jnp.asarray(getattr(info, "is_divergent", False)),
        total_grad_evals=totals[0],
        total_density_evals=totals[1],
        lost_evals=lost,
        kernel_state=after.kernel_state,
        info=_kept(algorithm, info),
        adapt_state=after.adapt_state,
        rng_key=like_key(next_key, state.rng_key),
    )


def _kept(algorithm: Algorithm, info):
    """Return what a state keeps of a transition's info."""
    names = algorithm.spec.only_for_warmup
    return info._replace(**{k: jnp.zeros(0) for k in names}) if names else info


def energy_of(kernel_state) -> jax.Array:
    """Return minus the log density; NaN where the kernel never evaluates it."""
    logdensity = getattr(kernel_state, "logdensity", jnp.nan)
    return -jnp.asarray(logdensity, jnp.result_type(logdensity))
