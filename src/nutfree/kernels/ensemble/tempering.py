"""A mixture fitted to a density by its values alone, from a wide start to the density.

Adaptive importance sampling (Cappe et al. 2008; Cornuet, Marin, Mira and Robert,
Scandinavian Journal of Statistics 39, 2012). Round r draws n points from the mixture
q_r, and the points of the last R rounds have weights

    pi^t q_0^(1-t) / (1/R sum_r q_r),

to which the next mixture is fitted. The temperature t is the largest that leaves a
tenth of these points effective, until it is 1. The first rounds, one for two
dimensions and at most R, all draw from q_0, so that no mode is lost before it is seen.
A share of every mixture is a wide one, so that pi / q stays small where a fit to pi
itself has no points: along a thin, curved ridge the tails of its components point off
the ridge. It is fitted to a power of that same density, to points that were drawn by
weights and then walk by its shape (`moves.propose_within`). On a banana of sds 1 and
14, importance weights alone lengthened the ridge too slowly, and a run's error was
that of its worst fit: 256 effective draws of 131,072 evaluations without a wide
mixture, 126 to 278 with one fitted to weights, 2,800 with walks.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.kernels.ensemble.moves import propose_within
from nutfree.kernels.ensemble.reference import START_SCALE, effective_share
from nutfree.kernels.ensemble.student import (
    StudentMixture,
    draw,
    fit,
    fit_apart,
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
#: Weight of the wide mixture in the rounds, and in q.
WIDE_SHARE, LAST_WIDE_SHARE = 0.3, 0.15
#: Least power of the density that it is fitted to, and effective share of the kept
#: points at that power, which is raised where they are fewer.
WIDE_POWER, WIDE_TARGET_SHARE = 0.25, 0.02
#: Rounds at t = 1 before the fit may end, and after which it ends.
MIN_FULL, MAX_FULL = 4, 12
#: Fewer are enough where this share of a round is effective and no weight is more than
#: this many times their mean: what another round could add is less than it costs.
GOOD_SHARE, GOOD_WEIGHT, MIN_FULL_GOOD = 0.65, 5.0, 2
#: Growth of the effective share of a round that is worth another one.
WORTHWHILE = 1.1
#: Share of a round that one point may have.
LARGEST_WEIGHT = 0.02
#: Fall of the mean log density over the wide points that shows that they still spread.
SPREADING = 0.2
#: Steps of a walk. There are none before t = 1, where the next round's temperature is
#: another one, and they would be a third of its evaluations.
NUM_WALKS = 4
#: Bisections of the temperature, on a log scale, and powers that are tried.
NUM_BISECTIONS, NUM_POWERS = 20, 7
LEAST_TEMPERATURE = 1e-6
#: Draws of the prior that tell where to start.
NUM_PRIOR_DRAWS = 512


class Fit(NamedTuple):
    """What the rounds have come to.

    mixture : q, frozen from here on.
    temperature : t; below 1 the rounds ran out first.
    share : effective share of the last round's own weights pi / q.
    acceptance : of independent proposals from q on pi, estimated from these weights.
    log_evidence : log of the mean of these weights.
    particles : (N, d), points drawn by their weights.
    logdensity : (N,), of the particles.
    num_density_evals : spent.
    """

    mixture: StudentMixture
    temperature: jax.Array
    share: jax.Array
    acceptance: jax.Array
    log_evidence: jax.Array
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
    """`mixtures` are two, the second the wide one."""

    mixtures: StudentMixture
    temperature: jax.Array
    kept: _Kept
    share: jax.Array
    height: jax.Array
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
    num_walkers = max(num_draws // 8, 16)
    num_first = min(NUM_KEPT, -(-d // 2))

    def log_weights(kept: _Kept, temperature):
        """`(R n,)`, against the mean of the mixtures that the points are from."""
        points = kept.points.reshape(-1, d)
        each = jax.lax.map(lambda q: log_density(q, points), kept.mixtures)
        each = jnp.where(kept.is_used[:, None], each, -jnp.inf)
        log_mean = jax.nn.logsumexp(each, axis=0) - jnp.log(jnp.sum(kept.is_used))
        values = kept.logdensity.ravel()
        known = jnp.isfinite(values) & jnp.repeat(kept.is_used, num_draws)
        values = jnp.where(known, values, 0.0)

        def at(t):
            tempered = t * values + (1 - t) * kept.log_base.ravel() - log_mean
            return jnp.where(known, tempered, -jnp.inf)

        def is_enough(log_weights):
            return effective_share(log_weights) >= TARGET_SHARE * jnp.mean(known)

        def bisect(_, bounds):
            low, high = bounds
            middle = jnp.sqrt(low * high)
            enough = is_enough(at(middle))
            return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

        one = jnp.ones((), dtype)
        low = jnp.maximum(temperature, LEAST_TEMPERATURE)
        low, _ = jax.lax.fori_loop(0, NUM_BISECTIONS, bisect, (low, one))
        found = jnp.where(is_enough(at(one)), one, low)
        log_weight = at(found)
        # the least power that leaves as many points effective
        powers = jnp.linspace(WIDE_POWER, 1.0, NUM_POWERS, dtype=dtype)
        wider = powers[:, None] * (log_weight + log_mean) - log_mean
        is_spread = jax.vmap(effective_share)(wider) >= WIDE_TARGET_SHARE
        least = jnp.argmax(is_spread.at[-1].set(True))
        return jnp.stack([log_weight, wider[least]]), found, powers[least]

    def unfinished(state: _Rounds):
        more = (state.num_full < MAX_FULL) & state.is_worthwhile
        return (state.num_rounds < max_rounds) & more

    def walked(rng_key, state, kept, weights, power, temperature):
        """Points of the wide law, `(num_walkers, d)`, after walks by its mixture, and
        the evaluations of these."""
        pick_key, walk_key = jax.random.split(rng_key)
        chosen = jax.random.choice(pick_key, weights.size, (num_walkers,), p=weights)
        wide = jax.tree.map(lambda leaf: leaf[1], state.mixtures)

        def value(x):
            tempered = temperature * finite_or_zero_density(logdensity(x))
            rest = (1 - temperature) * log_density(base, x[None])[0]
            return power * (tempered + rest)

        def walk(i, carry):
            x, old = carry
            propose_key, accept_key = jax.random.split(jax.random.fold_in(walk_key, i))
            keys = jax.random.split(propose_key, num_walkers)
            proposal = jax.vmap(propose_within, (0, 0, None))(keys, x, wide)
            new = jax.vmap(value)(proposal.x).astype(dtype)
            ratio = new - old + proposal.log_jacobian
            accepted = jnp.log(jax.random.uniform(accept_key, ratio.shape)) < ratio
            x = jnp.where(accepted[:, None], proposal.x, x)
            return x, jnp.where(accepted, new, old)

        x = kept.points.reshape(-1, d)[chosen]
        at = temperature * kept.logdensity.ravel()[chosen]
        at = power * (at + (1 - temperature) * kept.log_base.ravel()[chosen])
        num_walks = jnp.where(temperature < 1, 0, NUM_WALKS)
        x, _ = jax.lax.fori_loop(0, num_walks, walk, (x, at))
        return x, num_walks * num_walkers

    def one_round(state: _Rounds) -> _Rounds:
        key = jax.random.fold_in(rng_key, state.num_rounds)
        draw_key, fit_key, walk_key = jax.random.split(key, 3)
        mixture = _with_wide(state.mixtures)
        x = jax.vmap(draw, (0, None))(jax.random.split(draw_key, num_draws), mixture)
        values = finite_or_zero_density(jax.vmap(logdensity)(x)).astype(dtype)
        new = _Kept(x, values, log_density(base, x), mixture, jnp.asarray(True))
        kept = jax.tree.map(
            lambda old, n: jnp.roll(old, 1, axis=0).at[0].set(n), state.kept, new
        )
        weights, temperature, power = log_weights(kept, state.temperature)
        weights = jax.nn.softmax(weights)
        own = values - log_density(mixture, x)
        share, largest = effective_share(own), jnp.max(jax.nn.softmax(own))
        usable = jnp.all(jnp.isfinite(weights)) & (state.num_rounds + 1 >= num_first)
        weights = jnp.where(jnp.isfinite(weights), weights, 1 / weights.shape[1])
        known = jnp.where(jnp.isfinite(kept.logdensity), kept.logdensity, 0.0)
        height = weights[1] @ known.ravel()
        walkers, num_walked = walked(
            walk_key, state, kept, weights[1], power, temperature
        )
        narrow, wide = (
            jax.tree.map(lambda leaf, i=i: leaf[i], state.mixtures) for i in (0, 1)
        )
        fitted = jax.tree.map(
            lambda *leaves: jnp.stack(leaves),
            fit(fit_key, narrow, kept.points.reshape(-1, d), weights[0]),
            fit_apart(fit_key, wide, walkers),
        )
        temperature = jnp.where(usable, temperature, state.temperature)
        num_full = state.num_full + (temperature >= 1)
        is_unsound = (largest > LARGEST_WEIGHT) | (share > WORTHWHILE * state.share)
        is_unsound = is_unsound | (height < state.height - SPREADING)
        is_good = (share > GOOD_SHARE) & (largest * num_draws < GOOD_WEIGHT)
        least = jnp.where(is_good, MIN_FULL_GOOD, MIN_FULL)
        return _Rounds(
            select(usable, fitted, state.mixtures),
            temperature,
            kept,
            share,
            height,
            num_full,
            (num_full < least) | is_unsound,
            state.num_rounds + 1,
            state.num_density_evals + num_draws + num_walked,
        )

    def repeated(leaf, *shape):
        return jnp.broadcast_to(leaf, (NUM_KEPT, *shape, *jnp.shape(leaf)))

    none = jnp.zeros((), dtype)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), base)
    kept = _Kept(
        jnp.zeros((NUM_KEPT, num_draws, d), dtype),
        jnp.full((NUM_KEPT, num_draws), -jnp.inf, dtype),
        jnp.zeros((NUM_KEPT, num_draws), dtype),
        jax.tree.map(repeated, _with_wide(both)),
        jnp.zeros(NUM_KEPT, bool),
    )
    zero, true = jnp.asarray(0), jnp.asarray(True)
    start = _Rounds(both, none, kept, none, none, zero, true, zero, zero)
    end = jax.lax.while_loop(unfinished, one_round, start)
    weights = log_weights(end.kept, end.temperature)[0][0]
    weights = jnp.where(jnp.any(jnp.isfinite(weights)), weights, 0.0)
    chosen = jax.random.choice(
        jax.random.fold_in(rng_key, max_rounds),
        weights.size,
        (num_particles,),
        p=jax.nn.softmax(weights),
    )
    last = jax.tree.map(lambda leaf: leaf[0], end.kept)
    ratios = last.logdensity - log_density(last.mixtures, last.points)
    return Fit(
        _with_wide(end.mixtures, LAST_WIDE_SHARE),
        end.temperature,
        end.share,
        _expected_acceptance(ratios),
        jax.nn.logsumexp(ratios) - jnp.log(num_draws),
        end.kept.points.reshape(-1, d)[chosen],
        end.kept.logdensity.ravel()[chosen],
        end.num_density_evals,
    )


def _with_wide(mixtures: StudentMixture, share=WIDE_SHARE) -> StudentMixture:
    """The proposal of two stacked mixtures, of which the second is the wide one."""
    narrow, wide = (jax.tree.map(lambda leaf, i=i: leaf[i], mixtures) for i in (0, 1))
    return together(narrow, wide, share)


def _expected_acceptance(log_ratio: jax.Array) -> jax.Array:
    """E min(1, w' / w) with x' from q and x from pi, of the weights w = pi / q.

    That is sum_ij min(w_i, w_j) / (n sum_i w_i).
    """
    w = jnp.sort(jnp.exp(log_ratio - jnp.max(log_ratio)))
    n = w.size
    # the i-th smallest is the smaller one in 2 (n - i) - 1 pairs
    pairs = 2 * (n - jnp.arange(n)) - 1
    return jnp.nan_to_num(jnp.sum(w * pairs) / (n * jnp.sum(w)))
