"""A Gaussian fitted to a density by its values alone, wide to narrow.

Adaptive importance sampling: draws x_j of N(m, C) have weights (pi / N(m, C))^a, and m
and C become their weighted moments. The power a is the largest up to 1 at which enough
of the weights stay effective. At a = 1 the moments are the posterior's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.target import Target

#: Standard deviations around the given position where there is no prior.
START_SCALE = 5.0
#: Effective share of the draws in a round on the way, a < 1.
TARGET_ESS = 0.3
#: Effective share from which on a round has the full weights, a = 1.
FULL_ESS = 0.05
#: Bisections of log a; 25 find it to a millionth of its range.
NUM_BISECTIONS = 25
#: Rounds in a row with the full weights that end the fit.
NUM_FULL = 3


class Reference(NamedTuple):
    """N(center, scale scale^T), with `scale` lower triangular of shape `(d, d)`."""

    center: jax.Array
    scale: jax.Array


class _Rounds(NamedTuple):
    center: jax.Array
    covariance: jax.Array
    num_rounds: jax.Array
    num_full: jax.Array  # rounds in a row with a = 1


def reference(center, covariance) -> Reference:
    """The Gaussian, widened so that it covers the tails.

    For a Gaussian posterior about half of the weights stay effective in any dimension,
    where its variance is widened by the factor 1 + sqrt(1.4 / d).
    """
    widen = 1 + jnp.sqrt(1.4 / center.size)
    jitter = 1e-6 * jnp.diag(jnp.diag(covariance))
    return Reference(center, jnp.linalg.cholesky(widen * covariance + jitter))


def log_ratio(logdensity: jax.Array, y: jax.Array) -> jax.Array:
    """log f = log pi - log N(0, I) up to a constant, -inf where pi is not finite."""
    value = logdensity + 0.5 * jnp.sum(y**2, axis=-1)
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)


def effective_share(log_weights: jax.Array) -> jax.Array:
    """Effective sample of the weights as a share of their number; 0 if all are zero."""
    squared_sum = 2 * jax.nn.logsumexp(log_weights)
    share = jnp.exp(squared_sum - jax.nn.logsumexp(2 * log_weights)) / log_weights.size
    return jnp.nan_to_num(share)


def moments(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and covariance, shrunk to its diagonal where n weights are few for it."""
    center = weights @ x
    centred = x - center
    covariance = (weights[:, None] * centred).T @ centred
    n = 1 / jnp.sum(weights**2)
    shrink = jnp.minimum((x.shape[1] / n) ** 2, 1.0)
    diagonal = jnp.diag(jnp.diag(covariance))
    return center, (1 - shrink) * covariance + shrink * diagonal


def fit_reference(
    rng_key, position, target: Target, num_draws: int, max_rounds: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return centre `(d,)`, covariance `(d, d)`, and the density evaluations spent."""
    x, unravel = ravel_pytree(position)
    logdensity = jax.vmap(lambda v: target(unravel(v)))
    start_key, round_key = jax.random.split(rng_key)
    if target.prior is None:
        center, covariance = x, START_SCALE**2 * jnp.eye(x.size, dtype=x.dtype)
    else:
        draws = jax.vmap(target.prior.sample)(jax.random.split(start_key, num_draws))
        draws = jax.vmap(lambda p: ravel_pytree(p)[0])(draws).astype(x.dtype)
        center, covariance = moments(draws, jnp.full(num_draws, 1 / num_draws, x.dtype))

    def unfinished(state):
        return (state.num_rounds < max_rounds) & (state.num_full < NUM_FULL)

    def one_round(state):
        key = jax.random.fold_in(round_key, state.num_rounds)
        guess = reference(state.center, state.covariance)
        y = jax.random.normal(key, (num_draws, x.size), x.dtype)
        draws = guess.center + y @ guess.scale.T
        log_weights = log_ratio(logdensity(draws), y)
        power = _largest_power(log_weights)
        weights = jax.nn.softmax(power * log_weights)
        new = moments(draws, weights)
        good = jnp.all(jnp.isfinite(new[1])) & jnp.any(jnp.isfinite(log_weights))
        center, covariance = (
            jnp.where(good, n, o) for n, o in zip(new, (state.center, state.covariance))
        )
        num_full = jnp.where(power >= 1, state.num_full + 1, 0)
        return _Rounds(center, covariance, state.num_rounds + 1, num_full)

    start = _Rounds(center, covariance, jnp.asarray(0), jnp.asarray(0))
    end = jax.lax.while_loop(unfinished, one_round, start)
    return end.center, end.covariance, num_draws * end.num_rounds


def _largest_power(log_weights: jax.Array) -> jax.Array:
    """1 if that leaves `FULL_ESS`, else the largest that leaves `TARGET_ESS`."""
    # zero weights stay zero at any power
    finite = jnp.isfinite(log_weights)
    target = TARGET_ESS * jnp.mean(finite)

    def share(power):
        scaled = jnp.where(
            finite, power * jnp.where(finite, log_weights, 0.0), -jnp.inf
        )
        return effective_share(scaled)

    def bisect(_, bounds):
        low, high = bounds
        middle = jnp.sqrt(low * high)
        enough = share(middle) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    one = jnp.ones((), log_weights.dtype)
    low, _ = jax.lax.fori_loop(0, NUM_BISECTIONS, bisect, (1e-8 * one, one))
    return jnp.where(share(one) >= FULL_ESS, one, low)
