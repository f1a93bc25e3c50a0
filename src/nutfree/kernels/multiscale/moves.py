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

Each leaves the posterior invariant. Gradients: L, 1 and 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.multiscale.proposal import (
    Mixture,
    MixtureAt,
    draw,
    evaluate_mixture,
    odds,
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


class GlobalInfo(NamedTuple):
    """What a draw of q told, accepted or not.

    log_importance : log pi - log q there; -inf where pi is not finite.
    occupancy, tails : mean odds of the modes and of the tails after the move, over
        its acceptance.
    """

    acceptance_rate: jax.Array
    log_importance: jax.Array
    occupancy: jax.Array
    tails: jax.Array


def chain_point(u, logdensity, grad, mixture: Mixture) -> ChainPoint:
    """Evaluate the mixture at a point whose log density and gradient are known."""
    return ChainPoint(u, logdensity, grad, evaluate_mixture(mixture, u))


def _metropolis(rng_key, new: ChainPoint, old: ChainPoint, log_ratio):
    """Accept or refuse; a point that is not finite is refused.

    Returns:
        `(point, acceptance probability)`.
    """
    finite = is_finite(new.u, new.logdensity, new.grad, log_ratio)
    rate = jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
    return select(jax.random.uniform(rng_key) < rate, new, old), rate


def _log_odds(point: ChainPoint, j) -> jax.Array:
    return jax.nn.log_softmax(point.mixture.log_shares)[j]


def local_move(
    rng_key,
    start: ChainPoint,
    evaluate,
    mixture: Mixture,
    *,
    step_size,
    num_steps,
    count,
):
    """Follow a Hamiltonian trajectory in the metric of a mode that `u` may belong to.

    Args:
        rng_key: a key.
        start: where the chain is.
        evaluate: `(u, count) -> (log density, gradient, count)`.
        mixture: q.
        step_size: in widths of the mode.
        num_steps: leapfrog steps.
        count: gradients so far.

    Returns:
        `(point, acceptance probability, count)`.
    """
    mode_key, momentum_key, accept_key = jax.random.split(rng_key, 3)
    j = choose(mode_key, start.mixture.log_shares)
    mode = mode_at(mixture.modes, j)
    momentum = jax.random.normal(momentum_key, start.u.shape, start.u.dtype)
    # so turned that the order and the signs of the axes do not matter
    momentum = into_axes(mode.axes, momentum)

    def force(grad):
        return mode.width * into_axes(mode.axes, grad)

    def leap(_, carry):
        u, _, grad, velocity, count = carry
        u = u + step_size * out_of_axes(mode.axes, mode.width * velocity)
        value, grad, count = evaluate(u, count)
        return u, value, grad, velocity + step_size * force(grad), count

    velocity = momentum + 0.5 * step_size * force(start.grad)
    carry = (*start[:3], velocity, jax.tree.map(jnp.asarray, count))
    u, value, grad, velocity, count = jax.lax.fori_loop(0, num_steps, leap, carry)
    end = chain_point(u, value, grad, mixture)
    velocity = velocity - 0.5 * step_size * force(end.grad)
    log_ratio = end.logdensity - start.logdensity + _log_odds(end, j)
    log_ratio = log_ratio - _log_odds(start, j)
    log_ratio = log_ratio + 0.5 * jnp.sum(momentum**2 - velocity**2)
    return *_metropolis(accept_key, end, start, log_ratio), count


def jump_move(
    rng_key,
    start: ChainPoint,
    evaluate,
    mixture: Mixture,
    shifts: Shifts,
    shift_share,
    count,
):
    """Jump to another mode, by a shift with probability `shift_share`.

    Returns:
        `(point, acceptance probability, count)`.
    """
    shift_key, from_key, to_key, accept_key = jax.random.split(rng_key, 4)
    shift, by_shift = _draw_shift(shift_key, shifts, shift_share)
    modes = mixture.modes
    j = choose(from_key, start.mixture.log_shares)
    k = choose(to_key, modes.log_weight)
    old, new = mode_at(modes, j), mode_at(modes, k)
    u = jnp.where(by_shift, start.u + shift, transported(start.u, old, new))
    value, grad, count = evaluate(u, count)
    end = chain_point(u, value, grad, mixture)
    forth = modes.log_weight[k] + _log_odds(start, j)
    back = modes.log_weight[j] + _log_odds(end, k)
    of_transport = back - forth + new.log_volume - old.log_volume
    log_ratio = value - start.logdensity + jnp.where(by_shift, 0.0, of_transport)
    return *_metropolis(accept_key, end, start, log_ratio), count


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


def global_move(rng_key, start: ChainPoint, evaluate, mixture: Mixture, count):
    """Propose a draw of q.

    Returns:
        `(point, GlobalInfo, count)`.
    """
    draw_key, accept_key = jax.random.split(rng_key)
    u = draw(draw_key, mixture)
    value, grad, count = evaluate(u, count)
    end = chain_point(u, value, grad, mixture)
    importance = value - end.mixture.log_density
    previous = start.logdensity - start.mixture.log_density
    point, rate = _metropolis(accept_key, end, start, importance - previous)
    occupancy, tails = jax.tree.map(
        lambda old, new: (1 - rate) * old + rate * jnp.nan_to_num(new),
        odds(start.mixture),
        odds(end.mixture),
    )
    finite = is_finite(u, value, grad, importance)
    importance = jnp.where(finite, importance, -jnp.inf)
    return point, GlobalInfo(rate, importance, occupancy, tails), count
