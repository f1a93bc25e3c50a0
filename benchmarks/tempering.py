"""Parallel tempering of Hamiltonian Monte Carlo, a peer for the multimodal targets.

A plain one, made for the comparison: replicas of prior^(1 - b) posterior^b on a
geometric ladder of b and one at b = 0, whose draws are fresh ones of the prior; a
trajectory of five leapfrog steps each, whose step size is tuned for each replica in
warm-up; neighbours swap, even and odd pairs in turn. Reference: Geyer 1991; Syed,
Bouchard-Cote, Deligiannidis and Doucet, JRSS-B 84(2), 2022, for the alternation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import nutfree as nf

NUM_STEPS = 5
ACCEPTANCE = 0.8


class Run(NamedTuple):
    """Draws by site, `(chains, draws, ...)`, and gradients over all chains."""

    draws: dict[str, np.ndarray]
    gradients: int
    swap_rates: np.ndarray


def ladder(coldest_spread: float, dim: int) -> np.ndarray:
    """Inverse temperatures from 1 down to where a mode is as wide as the prior, and 0.

    Neighbours of a Gaussian swap about every second time when they are a factor of
    1 + 1.5 / sqrt(d) apart.
    """
    smallest = min(coldest_spread**2, 0.5)
    count = int(np.ceil(-np.log(smallest) / np.log1p(1.5 / np.sqrt(dim)))) + 1
    return np.append(np.geomspace(1.0, smallest, count), 0.0)


def parallel_tempering(
    target: nf.Target,
    inverse_temperatures: np.ndarray,
    *,
    num_warmup: int,
    num_samples: int,
    thinning: int = 1,
    num_chains: int = 4,
    seed: int = 0,
) -> Run:
    """Run it on a posterior with a prior; see the module."""
    b = jnp.asarray(inverse_temperatures)
    _, unravel = ravel_pytree(target.position)
    levels = jnp.arange(len(b))

    def parts(x):
        prior = target.prior.logdensity(unravel(x))
        value = target(unravel(x)) - prior
        return prior, jnp.where(jnp.isfinite(value), value, -1e30)

    def fresh(key):
        return ravel_pytree(target.prior.sample(key))[0]

    def trajectory(key, x, b, step_size):
        def density(x):
            prior, value = parts(x)
            return prior + b * value

        gradient = jax.grad(density)
        kick_key, accept_key = jax.random.split(key)
        p = jax.random.normal(kick_key, x.shape, x.dtype)

        def leap(_, carry):
            y, q, g = carry
            q = q + 0.5 * step_size * g
            y = y + step_size * q
            g = gradient(y)
            return y, q + 0.5 * step_size * g, g

        y, q, _ = jax.lax.fori_loop(0, NUM_STEPS, leap, (x, p, gradient(x)))
        change = density(y) - density(x) - 0.5 * (q @ q - p @ p)
        rate = jnp.nan_to_num(jnp.exp(jnp.minimum(change, 0.0)))
        return jnp.where(jax.random.uniform(accept_key) < rate, y, x), rate

    def step(carry, i):
        key, x, log_step = carry
        key, move_key, prior_key, swap_key = jax.random.split(key, 4)
        x, rate = jax.vmap(trajectory)(
            jax.random.split(move_key, len(b)), x, b, jnp.exp(log_step)
        )
        x = x.at[-1].set(fresh(prior_key))
        gain = 2.0 / jnp.sqrt(i + 4.0)
        log_step = log_step + jnp.where(i < num_warmup, gain, 0.0) * (rate - ACCEPTANCE)
        value = jax.vmap(lambda x: parts(x)[1])(x)
        change = (b[:-1] - b[1:]) * (value[1:] - value[:-1])
        turn = levels[:-1] % 2 == i % 2
        accepted = jnp.log(jax.random.uniform(swap_key, change.shape)) < change
        up = jnp.append(turn & accepted, False)
        down = jnp.append(False, (turn & accepted))
        x = x[jnp.where(up, levels + 1, jnp.where(down, levels - 1, levels))]
        swapped = jnp.where(turn, jnp.exp(jnp.minimum(change, 0.0)), 0.0)
        return (key, x, log_step), (x[0], swapped)

    @jax.jit
    @jax.vmap
    def chain(key):
        key, start_key = jax.random.split(key)
        x = jax.vmap(fresh)(jax.random.split(start_key, len(b)))
        log_step = jnp.log(0.1) - 0.5 * jnp.log(jnp.maximum(b, b[-2]))
        carry = (key, x, log_step)
        carry, _ = jax.lax.scan(step, carry, jnp.arange(num_warmup))

        def thinned(carry, i):
            carry, (x, swapped) = jax.lax.scan(
                step, carry, num_warmup + thinning * i + jnp.arange(thinning)
            )
            return carry, (x[-1], swapped.mean(0))

        return jax.lax.scan(thinned, carry, jnp.arange(num_samples))[1]

    x, swapped = chain(jax.random.split(jax.random.key(seed), num_chains))
    draws: dict[str, Any] = jax.vmap(jax.vmap(lambda x: target.constrain(unravel(x))))(
        x
    )
    # with the gradient at its start, and none for the draws of the prior
    each = (NUM_STEPS + 1) * (len(b) - 1)
    return Run(
        {site: np.asarray(value) for site, value in draws.items()},
        num_chains * each * (num_warmup + thinning * num_samples),
        2 * np.asarray(swapped).mean((0, 1)),
    )
