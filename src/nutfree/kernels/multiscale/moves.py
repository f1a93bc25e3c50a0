"""Three exact moves on a multimodal posterior, with a mixture q at its modes.

- Local: with mode j drawn from its odds r_j(u), L leapfrog steps of Hamiltonian
  dynamics in the metric of j, accepted on pi(u) r_j(u). The mode is an auxiliary
  variable that stays as it is, so the metric may depend on where u lies.
- Jump, by transport: u' = mu_k + C_k^(1/2) C_j^(-1/2) (u - mu_j), with j from r_j(u)
  and k from the weights of q, accepted with the Jacobian and the odds of both choices.
- Jump, by a shift: u' = u + mu_k - mu_j, with a pair of modes that are near to each
  other drawn uniformly in either order, accepted on the ratio of pi. Where modes are as
  many as there are combinations of a few wells, it leads from one that q does not know
  to another, and half of the shifts are what such differences are sums of.
- Global: a draw of q, accepted on the ratio of pi / q (independence Metropolis).

Each leaves the posterior invariant. Gradients: L, 1 and 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.multiscale import mixture as mix
from nutfree.kernels.multiscale.mixture import Mixture, Place
from nutfree.modes.record import (
    Shifts,
    choose,
    into_axes,
    mode_at,
    out_of_axes,
)
from nutfree.numerics.evaluation import is_finite, select
from nutfree.paths.polish import Point, transported


class Placed(NamedTuple):
    """A point, and what the mixture makes of it."""

    point: Point
    place: Place


def placed(point: Point, mixture: Mixture) -> Placed:
    return Placed(point, mix.place(mixture, point.u))


class Proposed(NamedTuple):
    """What a draw of q told, accepted or not.

    log_importance : log pi - log q there; -inf where pi is not finite.
    occupancy, tails : mean odds of the modes and of the tails after the move, over
        its acceptance.
    """

    acceptance_rate: jax.Array
    log_importance: jax.Array
    occupancy: jax.Array
    tails: jax.Array


def _metropolis(rng_key, new: Placed, old: Placed, log_ratio):
    """`(placed, acceptance probability)`; a point that is not finite is refused."""
    finite = is_finite(new.point, log_ratio)
    rate = jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
    return select(jax.random.uniform(rng_key) < rate, new, old), rate


def local_move(
    rng_key, start: Placed, evaluate, mixture: Mixture, *, step_size, num_steps, count
):
    """One Hamiltonian trajectory in the metric of a mode that `u` may belong to.

    Args:
        rng_key: a key.
        start: where the chain is.
        evaluate: `(u, count) -> (log density, gradient, count)`.
        mixture: q.
        step_size: in widths of the mode.
        num_steps: leapfrog steps.
        count: gradients so far.

    Returns:
        `(placed, acceptance probability, count)`.
    """
    mode_key, momentum_key, accept_key = jax.random.split(rng_key, 3)
    point = start.point
    j = choose(mode_key, start.place.log_shares)
    mode = mode_at(mixture.modes, j)
    momentum = jax.random.normal(momentum_key, point.u.shape, point.u.dtype)
    # so turned that the order and the signs of the axes do not matter
    momentum = into_axes(mode.axes, momentum)

    def force(grad):
        return mode.width * into_axes(mode.axes, grad)

    def leap(_, carry):
        here, velocity, count = carry
        u = here.u + step_size * out_of_axes(mode.axes, mode.width * velocity)
        value, grad, count = evaluate(u, count)
        return Point(u, value, grad), velocity + step_size * force(grad), count

    velocity = momentum + 0.5 * step_size * force(point.grad)
    new, velocity, count = jax.lax.fori_loop(
        0, num_steps, leap, (point, velocity, jnp.asarray(count))
    )
    velocity = velocity - 0.5 * step_size * force(new.grad)
    end = placed(new, mixture)
    log_ratio = new.value - point.value + _log_odds(end, j) - _log_odds(start, j)
    log_ratio = log_ratio + 0.5 * jnp.sum(momentum**2 - velocity**2)
    return *_metropolis(accept_key, end, start, log_ratio), count


def _log_odds(at: Placed, j) -> jax.Array:
    return jax.nn.log_softmax(at.place.log_shares)[j]


def jump_move(
    rng_key, start: Placed, evaluate, mixture: Mixture, shifts: Shifts, share, count
):
    """To the like place in another mode, by a shift with probability `share`.

    Returns:
        `(placed, acceptance probability, count)`.
    """
    shift_key, from_key, to_key, accept_key = jax.random.split(rng_key, 4)
    u, shifted = _shifted(shift_key, start.point.u, shifts, share)
    modes = mixture.modes
    j = choose(from_key, start.place.log_shares)
    k = choose(to_key, modes.log_weight)
    here, there = mode_at(modes, j), mode_at(modes, k)
    u = jnp.where(shifted, u, transported(start.point.u, here, there))
    value, grad, count = evaluate(u, count)
    end = placed(Point(u, value, grad), mixture)
    forth = modes.log_weight[k] + _log_odds(start, j)
    back = modes.log_weight[j] + _log_odds(end, k)
    by_transport = back - forth + there.log_volume - here.log_volume
    log_ratio = value - start.point.value + jnp.where(shifted, 0.0, by_transport)
    return *_metropolis(accept_key, end, start, log_ratio), count


def _shifted(rng_key, u, shifts: Shifts, share):
    """`u` after one of the shifts, and whether to go there."""
    whether_key, kind_key, which_key, way_key = jax.random.split(rng_key, 4)
    shifted = (jax.random.uniform(whether_key) < share) & (shifts.number[0] > 0)
    kind = jnp.where(shifts.number[1] > 0, jax.random.randint(kind_key, (), 0, 2), 0)
    i = jax.random.randint(which_key, (), 0, jnp.maximum(shifts.number[kind], 1))
    way = jax.random.rademacher(way_key, (), u.dtype)
    return u + way * shifts.between[kind, i], shifted


def global_move(rng_key, start: Placed, evaluate, mixture: Mixture, count):
    """A draw of q: `(placed, Proposed, count)`."""
    draw_key, accept_key = jax.random.split(rng_key)
    u = mix.draw(draw_key, mixture)
    value, grad, count = evaluate(u, count)
    end = placed(Point(u, value, grad), mixture)
    there = value - end.place.log_density
    here = start.point.value - start.place.log_density
    moved, rate = _metropolis(accept_key, end, start, there - here)
    occupancy, tails = jax.tree.map(
        lambda b, a: (1 - rate) * b + rate * jnp.nan_to_num(a),
        mix.odds(start.place),
        mix.odds(end.place),
    )
    there = jnp.where(is_finite(end.point, there), there, -jnp.inf)
    return moved, Proposed(rate, there, occupancy, tails), count
