"""A mixture fitted to a density by its values alone, from a wide start to the density.

Adaptive importance sampling (Cappe et al. 2008; Cornuet, Marin, Mira and Robert,
Scandinavian Journal of Statistics 39, 2012). Round r draws n points from the mixture
q_r, and the points of the last R rounds have weights

    pi^t q_0^(1-t) / (1/R sum_r q_r),

to which the next mixture is fitted. The temperature t is the largest that leaves a
tenth of these points effective, until it is 1. The first rounds, one for two
dimensions and at most R, all draw from q_0, so that no mode is lost before it is seen.
The last mixture fitted at t < 1 keeps a share of q, so that pi / q stays small in tails
where the fit at t = 1 has no points.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.kernels.ensemble.reference import START_SCALE, effective_share
from nutfree.kernels.ensemble.student import (
    StudentMixture,
    draw,
    fit,
    log_density,
    one_component,
    together,
)
from nutfree.numerics.evaluation import select
from nutfree.target import Target

#: Rounds whose points are kept.
NUM_KEPT = 4
#: Effective share of the kept points on the way, t < 1.
TARGET_SHARE = 0.1
#: Weight in q of the last mixture that was fitted at t < 1.
WIDE_SHARE = 0.15
#: Rounds at t = 1 after which the fit ends, at the latest.
MAX_FULL = 5
#: Growth of the effective share of a round that is worth another one.
WORTHWHILE = 1.1
#: Bisections of the temperature, on a log scale.
NUM_BISECTIONS = 20
LEAST_TEMPERATURE = 1e-6
#: Draws of the prior that tell where to start.
NUM_PRIOR_DRAWS = 512


class Fit(NamedTuple):
    """What the rounds have come to.

    mixture : q, frozen from here on.
    temperature : t; below 1 the rounds ran out first.
    share : effective share of the last round's own weights pi / q.
    acceptance : of independent proposals from q on pi, estimated from these weights.
    particles : (N, d), points drawn by their weights.
    logdensity : (N,), of the particles.
    num_density_evals : spent.
    """

    mixture: StudentMixture
    temperature: jax.Array
    share: jax.Array
    acceptance: jax.Array
    particles: jax.Array
    logdensity: jax.Array
    num_density_evals: jax.Array


class _Kept(NamedTuple):
    """The last rounds: points (R, n, d), log pi and log q_0 there, and the mixtures."""

    points: jax.Array
    logdensity: jax.Array
    log_base: jax.Array
    mixtures: StudentMixture
    is_used: jax.Array


class _Rounds(NamedTuple):
    mixture: StudentMixture
    wide: StudentMixture
    temperature: jax.Array
    kept: _Kept
    share: jax.Array
    num_full: jax.Array
    is_worthwhile: jax.Array
    num_rounds: jax.Array
    num_density_evals: jax.Array


def start_mixture(rng_key, x, target: Target, num_components: int):
    """One wide component: the prior's medians and quartiles, or around `x`."""
    if target.prior is None:
        return one_component(
            x, START_SCALE * jnp.eye(x.size, dtype=x.dtype), num_components
        )
    keys = jax.random.split(rng_key, NUM_PRIOR_DRAWS)
    draws = jax.vmap(target.prior.sample)(keys)
    draws = jax.vmap(lambda p: ravel_pytree(p)[0])(draws).astype(x.dtype)
    low, middle, high = jnp.quantile(draws, jnp.asarray([0.25, 0.5, 0.75]), axis=0)
    sd = jnp.maximum((high - low) / 1.35, jnp.finfo(x.dtype).eps)
    sd, middle = sd.astype(x.dtype), middle.astype(x.dtype)
    return one_component(middle, jnp.diag(sd), num_components)


def finite_or_zero_density(values: jax.Array) -> jax.Array:
    """Log densities with -inf in place of NaN and +inf."""
    return jnp.where(jnp.isnan(values) | jnp.isposinf(values), -jnp.inf, values)


def fit_tempered(
    rng_key,
    base: StudentMixture,
    logdensity: Callable,
    *,
    num_draws: int,
    max_rounds: int,
    num_particles: int,
) -> Fit:
    """Fit a mixture to `logdensity`, a function of a vector `(d,)`.

    Args:
        rng_key: a key.
        base: q_0, where the rounds start.
        logdensity: `x -> log pi`, up to a constant.
        num_draws: n, points of a round.
        max_rounds: rounds after which it gives up.
        num_particles: N.
    """
    d = base.center.shape[1]
    dtype = base.center.dtype
    num_first = min(NUM_KEPT, -(-d // 2))

    def log_weights(kept: _Kept, temperature):
        """`(R n,)`, against the mean of the mixtures that the points are from."""
        points = kept.points.reshape(-1, d)
        each = jax.vmap(log_density, (0, None))(kept.mixtures, points)
        each = jnp.where(kept.is_used[:, None], each, -jnp.inf)
        log_mean = jax.nn.logsumexp(each, axis=0) - jnp.log(jnp.sum(kept.is_used))
        values = kept.logdensity.ravel()
        known = jnp.isfinite(values) & jnp.repeat(kept.is_used, num_draws)
        values = jnp.where(known, values, 0.0)

        def at(t):
            tempered = t * values + (1 - t) * kept.log_base.ravel() - log_mean
            return jnp.where(known, tempered, -jnp.inf)

        goal = TARGET_SHARE * jnp.mean(known)

        def bisect(_, bounds):
            low, high = bounds
            middle = jnp.sqrt(low * high)
            enough = effective_share(at(middle)) >= goal
            return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

        one = jnp.ones((), dtype)
        low = jnp.maximum(temperature, LEAST_TEMPERATURE)
        low, _ = jax.lax.fori_loop(0, NUM_BISECTIONS, bisect, (low, one))
        found = jnp.where(effective_share(at(one)) >= goal, one, low)
        return at(found), found

    def unfinished(state: _Rounds):
        more = (state.num_full < MAX_FULL) & state.is_worthwhile
        return (state.num_rounds < max_rounds) & more

    def one_round(state: _Rounds) -> _Rounds:
        key = jax.random.fold_in(rng_key, state.num_rounds)
        draw_key, fit_key = jax.random.split(key)
        x = jax.vmap(draw, (0, None))(
            jax.random.split(draw_key, num_draws), state.mixture
        )
        values = finite_or_zero_density(jax.vmap(logdensity)(x)).astype(dtype)
        new = _Kept(x, values, log_density(base, x), state.mixture, jnp.asarray(True))
        kept = jax.tree.map(
            lambda old, n: jnp.roll(old, 1, axis=0).at[0].set(n), state.kept, new
        )
        weights, temperature = log_weights(kept, state.temperature)
        weights = jax.nn.softmax(weights)
        share = effective_share(values - log_density(state.mixture, x))
        usable = jnp.all(jnp.isfinite(weights)) & (state.num_rounds + 1 >= num_first)
        points = kept.points.reshape(-1, d)
        weights = jnp.where(jnp.isfinite(weights), weights, 1 / weights.size)
        fitted = fit(fit_key, state.mixture, points, weights)
        temperature = jnp.where(usable, temperature, state.temperature)
        num_full = state.num_full + (temperature >= 1)
        return _Rounds(
            select(usable, fitted, state.mixture),
            select(usable & (temperature < 1), fitted, state.wide),
            temperature,
            kept,
            share,
            num_full,
            (num_full < 3) | (share > WORTHWHILE * state.share),
            state.num_rounds + 1,
            state.num_density_evals + num_draws,
        )

    def repeated(leaf, *shape):
        return jnp.broadcast_to(leaf, (NUM_KEPT, *shape, *jnp.shape(leaf)))

    none = jnp.zeros((), dtype)
    kept = _Kept(
        jnp.zeros((NUM_KEPT, num_draws, d), dtype),
        jnp.full((NUM_KEPT, num_draws), -jnp.inf, dtype),
        jnp.zeros((NUM_KEPT, num_draws), dtype),
        jax.tree.map(repeated, base),
        jnp.zeros(NUM_KEPT, bool),
    )
    zero = jnp.asarray(0)
    start = _Rounds(base, base, none, kept, none, zero, jnp.asarray(True), zero, zero)
    end = jax.lax.while_loop(unfinished, one_round, start)
    weights, _ = log_weights(end.kept, end.temperature)
    weights = jnp.where(jnp.any(jnp.isfinite(weights)), weights, 0.0)
    chosen = jax.random.categorical(
        jax.random.fold_in(rng_key, max_rounds), weights, shape=(num_particles,)
    )
    last = jax.tree.map(lambda leaf: leaf[0], end.kept)
    ratios = last.logdensity - log_density(last.mixtures, last.points)
    return Fit(
        together(end.mixture, end.wide, WIDE_SHARE),
        end.temperature,
        end.share,
        (1 - WIDE_SHARE) * _expected_acceptance(ratios),
        end.kept.points.reshape(-1, d)[chosen],
        end.kept.logdensity.ravel()[chosen],
        end.num_density_evals,
    )


def _expected_acceptance(log_ratio: jax.Array) -> jax.Array:
    """E min(1, w' / w) with x' from q and x from pi, of the weights w = pi / q.

    That is sum_ij min(w_i, w_j) / (n sum_i w_i).
    """
    w = jnp.sort(jnp.exp(log_ratio - jnp.max(log_ratio)))
    n = w.size
    # the i-th smallest is the smaller one in 2 (n - i) - 1 pairs
    pairs = 2 * (n - jnp.arange(n)) - 1
    return jnp.nan_to_num(jnp.sum(w * pairs) / (n * jnp.sum(w)))
