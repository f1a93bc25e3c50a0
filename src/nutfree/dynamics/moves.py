"""Three exact moves on a multimodal posterior, with a mixture q at its modes.

- Local: with mode j drawn from its odds r_j(u), L leapfrog steps of Hamiltonian
  dynamics in the metric of j, accepted on pi(u) r_j(u). The mode is an auxiliary
  variable that stays as it is, so the metric may depend on where u lies.
- Transport: u' = mu_k + C_k^(1/2) C_j^(-1/2) (u - mu_j), with j from r_j(u) and k from
  the weights of q, accepted with the Jacobian and the odds of both choices.
- Global: a draw of q, accepted on the ratio of pi / q (independence Metropolis).

Each leaves the posterior invariant. Gradients: L, 1 and 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.dynamics import mixture as mix
from nutfree.dynamics.evaluation import is_finite, select
from nutfree.dynamics.mixture import Mixture
from nutfree.dynamics.modes import into_axes, log_shares, out_of_axes
from nutfree.dynamics.polish import Point, mode_at, transported


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


def _metropolis(rng_key, new: Point, old: Point, log_ratio):
    """`(point, acceptance probability)`; a point that is not finite is refused."""
    finite = is_finite(new, log_ratio)
    rate = jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
    return select(jax.random.uniform(rng_key) < rate, new, old), rate


def local_move(
    rng_key, point: Point, evaluate, mixture: Mixture, *, step_size, num_steps, count
):
    """One Hamiltonian trajectory in the metric of a mode that `u` may belong to.

    Args:
        rng_key: a key.
        point: where the chain is.
        evaluate: `(u, count) -> (log density, gradient, count)`.
        mixture: q.
        step_size: in widths of the mode.
        num_steps: leapfrog steps.
        count: gradients so far.

    Returns:
        `(point, acceptance probability, count)`.
    """
    mode_key, momentum_key, accept_key = jax.random.split(rng_key, 3)
    old = log_shares(mixture.modes, point.u)
    j = jax.random.categorical(mode_key, old)
    mode = mode_at(mixture.modes, j)
    momentum = jax.random.normal(momentum_key, point.u.shape, point.u.dtype)
    # so turned that the order and the signs of the axes do not matter
    start = into_axes(mode.axes, momentum)

    def force(grad):
        return mode.width * into_axes(mode.axes, grad)

    def leap(_, carry):
        here, velocity, count = carry
        u = here.u + step_size * out_of_axes(mode.axes, mode.width * velocity)
        value, grad, count = evaluate(u, count)
        return Point(u, value, grad), velocity + step_size * force(grad), count

    velocity = start + 0.5 * step_size * force(point.grad)
    new, velocity, count = jax.lax.fori_loop(
        0, num_steps, leap, (point, velocity, jnp.asarray(count))
    )
    velocity = velocity - 0.5 * step_size * force(new.grad)
    shares = jax.nn.log_softmax(log_shares(mixture.modes, new.u))
    log_ratio = new.value - point.value + shares[j] - jax.nn.log_softmax(old)[j]
    log_ratio = log_ratio + 0.5 * jnp.sum(start**2 - velocity**2)
    return *_metropolis(accept_key, new, point, log_ratio), count


def transport_move(rng_key, point: Point, evaluate, mixture: Mixture, count):
    """From one mode to the like place in another: `(point, rate, count)`."""
    from_key, to_key, accept_key = jax.random.split(rng_key, 3)
    modes = mixture.modes
    old = log_shares(modes, point.u)
    j = jax.random.categorical(from_key, old)
    k = jax.random.categorical(to_key, modes.log_weight)
    here, there = mode_at(modes, j), mode_at(modes, k)
    u = transported(point.u, here, there)
    value, grad, count = evaluate(u, count)
    forth = modes.log_weight[k] + jax.nn.log_softmax(old)[j]
    back = modes.log_weight[j] + jax.nn.log_softmax(log_shares(modes, u))[k]
    log_ratio = value - point.value + back - forth
    log_ratio = log_ratio + jnp.sum(jnp.log(there.width / here.width))
    return *_metropolis(accept_key, Point(u, value, grad), point, log_ratio), count


def global_move(rng_key, point: Point, evaluate, mixture: Mixture, count):
    """A draw of q: `(point, Proposed, count)`."""
    draw_key, accept_key = jax.random.split(rng_key)
    u = mix.draw(draw_key, mixture)
    value, grad, count = evaluate(u, count)
    new = Point(u, value, grad)
    there = value - mix.log_density(mixture, u)
    here = point.value - mix.log_density(mixture, point.u)
    before, after = mix.shares(mixture, point.u), mix.shares(mixture, u)
    moved, rate = _metropolis(accept_key, new, point, there - here)
    occupancy, tails = jax.tree.map(
        lambda b, a: (1 - rate) * b + rate * jnp.nan_to_num(a), before, after
    )
    there = jnp.where(is_finite(new, there), there, -jnp.inf)
    return moved, Proposed(rate, there, occupancy, tails), count
