"""Where a chain starts: Pathfinder, a Gaussian found on the way to a mode.

Reference: Zhang, Carpenter, Gelman and Vehtari, JMLR 23(306), 2022, arXiv 2108.03782.
L-BFGS climbs from the host's position; at every point on the way its curvature makes
a Gaussian, and the one of largest evidence bound is kept, so that a climb that goes on
into the neck of a funnel does not start the chain there. BlackJAX's algebra; the loop
is ours, since BlackJAX's does not count its evaluations (and steps from the points
along the negative gradient).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.optimizers.lbfgs import (
    bfgs_sample,
    lbfgs_inverse_hessian_factors,
    lbfgs_recover_alpha,
)

from nutfree.adaptation.mode import climb
from nutfree.dynamics.evaluation import is_finite, select

#: Steps that the curvature is made of, draws that a bound is made of.
HISTORY = 10
NUM_DRAWS = 8
#: A climb ends after so many steps, or when so many in a row have gained nothing: in
#: a narrow valley it is long before it gains again.
MAX_STEPS = 100
PATIENCE = 15
#: By how much a bound must be larger to count: two that differ by rounding alone are
#: the same Gaussian, and the choice must not depend on how a program is compiled.
MARGIN = 0.1


class Start(NamedTuple):
    """A draw of the best Gaussian, its covariance, and its evidence bound.

    The covariance has shape `(d, d)`, or `(d,)` where only variances are wanted. The
    bound is -inf where no Gaussian was found; then the draw is the point that the
    climb started from, and the covariance the identity.
    """

    x: jax.Array
    covariance: jax.Array
    bound: jax.Array


class _Seen(NamedTuple):
    best: Start
    alpha: jax.Array
    steps: jax.Array
    turns: jax.Array
    key: jax.Array


def pathfinder(
    rng_key: jax.Array,
    logdensity: Callable,
    x: jax.Array,
    *,
    dense: bool = False,
    differences: bool = False,
) -> tuple[Start, tuple[jax.Array, jax.Array]]:
    """Find a start and a metric from the point `x` of shape `(d,)`.

    Args:
        dense: whether the covariance is a matrix.
        differences: take gradients from differences of the log density, which then
            needs no derivative and is evaluated 2d + 1 times for each.

    Returns:
        `(start, (gradients, densities))`, the latter the evaluations spent.
    """
    zero = jnp.zeros((), x.dtype)
    slope = differenced(logdensity) if differences else logdensity
    cost = 2 * x.size + 1 if differences else 1
    covariance = jnp.eye(x.size, dtype=x.dtype) if dense else jnp.ones_like(x)
    nowhere = Start(x, covariance, jnp.asarray(-jnp.inf, x.dtype))
    window = jnp.zeros((HISTORY, x.size), x.dtype)
    seen = _Seen(nowhere, jnp.ones_like(x), window, window, rng_key)

    def visit(carry, old, new, count):
        seen, num_densities = carry
        step, turn = new[0] - old[0], old[1] - new[1]
        alpha, curved = lbfgs_recover_alpha(seen.alpha, step, turn)
        curved = jnp.all(curved)
        steps, turns = select(
            curved,
            (_appended(seen.steps, step), _appended(seen.turns, turn)),
            (seen.steps, seen.turns),
        )
        beta, gamma = lbfgs_inverse_hessian_factors(steps.T, turns.T, alpha)
        key, draw_key, choice_key = jax.random.split(seen.key, 3)
        draws, log_q = bfgs_sample(draw_key, NUM_DRAWS, *new, alpha, beta, gamma)
        log_p = jax.vmap(logdensity)(draws)
        num_densities = num_densities + NUM_DRAWS
        log_ratio = jnp.where(jnp.isfinite(log_p), log_p - log_q, -jnp.inf)
        chosen = jax.random.categorical(choice_key, log_ratio)
        diagonal = alpha + jnp.sum((beta @ gamma) * beta, axis=1)
        covariance, usable = diagonal, jnp.all(diagonal > 0)
        if dense:
            covariance = jnp.diag(alpha) + beta @ gamma @ beta.T
            covariance = 0.5 * (covariance + covariance.T)
            usable = is_finite(jnp.linalg.cholesky(covariance))
        found = Start(draws[chosen], covariance, jnp.mean(log_ratio))
        better = is_finite(found) & usable
        better &= found.bound > seen.best.bound + MARGIN
        best = select(better, found, seen.best)
        return (_Seen(best, alpha, steps, turns, key), num_densities), count

    _, _, count, (seen, num_densities) = climb(
        slope,
        x,
        zero,
        visit,
        (seen, zero),
        max_steps=MAX_STEPS,
        tolerance=1e-2,
        patience=PATIENCE,
        cost=cost,
    )
    if differences:
        return seen.best, (zero, count + num_densities)
    return seen.best, (count, num_densities)


def differenced(logdensity: Callable) -> Callable:
    """`logdensity` with central differences for its gradient."""

    @jax.custom_vjp
    def value(x):
        return logdensity(x)

    def forward(x):
        size = jnp.finfo(x.dtype).eps ** (1 / 3) * jnp.maximum(1.0, jnp.abs(x))
        shifts = jnp.diag(size)
        ahead, behind = (
            jax.vmap(logdensity)(x + shifts),
            jax.vmap(logdensity)(x - shifts),
        )
        return logdensity(x), (ahead - behind) / (2 * size)

    def backward(gradient, cotangent):
        return (cotangent * gradient,)

    value.defvjp(forward, backward)
    return value


def _appended(window: jax.Array, row: jax.Array) -> jax.Array:
    return jnp.concatenate([window[1:], row[None]])
