"""An ensemble on its way from the reference to the posterior, one step at a time.

Steps 0 to `last` are the path in the coordinates of the reference: Euler-Maruyama steps
of the Föllmer process, and at `last` the draw of its end. The steps after it are
Metropolis steps on the posterior, whose proposals are differences of another ensemble
(differential evolution, ter Braak, Statistics and Computing 16, 2006).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.ensemble.drift import (
    Weights,
    draw_nodes,
    ensemble_weights,
    follmer_step,
    jump,
)
from nutfree.kernels.ensemble.reference import log_ratio
from nutfree.numerics.evaluation import select

#: Probability that differential evolution takes a whole difference, which leads from
#: mode to mode.
WHOLE_STEP_PROBABILITY = 0.1
#: Noise of a proposal, relative to the standard deviations of the ensemble.
PROPOSAL_NOISE = 1e-3


class Ensemble(NamedTuple):
    """Particles `(N, d)`, their log densities `(N,)`, and the smallest effective share
    of the weights on their path."""

    particles: jax.Array
    logdensity: jax.Array
    weight_ess: jax.Array


class Advanced(NamedTuple):
    """An ensemble after one more step, the effective share of the weights of that step,
    log f at its nodes, and its density evaluations."""

    ensemble: Ensemble
    weight_ess: jax.Array
    log_ratio: jax.Array
    num_density_evals: jax.Array


def no_ensemble(num_particles: int, x: jax.Array) -> Ensemble:
    """N particles at the origin of the reference, where every path begins."""
    particles = jnp.zeros((num_particles, x.size), x.dtype)
    return Ensemble(particles, jnp.zeros(num_particles, x.dtype), jnp.ones((), x.dtype))


def advance(
    rng_key,
    logdensity: Callable,
    ensemble: Ensemble,
    directions: jax.Array,
    step,
    last,
    *,
    center,
    scale,
    end_time,
) -> Advanced:
    """Make one step with all particles, N density evaluations.

    Args:
        logdensity: `x -> log density`, x of shape `(d,)`.
        ensemble: on its way.
        directions: `(N, d)`, the ensemble whose differences are proposed.
        step: which step.
        last: the last step of the path.
        center, scale: of the reference.
        end_time: where the path ends.
    """
    node_key, noise_key, jump_key, move_key, accept_key = jax.random.split(rng_key, 5)
    y = ensemble.particles
    on_path = step <= last
    t = (jnp.minimum(step / last, 1.0) * end_time).astype(y.dtype)
    nodes = draw_nodes(node_key, y, t)
    proposals = _differential_evolution(move_key, y, directions)
    points = jnp.where(on_path, center + nodes @ scale.T, proposals)
    values = jax.vmap(logdensity)(points).astype(y.dtype)
    values = jnp.where(jnp.isfinite(values), values, -jnp.inf)

    ratio = log_ratio(values, nodes)
    weights = ensemble_weights(y, nodes, ratio, t)
    mean = weights.values @ nodes
    moved = follmer_step(noise_key, y, mean, t, end_time / last)
    walking = ensemble._replace(particles=moved)
    arrived = _arrive(jump_key, ensemble, weights, points, values)
    refreshed = _metropolis(accept_key, ensemble, points, values)
    new = select(step == last, arrived, select(on_path, walking, refreshed))
    worst = jnp.minimum(ensemble.weight_ess, weights.ess)
    new = new._replace(weight_ess=jnp.where(on_path, worst, ensemble.weight_ess))
    return Advanced(new, weights.ess, ratio, jnp.asarray(len(y)))


def _arrive(rng_key, ensemble, weights: Weights, points, values) -> Ensemble:
    """Each particle at one of the `points`, drawn by its weights."""
    chosen = jump(rng_key, weights)
    return ensemble._replace(particles=points[chosen], logdensity=values[chosen])


def _metropolis(rng_key, ensemble: Ensemble, points, values) -> Ensemble:
    """Each particle at its proposal among the `points`, or where it was."""
    uniform = jax.random.uniform(rng_key, values.shape, values.dtype)
    accepted = jnp.log(uniform) < values - ensemble.logdensity
    return ensemble._replace(
        particles=jnp.where(accepted[:, None], points, ensemble.particles),
        logdensity=jnp.where(accepted, values, ensemble.logdensity),
    )


def _differential_evolution(rng_key, x, directions) -> jax.Array:
    """x_i + g (a - b), a and b members of an ensemble that is no part of `x`."""
    n, d = x.shape
    first_key, second_key, whole_key, noise_key = jax.random.split(rng_key, 4)
    a = directions[jax.random.randint(first_key, (n,), 0, n)]
    b = directions[jax.random.randint(second_key, (n,), 0, n)]
    whole = jax.random.bernoulli(whole_key, WHOLE_STEP_PROBABILITY, (n, 1))
    size = jnp.where(whole, 1.0, 2.38 / jnp.sqrt(2 * d)).astype(x.dtype)
    noise = PROPOSAL_NOISE * jnp.std(directions, axis=0)
    return x + size * (a - b) + noise * jax.random.normal(noise_key, x.shape, x.dtype)
