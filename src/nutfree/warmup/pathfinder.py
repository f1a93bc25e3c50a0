"""Pathfinder: a chain starts from a Gaussian found on the way to a mode.

Reference: Zhang, Carpenter, Gelman and Vehtari, JMLR 23(306), 2022, arXiv 2108.03782.

L-BFGS climbs from the host's position. At every point on the way its estimate H of the
inverse Hessian makes a Gaussian, N(x + H grad log pi(x), H), and the one of largest
evidence bound is kept, so that a climb that goes on into the neck of a funnel does not
start the chain there.

The loop is not BlackJAX's, which does not count its evaluations (and steps from the
points along the negative gradient). Nor is the Gaussian: BlackJAX's compact form (an
inverse, a QR and a Cholesky factor) takes half of the time to compile a chain's first
state.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.optimizers.lbfgs import lbfgs_recover_alpha

from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.laplace import climb

#: Last steps of the climb that the curvature is made of.
HISTORY = 10
#: Draws that an evidence bound is a mean over.
NUM_DRAWS = 8
#: Most steps of the climb.
MAX_STEPS = 100
#: Steps in a row without gain that end the climb; a narrow valley takes many.
PATIENCE = 15
#: Nats by which a bound must be larger than the best so far. Bounds that differ by
#: rounding are of one Gaussian, and the choice must not depend on the compiler.
MARGIN = 0.1


class Start(NamedTuple):
    """The best Gaussian: a draw of it, its covariance, and its evidence bound.

    The covariance has shape `(d, d)`, or `(d,)` where only variances are wanted. The
    bound is -inf where no Gaussian was found; then the draw is the point that the
    climb started from, and the covariance the identity.
    """

    x: jax.Array
    covariance: jax.Array
    bound: jax.Array


class _Seen(NamedTuple):
    """What the climb has shown: the best start, and the arguments of `gaussian`."""

    best: Start
    alpha: jax.Array
    steps: jax.Array
    turns: jax.Array


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
    seen = _Seen(nowhere, jnp.ones_like(x), window, window)
    visit = _visitor(rng_key, logdensity, x, dense)
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
    best = seen.best
    if dense:
        # rounding can make a small eigenvalue negative
        best = best._replace(covariance=_definite(best.covariance))
    if differences:
        return best, (zero, count + num_densities)
    return best, (count, num_densities)


def _visitor(rng_key, logdensity: Callable, x: jax.Array, dense: bool) -> Callable:
    """Return the `visit` of `climb` that keeps the best Gaussian seen so far."""
    # the same noise at every point: bounds then differ by their Gaussians alone
    noise_key, choice_key = jax.random.split(rng_key)
    noise = jax.random.normal(noise_key, (NUM_DRAWS, x.size), x.dtype)
    gumbel = jax.random.gumbel(choice_key, (NUM_DRAWS,), x.dtype)

    def visit(carry, old, new, count):
        seen, num_densities = carry
        step, turn = new[0] - old[0], old[1] - new[1]
        alpha, curved = lbfgs_recover_alpha(seen.alpha, step, turn)
        steps, turns = select(
            jnp.all(curved),
            (_appended(seen.steps, step), _appended(seen.turns, turn)),
            (seen.steps, seen.turns),
        )
        draws, log_q, covariance = gaussian(
            noise, *new, alpha, steps, turns, dense=dense
        )
        log_p = jax.vmap(logdensity)(draws)
        log_ratio = jnp.where(jnp.isfinite(log_p), log_p - log_q, -jnp.inf)
        chosen = jnp.argmax(log_ratio + gumbel)
        variances = jnp.diag(covariance) if dense else covariance
        found = Start(draws[chosen], covariance, jnp.mean(log_ratio))
        better = is_finite(found) & jnp.all(variances > 0)
        better &= found.bound > seen.best.bound + MARGIN
        best = select(better, found, seen.best)
        return (_Seen(best, alpha, steps, turns), num_densities + NUM_DRAWS), count

    return visit


def gaussian(
    noise: jax.Array,
    x: jax.Array,
    gradient: jax.Array,
    alpha: jax.Array,
    steps: jax.Array,
    turns: jax.Array,
    *,
    dense: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Make the Gaussian of a quasi-Newton step from `x`, by rank-two updates.

    Its covariance H is the BFGS inverse Hessian of the window, its mean `x + H g`. A
    factor J of H is carried along by its products with the noise (Brodlie, Gourlay and
    Greenstadt 1973): `J <- (I - p q') J` with `p = s / s'y`, `q = y - sqrt(s'y / s'Bs)
    Bs`, B the inverse of H.

    Args:
        noise: standard normal, shape `(n, d)`.
        gradient: of the log density at x, shape `(d,)`.
        alpha: what the updates start from, variances of shape `(d,)`.
        steps: between points, shape `(m, d)`, the oldest first; rows of zeros count
            for nothing.
        turns: by how much the gradient fell along each, shape `(m, d)`.

    Returns:
        `(draws, log_q, covariance)` of shapes `(n, d)`, `(n,)` and `(d,)`, or
        `(d, d)` where `dense`.
    """
    targets = jnp.concatenate([turns, gradient[None]])
    outer = jnp.outer if dense else jnp.multiply

    def update(carry, i):
        # rows: J z for every noise, B s for every step, H y for every turn and g
        factor, precise, moved, covariance, log_det = carry
        s, y, bs, hy = steps[i], turns[i], precise[i], moved[i]
        sy, sbs, yhy = s @ y, s @ bs, y @ hy
        q = y - jnp.sqrt(sy / sbs) * bs
        weight = (1 + yhy / sy) / sy
        along = targets @ s
        cross = outer(s, hy)
        cross = cross + (cross.T if dense else cross)
        updated = (
            factor - jnp.outer(factor @ q, s / sy),
            precise - jnp.outer(precise @ s, bs / sbs) + jnp.outer(steps @ y, y / sy),
            moved
            - jnp.outer(moved @ y, s / sy)
            - jnp.outer(along, hy / sy)
            + jnp.outer(along, weight * s),
            covariance - cross / sy + weight * outer(s, s),
            log_det + jnp.log(sbs / sy),
        )
        return select(sy > 0, updated, carry), None

    start = (
        noise * jnp.sqrt(alpha),
        steps / alpha,
        targets * alpha,
        jnp.diag(alpha) if dense else alpha,
        jnp.sum(jnp.log(alpha)),
    )
    window = jnp.arange(steps.shape[0])
    (factor, _, moved, covariance, log_det), _ = jax.lax.scan(update, start, window)
    if dense:
        covariance = 0.5 * (covariance + covariance.T)
    log_q = -0.5 * (log_det + jnp.sum(noise**2 + jnp.log(2 * jnp.pi), axis=1))
    return x + moved[-1] + factor, log_q, covariance


def differenced(logdensity: Callable) -> Callable:
    """Give a log density central differences for its gradient."""

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


def _definite(covariance: jax.Array) -> jax.Array:
    """Return the covariance, or its diagonal where it has no Cholesky factor."""
    usable = is_finite(jnp.linalg.cholesky(covariance))
    return jnp.where(usable, covariance, jnp.diag(jnp.diag(covariance)))


def _appended(window: jax.Array, row: jax.Array) -> jax.Array:
    return jnp.concatenate([window[1:], row[None]])
