"""A warm-up for kernels without an acceptance rate: the step size by its bias.

A pilot finds the posterior mode and the curvature there, of which the preconditioner is
made. The step is the longest one whose predicted inflation of posterior variances stays
under a stated one. For the overdamped step (`numerics.langevin.predicted_inflation`)

    (1 + hV/4)/(1 - hL/4) = 1 + max_inflation,

with V the variance of the gradient's noise and L the largest eigenvalue of the
preconditioned precision: exact on a Gaussian, for the direction that is worst. After a
divergent transition the step is halved.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.numerics.evaluation import flatten, is_finite
from nutfree.numerics.langevin import step_for_inflation
from nutfree.numerics.laplace import (
    DENSE_DIM,
    inverse,
    largest_curvature,
    maximise,
    positive,
    precision,
)
from nutfree.numerics.preconditioning import matvec, root
from nutfree.warmup.base import AdaptationState, Warmup


class Pilot(NamedTuple):
    """What a pilot has found, over flat vectors of d coordinates.

    start
        Where the chain begins, `(d,)`.
    covariance
        The preconditioner, of shape `(d, d)`, or `(d,)` for a diagonal one.
    curvature
        Largest eigenvalue of the precision in the coordinates that the covariance
        scales to one.
    noise
        Variance V of the gradient's noise in these coordinates, `(d,)` or `()`.
    params
        What else the kernel takes.
    """

    start: jax.Array
    covariance: jax.Array
    curvature: jax.Array
    noise: jax.Array
    params: dict[str, Any]


def overdamped_step(max_inflation, noise, curvature) -> dict[str, jax.Array]:
    """The longest overdamped step whose predicted inflation is `max_inflation`."""
    return {"step_size": step_for_inflation(max_inflation, noise, curvature)}


def warmup_by_bias(
    pilot: Callable[..., tuple[Pilot, Any]],
    max_inflation: float,
    tune: Callable[..., dict[str, Any]] = overdamped_step,
) -> Warmup:
    """The warm-up that runs a pilot, and tunes the step size to its predicted bias.

    The kernel's parameters are `step_size`, `inverse_mass_matrix`, `curvature`, and
    what the pilot and `tune` add.

    Args:
        pilot: `(rng_key, position, target, num_steps) -> (Pilot, gradients spent)`.
        max_inflation: the inflation of the worst coordinate, a fraction.
        tune: `(max_inflation, noise, curvature) -> params`, `step_size` among them.
    """

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        found, count = pilot(rng_key, position, target, num_steps)
        _, unravel = ravel_pytree(position)
        params = {
            "inverse_mass_matrix": found.covariance,
            "curvature": found.curvature,
            **found.params,
            **tune(max_inflation, jnp.max(found.noise), found.curvature),
        }
        return AdaptationState(params, unravel(found.start), num_grad_evals=count)

    def update(adapt_state, state, info) -> AdaptationState:
        del state
        step_size = adapt_state.params["step_size"]
        halved = jnp.where(info.is_divergent, 0.5 * step_size, step_size)
        return adapt_state._replace(params=adapt_state.params | {"step_size": halved})

    return Warmup(init, update, lambda adapt_state: adapt_state.params)


def pilot_at_mode(rng_key, position, target, num_steps, *, dense=None):
    """The pilot of a kernel with exact gradients of the whole log density.

    A chain begins at a draw from the Gaussian at the mode, or at the mode where the
    density is not finite there; without warm-up, where the user has put it.

    Args:
        dense: whether the preconditioner is a matrix; None for one up to
            `laplace.DENSE_DIM` coordinates.

    Returns:
        `(Pilot, gradients spent)`; `Pilot.params` has `factor`, the covariance's root.
    """
    x, logdensity, _ = flatten(position, target)
    mode_key, start_key = jax.random.split(rng_key)
    centre, _, count = maximise(logdensity, x, jnp.zeros((), x.dtype))
    covariance, curvature, count = preconditioner_at(
        mode_key, logdensity, centre, count, dense
    )
    factor = root(covariance)
    draw = jax.random.normal(start_key, x.shape, x.dtype)
    start = centre + matvec(factor, draw)
    good = is_finite(*jax.value_and_grad(logdensity)(start))
    start = jnp.where(good, start, centre)
    # without warm-up a chain goes on from where the user has put it
    start = start if num_steps else x
    no_noise = jnp.zeros((), x.dtype)
    return Pilot(start, covariance, curvature, no_noise, {"factor": factor}), count + 1


def preconditioner_at(
    rng_key: jax.Array, logdensity: Callable, x: jax.Array, count, dense: bool | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The covariance that the curvature at `x` gives, its quality L, and the count.

    L is exact where the precision is computed as a matrix, be the preconditioner that
    matrix or its diagonal; beyond `laplace.DENSE_DIM`, it is by power iteration.
    """
    key, top_key = jax.random.split(rng_key)
    dense_dim = x.size if dense else DENSE_DIM
    found, count = precision(key, logdensity, x, count, dense_dim=dense_dim)
    found = positive(found)
    if found.ndim == 2 and dense is False:
        scale = jnp.sqrt(jnp.diag(found))
        curvature = jnp.linalg.eigvalsh(found / jnp.outer(scale, scale))[-1]
        return scale**-2.0, curvature, count
    covariance = inverse(found)
    curvature, count = largest_curvature(top_key, logdensity, x, covariance, count)
    return covariance, curvature, count
