"""Warm-up of a mixture proposal: a pilot's modes, refined by the draws they hold.

Each draw belongs to one mode, or to none that is known where modes are too many to be
known and it lies far from each. That mode's centre and covariance are the posterior
mean of a normal-inverse-Wishart model whose prior is the Laplace approximation, its
weight the share of the chain that it holds (Rao-Blackwellised over the global moves),
with the pilot's weight as a prior and a floor, so that none dies. What was learnt
earlier counts half as much after 16, 32, 64... transitions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from nutfree.kernels.multiscale.mixture import (
    TAIL_SHARES,
    TAILS,
    Mixture,
    mixture_at,
)
from nutfree.modes.ends import MAX_DENSE
from nutfree.modes.pilot import LOOKS, run_pilot
from nutfree.modes.record import (
    Mode,
    Modes,
    crowded,
    into_axes,
    log_shares,
    mode_at,
    shifts_between,
    with_mode,
)
from nutfree.numerics.evaluation import flatten
from nutfree.warmup.base import AdaptationState, Warmup

#: Transitions that the pilot's weights count for.
PRIOR_COUNT = 10.0
#: No live mode has a smaller share than this over their number; no tail less than this.
FLOOR = 0.1
#: The share of the jumps that are by shifts where no global move is accepted.
SHIFT_SHARE = 0.9
#: A mode of less than this share of the pilot's mass is not proposed.
LEAST_LOG_WEIGHT = -15.0
#: Standard deviations from a mode within which a draw belongs to it.
WITHIN = 5.0
#: Covariances of this many numbers, a megabyte, are read at every move.
MAX_NUMBERS = 2**18


class MixtureState(NamedTuple):
    """What the refinement has seen.

    laplace : the pilot's modes.
    held, mean, scatter : of the draws of each mode, (modes,), (modes, d), and
        (modes, d, d) or (modes, d), the sum of squares about the mean.
    occupancy, tails : transitions that each mode and each tail held.
    seen, covered : transitions, and those times the mean acceptance of global moves.
    """

    dual_averaging: Any
    step: jax.Array
    laplace: Modes
    held: jax.Array
    mean: jax.Array
    scatter: jax.Array
    occupancy: jax.Array
    tails: jax.Array
    seen: jax.Array
    covered: jax.Array


def _outer(x, y, dense: bool):
    return jnp.outer(x, y) if dense else x * y


def _refined(laplace: Modes, k, count, mean, scatter):
    """Centre, widths and axes of mode `k` given its draws."""
    center, width, axes, *_ = mode_at(laplace, k)
    dense = axes.size > 0
    covariance = (axes * width**2) @ axes.T if dense else width**2
    # the more is known, the less the curvature at one point has to say
    prior = (5.0 + center.size) / (1.0 + (count / (3.0 * (5.0 + center.size))) ** 2)
    total = prior + count
    away = mean - center
    both = prior * covariance + scatter
    both = (both + prior * count / total * _outer(away, away, dense)) / total
    center = center + count / total * away
    if not dense:
        return center, jnp.sqrt(both), axes
    eigenvalues, axes = jnp.linalg.eigh(0.5 * (both + both.T))
    floor = 1e-6 * jnp.max(eigenvalues)
    return center, jnp.sqrt(jnp.maximum(eigenvalues, floor)), axes


def _within(mode: Mode, u) -> jax.Array:
    """Whether a Gaussian draw of the mode could be as far out as u is."""
    z = into_axes(mode.axes, u - mode.center) / mode.width
    # chi square, its mean, and five standard deviations
    return jnp.sum(z**2) < u.size + WITHIN * (2 * u.size) ** 0.5 + WITHIN**2


def mixture_weights(log_prior, occupancy) -> jax.Array:
    """Log weights of the modes; -inf for those that the pilot gave none."""
    log_prior = jax.nn.log_softmax(log_prior)
    live = log_prior > jnp.max(log_prior) + LEAST_LOG_WEIGHT
    weight = jnp.where(live, PRIOR_COUNT * jnp.exp(log_prior) + occupancy, 0.0)
    weight = weight / jnp.sum(weight)
    weight = jnp.where(live, jnp.maximum(weight, FLOOR / jnp.sum(live)), 0.0)
    return jnp.log(weight / jnp.sum(weight))


def _room(dim: int) -> int:
    """How many modes to keep."""
    numbers = dim**2 if dim <= MAX_DENSE else dim
    return min(256, max(64, MAX_NUMBERS // numbers))


def mixture_warmup(
    *,
    num_starts: int,
    num_first_steps: int,
    num_descent_steps: int,
    num_modes: int | None = None,
    target_acceptance_rate: float = 0.8,
) -> Warmup:
    """Find `center`, `scale`, `mixture`, `step_size`, `shifts` and `shift_share`.

    Args:
        num_starts, num_first_steps, num_descent_steps: of the pilot.
        num_modes: the most modes that it keeps; as many as `MAX_NUMBERS` allows, and
            no more than 256, where None.
        target_acceptance_rate: what the mean of `info.acceptance_rate` should be.
    """
    da_init, da_update, da_final = dual_averaging_adaptation(target_acceptance_rate)

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        del num_steps
        x, _, unravel = flatten(position, target)
        found = run_pilot(
            rng_key,
            position,
            target,
            num_starts=num_starts,
            num_first_steps=num_first_steps,
            num_looks=LOOKS * num_starts,
            num_steps=num_descent_steps,
            num_modes=_room(x.size) if num_modes is None else num_modes,
        )
        modes = found.modes
        weights = mixture_weights(modes.log_weight, jnp.zeros_like(modes.log_weight))
        modes = modes._replace(log_weight=weights)
        # the acceptance rate of four leapfrog steps on a Gaussian is then about 0.8
        step_size = jnp.asarray(1.2 * x.size ** (-1 / 4), x.dtype)
        params = {
            "step_size": step_size,
            "center": found.center,
            "scale": found.scale,
            "mixture": mixture_at(modes),
            "shifts": shifts_between(modes),
            "shift_share": jnp.asarray(0.5 * SHIFT_SHARE, x.dtype),
        }
        dense = modes.axes.size > 0
        inner = MixtureState(
            jax.tree.map(jnp.asarray, da_init(step_size)),
            jnp.asarray(0),
            found.modes,
            jnp.zeros_like(modes.log_weight),
            modes.center,
            jnp.zeros_like(modes.axes if dense else modes.width),
            jnp.zeros_like(modes.log_weight),
            jnp.zeros(len(TAILS), x.dtype),
            jnp.zeros((), x.dtype),
            jnp.zeros((), x.dtype),
        )
        return AdaptationState(
            params, unravel(found.best), found.num_grad_evals, inner=inner
        )

    def update(adapt_state, state, info) -> AdaptationState:
        params, inner = adapt_state.params, adapt_state.inner
        modes = params["mixture"].modes
        averaging = da_update(
            inner.dual_averaging, jnp.nan_to_num(info.acceptance_rate)
        )
        x, _ = ravel_pytree(state.position)
        u = (x - params["center"]) / params["scale"]
        k = jnp.argmax(log_shares(modes, u))
        belongs = ~crowded(inner.laplace) | _within(mode_at(modes, k), u)
        step = inner.step + 1
        halved = (step >= 16) & (jnp.bitwise_and(step, step - 1) == 0)
        keep = jnp.where(halved, 0.5, 1.0)
        held, scatter = keep * inner.held, keep * inner.scatter
        n = held[k] + belongs
        away = belongs * (u - inner.mean[k])
        mean = inner.mean.at[k].add(away / jnp.maximum(n, 1))
        dense = modes.axes.size > 0
        scatter = scatter.at[k].add(_outer(away, u - mean[k], dense))
        held = held.at[k].set(n)
        center, width, axes = _refined(inner.laplace, k, n, mean[k], scatter[k])
        occupancy = keep * inner.occupancy + info.occupancy
        tails = keep * inner.tails + info.tails
        seen = keep * inner.seen + 1
        covered = keep * inner.covered + info.global_rate
        share = covered / (PRIOR_COUNT + seen)
        shares = PRIOR_COUNT * jnp.asarray(TAIL_SHARES, tails.dtype) + tails
        shares = shares / jnp.sum(shares)
        log_tail = jnp.log(jnp.maximum(shares, FLOOR))
        modes = with_mode(modes, k, center, width, axes)
        weights = mixture_weights(inner.laplace.log_weight, occupancy)
        mixture = Mixture(
            modes._replace(log_weight=weights), jax.nn.log_softmax(log_tail)
        )
        params = {
            **params,
            "step_size": jnp.exp(averaging.log_step_size),
            "mixture": mixture,
            "shift_share": SHIFT_SHARE * (1.0 - share),
        }
        inner = MixtureState(
            averaging,
            step,
            inner.laplace,
            held,
            mean,
            scatter,
            occupancy,
            tails,
            seen,
            covered,
        )
        new = adapt_state._replace(params=params, inner=inner)
        # a loop's carry keeps its types
        return jax.tree.map(lambda o, n: jnp.asarray(n, o.dtype), adapt_state, new)

    def final(adapt_state) -> dict:
        params, inner = adapt_state.params, adapt_state.inner
        tuned = da_final(inner.dual_averaging).astype(params["step_size"].dtype)
        step_size = jnp.where(inner.step > 0, tuned, params["step_size"])
        return {**params, "step_size": step_size}

    return Warmup(init, update, final)
