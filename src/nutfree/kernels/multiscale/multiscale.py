"""Multiscale: exact draws from a multimodal posterior with a gradient.

A pilot of many short descents finds the modes; warm-up fits a mixture q of Gaussian and
Student-t components to them, which is then frozen. One transition makes `num_rounds`
rounds of three Metropolis moves on pi (`kernels.multiscale.moves`):

    local      a Hamiltonian trajectory in the metric of the nearest mode,
    jump       u' = mu_k + C_k^(1/2) C_j^(-1/2) (u - mu_j), from mode j to mode k, or,
               the more often the less q covers, u' = u + mu_k - mu_j,
    global     u' ~ q, accepted with probability min(1, pi(u') q(u) / (pi(u) q(u'))).

Reference: independence and mode-jumping Metropolis moves, Tierney, Annals of Statistics
22(4), 1994, and Pompe, Holmes and Latuszynski, Annals of Statistics 48(5), 2020. Exact.
Gradients per transition: num_rounds x (num_steps + 2). The draws of q also give the
evidence, by bridge sampling (`diagnostics.evidence`), and say whether q covers the
posterior.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from nutfree.facts import separate_modes
from nutfree.kernels.multiscale.moves import (
    chain_point,
    follow,
    global_move,
    jump_move,
    local_move,
)
from nutfree.kernels.multiscale.proposal import TAILS, odds
from nutfree.kernels.multiscale.warmup import mixture_warmup
from nutfree.modes.mixture import FULL, number_of
from nutfree.modes.pilot import NUM_STARTS
from nutfree.modes.search import standardised
from nutfree.numerics.evaluation import (
    Spent,
    counted_value_and_grad,
    flatten,
    is_finite,
    noticing_blind,
)
from nutfree.registry import KernelSpec, option
from nutfree.target import Position
from nutfree.warmup import Warmup

#: The moves of a round, in their order.
MOVES = ("global", "local", "jump")
#: Share of the local moves after the first round that take short steps: a short
#: trajectory gets away from where a long one is always rejected.
SHORT_SHARE = 0.125
#: Length of those steps, in units of `step_size`.
SHORT = 0.05
#: Least length of the other steps, in the same units; they are jittered up to one.
LEAST_JITTER = 0.6


@dataclass(frozen=True)
class Options:
    num_rounds: int = option(2, "rounds of local moves, jumps and global moves", ge=1)
    num_steps: int = option(5, "leapfrog steps of a local move", ge=1)
    num_starts: int = option(1024, NUM_STARTS, ge=2)
    num_first_steps: int = option(10, "gradients of each of its descents", ge=1)
    num_descent_steps: int = option(60, "further gradients at each mode kept", ge=1)
    num_modes: int | None = option(
        None,
        "the most modes that it keeps; by default 256, or fewer where their "
        "covariances, of more than 32 coordinates, would fill the cache",
        ge=1,
    )
    step_size: float | None = option(
        None, "step of the local moves, in widths of a mode", gt=0, tuned=True
    )


class MultiscaleState(NamedTuple):
    """A draw (a pytree), its log density, and the gradient there (a pytree)."""

    position: Position
    logdensity: jax.Array
    logdensity_grad: Position


class MultiscaleInfo(NamedTuple):
    """Mean acceptance probabilities by kind of move, and what the global draws told.

    acceptance_rate, jump_rate, global_rate
        Of the local moves, the jumps, and the draws of q.
    log_importance
        log pi - log q at the draw.
    proposal_log_importance
        The same at each draw of q, `(num_rounds,)`; -inf outside the support.
    occupancy, tails
        Odds of the modes, `(modes,)`, and tails of q that the chain holds.
    is_divergent
        Whether it met a gradient that is not finite where the density is.
    """

    acceptance_rate: jax.Array
    jump_rate: jax.Array
    global_rate: jax.Array
    log_importance: jax.Array
    proposal_log_importance: jax.Array
    occupancy: jax.Array
    tails: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array


def init(position, logdensity_fn, rng_key=None, options=Options()) -> MultiscaleState:
    del rng_key, options
    return MultiscaleState(position, *jax.value_and_grad(logdensity_fn)(position))


def build_kernel(options=Options()):
    """Return `kernel(rng_key, state, logdensity_fn, **params)`.

    The parameters are those of `mixture_warmup`: `step_size` of the local moves, in
    widths of a mode, `mixture`, q in the coordinates u = (x - `center`) / `scale`, and
    `shifts` between its modes, which are `shift_share` of the jumps.
    """
    num_rounds = options.num_rounds

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        center,
        scale,
        mixture,
        shifts,
        shift_share,
    ) -> tuple[MultiscaleState, MultiscaleInfo]:
        x, logdensity, unravel = flatten(state.position, logdensity_fn)
        evaluate = noticing_blind(
            counted_value_and_grad(standardised(logdensity, center, scale)),
            state.logdensity,
        )
        grad, _ = ravel_pytree(state.logdensity_grad)
        start = chain_point(
            (x - center) / scale, state.logdensity, scale * grad, mixture
        )
        log_det = jnp.sum(jnp.log(scale))

        def one_move(i, carry):
            point, info, count = carry
            in_round, kind = i // len(MOVES), i % len(MOVES)
            keys = jax.random.split(jax.random.fold_in(rng_key, in_round), 5)

            def by_draw():
                return global_move(keys[0], point, mixture)

            def by_trajectory():
                short = _relative_step(keys[1], keys[2], in_round, x.dtype)
                return local_move(keys[3], point, step_size * short, options.num_steps)

            def by_jump():
                return jump_move(keys[4], point, mixture, shifts, shift_share)

            # the index is the same in all chains, so that each makes one proposal
            proposal = jax.lax.switch(kind, (by_draw, by_trajectory, by_jump))
            new, end, rate, count = follow(point, proposal, evaluate, mixture, count)
            info = _added(info, in_round, kind, rate, point, end, log_det)
            return new, info, count

        info = _no_info(num_rounds, mixture, x.dtype)
        spent = Spent(jnp.asarray(0), jnp.asarray(False))
        point, info, spent = jax.lax.fori_loop(
            0, num_rounds * len(MOVES), one_move, (start, info, spent)
        )
        info = info._replace(
            log_importance=point.logdensity - point.mixture.log_density + log_det,
            is_divergent=spent.blind,
            num_grad_evals=spent.evaluations,
        )
        position = unravel(center + scale * point.u)
        grad = unravel(point.grad / scale)
        return MultiscaleState(position, point.logdensity, grad), info

    return kernel


def _relative_step(jitter_key, short_key, i, dtype) -> jax.Array:
    """Draw the step size of a local move in round `i`, in units of `step_size`."""
    jitter = jax.random.uniform(jitter_key, (), dtype, LEAST_JITTER, 1.0)
    short = (i > 0) & (jax.random.uniform(short_key) < SHORT_SHARE)
    return jnp.where(short, SHORT, jitter)


def _no_info(num_rounds: int, mixture, dtype) -> MultiscaleInfo:
    none = jnp.zeros((), dtype)
    return MultiscaleInfo(
        acceptance_rate=none,
        jump_rate=none,
        global_rate=none,
        log_importance=none,
        proposal_log_importance=jnp.zeros(num_rounds, dtype),
        occupancy=jnp.zeros_like(mixture.modes.log_weight),
        tails=jnp.zeros(len(TAILS), dtype),
        is_divergent=jnp.asarray(False),
        num_grad_evals=jnp.asarray(0),
    )


def _added(info: MultiscaleInfo, i, kind, rate, start, end, log_det):
    """Add a move of round `i` from `start`, with acceptance `rate`, to the means.

    Args:
        end: what it proposed.
        log_det: of the coordinates u.
    """
    is_draw, is_local, is_jump = (kind == number for number in range(len(MOVES)))
    ratios = info.proposal_log_importance
    share = 1 / ratios.size

    # where a draw of q leads is accepted or not: both are known, which says more
    def held(before, after):
        return share * is_draw * ((1 - rate) * before + rate * jnp.nan_to_num(after))

    occupancy, tails = jax.tree.map(held, odds(start.mixture), odds(end.mixture))
    ratio = end.logdensity - end.mixture.log_density + log_det
    finite = is_finite(end.u, end.logdensity, end.grad, ratio)
    ratio = jnp.where(finite, ratio, -jnp.inf)
    # the first round has no short steps
    first = is_local & (i == 0)
    return info._replace(
        acceptance_rate=jnp.where(first, rate, info.acceptance_rate),
        jump_rate=info.jump_rate + share * is_jump * rate,
        global_rate=info.global_rate + share * is_draw * rate,
        proposal_log_importance=ratios.at[i].set(jnp.where(is_draw, ratio, ratios[i])),
        occupancy=info.occupancy + occupancy,
        tails=info.tails + tails,
    )


def warmup(options=Options()) -> Warmup:
    return mixture_warmup(
        options.num_starts,
        options.num_first_steps,
        options.num_descent_steps,
        options.num_modes,
    )


def gradients(options: Options, params: dict, target) -> int:
    """Count the gradients of a transition: one a leapfrog step, a jump and a draw."""
    del params, target
    return options.num_rounds * (options.num_steps + 2)


def findings(params: dict) -> dict[str, jax.Array]:
    return {"num_modes": number_of(params["mixture"].modes)}


def concerns(params: dict) -> list[str]:
    """What the pilot's modes say against it, for the user to read."""
    # NumPy has nothing to compile
    live = np.isfinite(params["mixture"].modes.log_weight)
    num_modes = live.shape[-1]
    found = int(np.max(np.sum(live, axis=-1)))
    if found <= FULL * num_modes:
        return []
    return [
        f"The pilot has found {found} modes and keeps at most {num_modes}, so that "
        "some may be missing. If chains disagree about the weights of the modes, write "
        f"num_modes={4 * num_modes}, and a larger num_starts."
    ]


SPEC = KernelSpec(
    name="multiscale",
    family="multiscale",
    summary="exact jumps between a pilot's modes, Hamiltonian moves inside; evidence",
    paper="Tierney 1994; Pompe, Holmes and Latuszynski 2020",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    concerns=concerns,
    findings=findings,
    draws="chain",
    suits=separate_modes,
    guarantee="exact",
    gradients=gradients,
    collects=("log_importance", "proposal_log_importance"),
    recommended=True,
)
