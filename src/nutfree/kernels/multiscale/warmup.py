"""Warm-up of a mixture proposal: a pilot's modes, refined by the draws in them.

Each draw belongs to one mode, or to none that is known where modes are too many to be
known and it lies far from each. That mode's centre and covariance are the posterior
mean of a normal-inverse-Wishart model whose prior is the Laplace approximation; its
weight is the share of the chain that it holds (Rao-Blackwellised over the global
moves), with the pilot's weight as a prior and a floor, so that none dies. What was
learnt earlier counts half as much after 16, 32, 64... transitions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from nutfree.kernels.multiscale.proposal import (
    TAIL_SHARES,
    TAILS,
    Mixture,
    mixture_of,
)
from nutfree.kernels.multiscale.shifts import shifts_between
from nutfree.modes.candidates import MAX_DENSE
from nutfree.modes.mixture import (
    Mode,
    Modes,
    crowded,
    into_axes,
    log_shares,
    mode_at,
    with_mode,
)
from nutfree.modes.pilot import PROBES_PER_START, Pilot, run_pilot
from nutfree.modes.search import Effort
from nutfree.numerics.evaluation import flatten
from nutfree.warmup.base import AdaptationState, Warmup

#: What the mean of `info.acceptance_rate` should be.
ACCEPTANCE_RATE = 0.8
#: Transitions that the pilot's weights count for.
PRIOR_COUNT = 10.0
#: Least share of a live mode, times their number, and least share of a tail.
FLOOR = 0.1
#: Share of the jumps that are by shifts where no global move is accepted.
SHIFT_SHARE = 0.9
#: Log of the share of the heaviest mode's mass below which a mode is not proposed.
LEAST_LOG_WEIGHT = -15.0
#: Standard deviations of chi square by which a draw of a mode may exceed its mean.
WITHIN = 5.0
#: Numbers in all covariances together, a megabyte; they are read at every move.
MAX_NUMBERS = 2**18
#: The most and the least modes that are kept if the user does not say.
MOST_MODES, LEAST_MODES = 256, 64


class Refinement(NamedTuple):
    """What the refinement has learnt.

    laplace : the pilot's modes.
    held, mean, scatter : of the draws of each mode, (modes,), (modes, d), and
        (modes, d, d) or (modes, d), the sum of squares about the mean.
    occupancy, tails : transitions that each mode and each tail held.
    num_seen, covered : transitions, and the sum of their acceptance of global moves.
    """

    dual_averaging: Any
    step: jax.Array
    laplace: Modes
    held: jax.Array
    mean: jax.Array
    scatter: jax.Array
    occupancy: jax.Array
    tails: jax.Array
    num_seen: jax.Array
    covered: jax.Array


def mixture_warmup(
    num_starts: int, num_first_steps: int, num_descent_steps: int, num_modes: int | None
) -> Warmup:
    """Find `center`, `scale`, `mixture`, `step_size`, `shifts` and `shift_share`.

    Args:
        num_starts, num_first_steps, num_descent_steps: of the pilot.
        num_modes: the most modes that it keeps; None for as many as `MAX_NUMBERS`
            allows, within bounds.
    """
    da_init, da_update, da_final = dual_averaging_adaptation(ACCEPTANCE_RATE)

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        del num_steps
        x, _, unravel = flatten(position, target)
        effort = Effort(
            num_starts=num_starts,
            num_steps=num_descent_steps,
            num_modes=_default_num_modes(x.size) if num_modes is None else num_modes,
            num_first_steps=num_first_steps,
            num_probes=PROBES_PER_START * num_starts,
        )
        found = run_pilot(rng_key, position, target, effort)
        # the acceptance rate of four leapfrog steps on a Gaussian is then about 0.8
        step_size = jnp.asarray(1.2 * x.size ** (-1 / 4), x.dtype)
        averaging = jax.tree.map(jnp.asarray, da_init(step_size))
        return AdaptationState(
            _first_params(found, step_size),
            unravel(found.best),
            found.num_grad_evals,
            inner=_nothing_learnt(averaging, found.modes),
        )

    def update(adapt_state, state, info) -> AdaptationState:
        params, inner = adapt_state.params, adapt_state.inner
        averaging = da_update(
            inner.dual_averaging, jnp.nan_to_num(info.acceptance_rate)
        )
        x, _ = ravel_pytree(state.position)
        u = (x - params["center"]) / params["scale"]
        modes, inner = _refine(params["mixture"].modes, inner, u, info)
        covered = inner.covered / (PRIOR_COUNT + inner.num_seen)
        params = {
            **params,
            "step_size": jnp.exp(averaging.log_step_size),
            "mixture": Mixture(modes, _log_tails(inner.tails)),
            "shift_share": SHIFT_SHARE * (1.0 - covered),
        }
        inner = inner._replace(dual_averaging=averaging)
        new = adapt_state._replace(params=params, inner=inner)
        # a loop's carry keeps its types
        return jax.tree.map(lambda o, n: jnp.asarray(n, o.dtype), adapt_state, new)

    def final(adapt_state) -> dict:
        params, inner = adapt_state.params, adapt_state.inner
        tuned = da_final(inner.dual_averaging).astype(params["step_size"].dtype)
        step_size = jnp.where(inner.step > 0, tuned, params["step_size"])
        return {**params, "step_size": step_size}

    return Warmup(init, update, final)


def _default_num_modes(dim: int) -> int:
    numbers = dim**2 if dim <= MAX_DENSE else dim
    return min(MOST_MODES, max(LEAST_MODES, MAX_NUMBERS // numbers))


def _first_params(found: Pilot, step_size) -> dict[str, Any]:
    modes = found.modes
    weights = mixture_weights(modes.log_weight, jnp.zeros_like(modes.log_weight))
    modes = modes._replace(log_weight=weights)
    return {
        "step_size": step_size,
        "center": found.center,
        "scale": found.scale,
        "mixture": mixture_of(modes),
        "shifts": shifts_between(modes),
        "shift_share": jnp.asarray(0.5 * SHIFT_SHARE, step_size.dtype),
    }


def _nothing_learnt(averaging, modes: Modes) -> Refinement:
    dtype = modes.center.dtype
    return Refinement(
        dual_averaging=averaging,
        step=jnp.asarray(0),
        laplace=modes,
        held=jnp.zeros_like(modes.log_weight),
        mean=modes.center,
        scatter=jnp.zeros_like(modes.axes if modes.axes.size else modes.width),
        occupancy=jnp.zeros_like(modes.log_weight),
        tails=jnp.zeros(len(TAILS), dtype),
        num_seen=jnp.zeros((), dtype),
        covered=jnp.zeros((), dtype),
    )


def _refine(modes: Modes, inner: Refinement, u, info) -> tuple[Modes, Refinement]:
    """Update the mode that the draw `u` belongs to, and the weights of all."""
    k = jnp.argmax(log_shares(modes, u))
    belongs = ~crowded(inner.laplace) | _within(mode_at(modes, k), u)
    step = inner.step + 1
    halved = (step >= 16) & (jnp.bitwise_and(step, step - 1) == 0)
    keep = jnp.where(halved, 0.5, 1.0)
    # Welford's update of the draws of mode k
    count = keep * inner.held[k] + belongs
    away = belongs * (u - inner.mean[k])
    mean = inner.mean.at[k].add(away / jnp.maximum(count, 1))
    products = _outer(away, u - mean[k], modes.axes.size > 0)
    scatter = (keep * inner.scatter).at[k].add(products)
    inner = inner._replace(
        step=step,
        held=(keep * inner.held).at[k].set(count),
        mean=mean,
        scatter=scatter,
        occupancy=keep * inner.occupancy + info.occupancy,
        tails=keep * inner.tails + info.tails,
        num_seen=keep * inner.num_seen + 1,
        covered=keep * inner.covered + info.global_rate,
    )
    mode = mode_at(inner.laplace, k)
    modes = with_mode(modes, k, *_posterior(mode, count, mean[k], scatter[k]))
    weights = mixture_weights(inner.laplace.log_weight, inner.occupancy)
    return modes._replace(log_weight=weights), inner


def _outer(x, y, dense: bool):
    return jnp.outer(x, y) if dense else x * y


def _within(mode: Mode, u) -> jax.Array:
    """Tell whether a Gaussian draw of the mode could be as far out as u is."""
    z = into_axes(mode.axes, u - mode.center) / mode.width
    # chi square: its mean, and so many standard deviations and more
    return jnp.sum(z**2) < u.size + WITHIN * (2 * u.size) ** 0.5 + WITHIN**2


def _posterior(laplace: Mode, count, mean, scatter):
    """Estimate centre, widths and axes of a mode from its draws and its Laplace prior.

    Args:
        laplace: the prior.
        count, mean, scatter: of the draws.
    """
    axes, dense, dim = laplace.axes, laplace.axes.size > 0, laplace.center.size
    covariance = (axes * laplace.width**2) @ axes.T if dense else laplace.width**2
    # the more is known, the less the curvature at one point has to say
    prior = (5.0 + dim) / (1.0 + (count / (3.0 * (5.0 + dim))) ** 2)
    total = prior + count
    away = mean - laplace.center
    both = prior * covariance + scatter
    both = (both + prior * count / total * _outer(away, away, dense)) / total
    center = laplace.center + count / total * away
    if not dense:
        return center, jnp.sqrt(both), axes
    eigenvalues, axes = jnp.linalg.eigh(0.5 * (both + both.T))
    floor = 1e-6 * jnp.max(eigenvalues)
    return center, jnp.sqrt(jnp.maximum(eigenvalues, floor)), axes


def mixture_weights(log_prior, occupancy) -> jax.Array:
    """Compute log weights of the modes; -inf for those that the pilot gave none."""
    log_prior = jax.nn.log_softmax(log_prior)
    live = log_prior > jnp.max(log_prior) + LEAST_LOG_WEIGHT
    weight = jnp.where(live, PRIOR_COUNT * jnp.exp(log_prior) + occupancy, 0.0)
    weight = weight / jnp.sum(weight)
    weight = jnp.where(live, jnp.maximum(weight, FLOOR / jnp.sum(live)), 0.0)
    return jnp.log(weight / jnp.sum(weight))


def _log_tails(held: jax.Array) -> jax.Array:
    """Compute log shares of the tails from the transitions that each held."""
    shares = PRIOR_COUNT * jnp.asarray(TAIL_SHARES, held.dtype) + held
    shares = shares / jnp.sum(shares)
    return jax.nn.log_softmax(jnp.log(jnp.maximum(shares, FLOOR)))
