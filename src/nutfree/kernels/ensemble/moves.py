"""Proposals from a frozen archive of points, and an ensemble that makes one.

- Differential evolution, ter Braak, Statistics and Computing 16, 2006:
  x' = x + g (a - b) + noise, a and b of the archive; accepted on the ratio of pi.
- The snooker update, ter Braak and Vrugt, Statistics and Computing 18, 2008:
  x' = x + g e (e'(a - b)) along the line e from z to x, z of the archive; accepted on
  the ratio of pi times (|x' - z| / |x - z|)^(d - 1).
- A walk by the shape of the mixture where it is: x' = x + g L_k xi, k drawn with the
  share r_k(x) of component k in q(x); accepted on the ratio of pi times that of
  sum_k r_k(.) N(x' - x; 0, g^2 C_k). It follows a curved ridge, where differences of
  the whole ensemble lead off it.

While the archive and the mixture stay as they are, all leave pi invariant.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.ensemble.student import StudentMixture, components

#: Probability of a whole difference, which leads from mode to mode, and of a snooker.
WHOLE_PROBABILITY, SNOOKER_PROBABILITY = 0.1, 0.1
#: Noise of differential evolution, relative to the archive's standard deviations.
NOISE = 1e-3
#: Acceptance rate that the size of the differences follows.
TARGET_ACCEPTANCE = 0.25


class Proposal(NamedTuple):
    """Where to go, the logarithm of the Jacobian's part of the acceptance ratio, and
    whether `step_size` had a say in it."""

    x: jax.Array
    log_jacobian: jax.Array
    is_scaled: jax.Array


def propose(rng_key, x, archive, step_size) -> Proposal:
    """Propose by differential evolution or by a snooker update.

    Args:
        rng_key: a key.
        x: `(d,)`.
        archive: `(M, d)`, no part of which depends on `x`.
        step_size: size of a difference, in units of 2.38 / sqrt(2 d).
    """
    pick_key, kind_key, noise_key, length_key = jax.random.split(rng_key, 4)
    d = x.size
    i = jax.random.randint(pick_key, (3,), 0, len(archive))
    a, b, z = archive[i[0]], archive[i[1]], archive[i[2]]
    kind = jax.random.uniform(kind_key, (), x.dtype)
    snooker = kind < SNOOKER_PROBABILITY
    whole = kind > 1 - WHOLE_PROBABILITY
    size = jnp.where(whole, 1.0, step_size * 2.38 / (2 * d) ** 0.5)
    noise = NOISE * jnp.std(archive, axis=0) * jax.random.normal(noise_key, (d,))
    evolved = x + size * (a - b) + noise
    along = x - z
    distance = jnp.sqrt(jnp.sum(along**2))
    direction = along / distance
    length = jax.random.uniform(length_key, (), x.dtype, 1.2, 2.2)
    snooked = x + length * jnp.dot(direction, a - b) * direction
    stretch = jnp.log(jnp.sqrt(jnp.sum((snooked - z) ** 2)) / distance)
    return Proposal(
        jnp.where(snooker, snooked, evolved).astype(x.dtype),
        jnp.where(snooker, (d - 1) * stretch, 0.0).astype(x.dtype),
        ~(snooker | whole),
    )


def propose_within(rng_key, x, mixture: StudentMixture) -> Proposal:
    """Propose a walk by the shape that the mixture has at `x`, `(d,)`."""
    which_key, noise_key = jax.random.split(rng_key)
    size = 2.38 / x.size**0.5
    here, _ = components(mixture, x[None])
    k = jax.random.categorical(which_key, here[:, 0])
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    move = size * mixture.root[k] @ noise
    there, _ = components(mixture, (x + move)[None])
    squares = jnp.sum((mixture.whitening @ move) ** 2, axis=-1) / size**2
    toward = -0.5 * squares - mixture.log_det
    back, forth = (jax.nn.log_softmax(at[:, 0]) + toward for at in (there, here))
    log_jacobian = jax.nn.logsumexp(back) - jax.nn.logsumexp(forth)
    return Proposal(x + move, log_jacobian.astype(x.dtype), jnp.asarray(False))


class Ensemble(NamedTuple):
    """Particles `(N, d)` and `(N,)` log densities, N even, and the step size."""

    particles: jax.Array
    logdensity: jax.Array
    step_size: jax.Array
    num_density_evals: jax.Array


def sweep(rng_key, logdensity: Callable, ensemble: Ensemble) -> Ensemble:
    """Move either half by differences of the other; leaves pi^N invariant but for the
    step size, which follows the acceptance rate."""
    half = len(ensemble.particles) // 2

    def move(key, particles, values, others):
        propose_key, accept_key = jax.random.split(key)
        keys = jax.random.split(propose_key, half)
        proposal = jax.vmap(propose, (0, 0, None, None))(
            keys, particles, others, ensemble.step_size
        )
        new = jax.vmap(logdensity)(proposal.x).astype(values.dtype)
        log_ratio = new - values + proposal.log_jacobian
        # a particle at zero density takes whatever is above
        log_ratio = jnp.where(jnp.isneginf(values), jnp.inf, log_ratio)
        usable = jnp.isfinite(new) & ~jnp.isnan(log_ratio)
        rate = jnp.where(usable, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
        accepted = jax.random.uniform(accept_key, (half,)) < rate
        scaled = jnp.sum(jnp.where(proposal.is_scaled, rate, 0.0))
        return (
            jnp.where(accepted[:, None], proposal.x, particles),
            jnp.where(accepted, new, values),
            scaled / jnp.maximum(jnp.sum(proposal.is_scaled), 1),
        )

    def turn(i, carry):
        x, values, rate = carry
        key = jax.random.fold_in(rng_key, i)
        moved, new, found = move(key, x[:half], values[:half], x[half:])
        # the other half is next
        x = jnp.concatenate([x[half:], moved])
        return x, jnp.concatenate([values[half:], new]), rate + found / 2

    # a loop, not two calls: the density is compiled once
    x, values, rate = jax.lax.fori_loop(
        0, 2, turn, (*ensemble[:2], jnp.zeros((), ensemble.step_size.dtype))
    )
    return Ensemble(
        x,
        values,
        follow(ensemble.step_size, rate, 0.1),
        ensemble.num_density_evals + 2 * half,
    )


def follow(step_size, rate, gain):
    """The step size after an acceptance rate; Robbins and Monro on its logarithm."""
    log_size = jnp.log(step_size) + gain * (rate - TARGET_ACCEPTANCE)
    return jnp.exp(jnp.clip(log_size, -4.0, 1.0)).astype(step_size.dtype)
