"""Three exact moves on a multimodal posterior, with a mixture q at its modes.

- Local: with mode j drawn from its odds r_j(u), L leapfrog steps of Hamiltonian
  dynamics in the metric of j, accepted on pi(u) r_j(u). The mode is an auxiliary
  variable that stays as it is, so the metric may depend on where u lies.
- Jump, by transport: u' = mu_k + C_k^(1/2) C_j^(-1/2) (u - mu_j), with j from r_j(u)
  and k from the weights of q, accepted with the Jacobian and the odds of both choices.
- Jump, by a shift: u' = u + mu_k - mu_j, with a pair of modes that are near to each
  other drawn uniformly in either order, accepted on the ratio of pi. It also leads from
  a mode that q does not know to another (`kernels.multiscale.shifts`).
- Global: a draw of q, accepted on the ratio of pi / q (independence Metropolis).

Each leaves the posterior invariant. Gradients: L, 1 and 1. A move first proposes
without asking the posterior; following it and accepting it are then the same for all,
so that a program holds the model's gradient once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.multiscale.proposal import (
    Mixture,
    MixtureAt,
    draw,
    evaluate_mixture,
)
from nutfree.kernels.multiscale.shifts import Shifts
from nutfree.modes.mixture import choose, into_axes, mode_at, out_of_axes, transported
from nutfree.numerics.evaluation import is_finite, select


class ChainPoint(NamedTuple):
    """A point `u`, `(d,)`, with its log density and gradient, and q evaluated there."""

    u: jax.Array
    logdensity: jax.Array
    grad: jax.Array
    mixture: MixtureAt


class Proposal(NamedTuple):
    """A move before the posterior is asked.

    u : where it leads, or where its trajectory starts.
    momentum, step_size, num_steps : of the trajectory, in the metric of `mode`; a move
        to one point has momentum and step size 0.
    mode : the index of a mode.
    log_constant : log of the part of the acceptance ratio that is known already.
    ends_in_mode, ends_in_mixture : whether the odds of `mode`, and 1 / q, at the end
        are factors of it.
    accept_key : decides.
    """

    u: jax.Array
    momentum: jax.Array
    step_size: jax.Array
    num_steps: jax.Array
    mode: jax.Array
    log_constant: jax.Array
    ends_in_mode: jax.Array
    ends_in_mixture: jax.Array
    accept_key: jax.Array


def chain_point(u, logdensity, grad, mixture: Mixture) -> ChainPoint:
    """Evaluate the mixture at a point whose log density and gradient are known."""
    return ChainPoint(u, logdensity, grad, evaluate_mixture(mixture, u))


def follow(start: ChainPoint, proposal: Proposal, evaluate, mixture: Mixture, count):
    """Go where a proposal leads, and accept it or stay.

    Args:
        start: where the chain is.
        proposal: of one of the moves.
        evaluate: `(u, count) -> (log density, gradient, count)`.
        mixture: q.
        count: gradients so far.

    Returns:
        `(point, end, acceptance probability, count)`, with what was proposed as `end`.
        A point that is not finite is refused.
    """
    mode = mode_at(mixture.modes, proposal.mode)
    step_size = proposal.step_size
    # so turned that the order and the signs of the axes do not matter
    momentum = into_axes(mode.axes, proposal.momentum)

    def force(grad):
        return mode.width * into_axes(mode.axes, grad)

    def leap(_, carry):
        u, _, grad, velocity, count = carry
        u = u + step_size * out_of_axes(mode.axes, mode.width * velocity)
        value, grad, count = evaluate(u, count)
        return u, value, grad, velocity + step_size * force(grad), count

    velocity = momentum + 0.5 * step_size * force(start.grad)
    carry = (proposal.u, *start[1:3], velocity, jax.tree.map(jnp.asarray, count))
    u, value, grad, velocity, count = jax.lax.fori_loop(
        0, proposal.num_steps, leap, carry
    )
    end = chain_point(u, value, grad, mixture)
    velocity = velocity - 0.5 * step_size * force(grad)
    log_ratio = value - start.logdensity + proposal.log_constant
    log_ratio = log_ratio + 0.5 * jnp.sum(momentum**2 - velocity**2)
    log_odds = _log_odds(end, proposal.mode)
    log_ratio = log_ratio + jnp.where(proposal.ends_in_mode, log_odds, 0.0)
    log_q = end.mixture.log_density
    log_ratio = log_ratio - jnp.where(proposal.ends_in_mixture, log_q, 0.0)
    finite = is_finite(u, value, grad, log_ratio)
    rate = jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
    accepted = jax.random.uniform(proposal.accept_key) < rate
    return select(accepted, end, start), end, rate, count


def _log_odds(point: ChainPoint, j) -> jax.Array:
    return jax.nn.log_softmax(point.mixture.log_shares)[j]


def local_move(rng_key, start: ChainPoint, step_size, num_steps: int) -> Proposal:
    """Propose a Hamiltonian trajectory in the metric of a mode that `u` may belong to.

    Args:
        rng_key: a key.
        start: where the chain is.
        step_size: in widths of the mode.
        num_steps: leapfrog steps.
    """
    mode_key, momentum_key, accept_key = jax.random.split(rng_key, 3)
    j = choose(mode_key, start.mixture.log_shares)
    return Proposal(
        start.u,
        jax.random.normal(momentum_key, start.u.shape, start.u.dtype),
        step_size,
        jnp.asarray(num_steps),
        j,
        -_log_odds(start, j),
        jnp.asarray(True),
        jnp.asarray(False),
        accept_key,
    )


def jump_move(
    rng_key, start: ChainPoint, mixture: Mixture, shifts: Shifts, shift_share
) -> Proposal:
    """Propose another mode, by a shift with probability `shift_share`."""
    shift_key, from_key, to_key, accept_key = jax.random.split(rng_key, 4)
    shift, by_shift = _draw_shift(shift_key, shifts, shift_share)
    modes = mixture.modes
    j = choose(from_key, start.mixture.log_shares)
    k = choose(to_key, modes.log_weight)
    old, new = mode_at(modes, j), mode_at(modes, k)
    of_weights = old.log_weight - new.log_weight - _log_odds(start, j)
    of_transport = of_weights + new.log_volume - old.log_volume
    return _to_point(
        jnp.where(by_shift, start.u + shift, transported(start.u, old, new)),
        accept_key,
        mode=k,
        log_constant=jnp.where(by_shift, 0.0, of_transport),
        ends_in_mode=~by_shift,
    )


def global_move(rng_key, start: ChainPoint, mixture: Mixture) -> Proposal:
    """Propose a draw of q."""
    draw_key, accept_key = jax.random.split(rng_key)
    return _to_point(
        draw(draw_key, mixture),
        accept_key,
        log_constant=start.mixture.log_density,
        ends_in_mixture=jnp.asarray(True),
    )


def _to_point(u, accept_key, **fields) -> Proposal:
    none = Proposal(
        u,
        jnp.zeros_like(u),
        jnp.zeros((), u.dtype),
        jnp.asarray(1),
        jnp.asarray(0),
        jnp.zeros((), u.dtype),
        jnp.asarray(False),
        jnp.asarray(False),
        accept_key,
    )
    return none._replace(**fields)


def _draw_shift(rng_key, shifts: Shifts, share) -> tuple[jax.Array, jax.Array]:
    """Draw a shift in either direction, and whether to jump by it.

    Half of the shifts are of the second kind where there are any.
    """
    whether_key, kind_key, which_key, sign_key = jax.random.split(rng_key, 4)
    by_shift = (jax.random.uniform(whether_key) < share) & (shifts.number[0] > 0)
    kind = jnp.where(shifts.number[1] > 0, jax.random.randint(kind_key, (), 0, 2), 0)
    i = jax.random.randint(which_key, (), 0, jnp.maximum(shifts.number[kind], 1))
    sign = jax.random.rademacher(sign_key, (), shifts.vectors.dtype)
    return sign * shifts.vectors[kind, i], by_shift
