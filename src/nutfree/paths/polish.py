"""Metropolis-adjusted moves on the posterior that end an annealed path.

Langevin steps whose metric is the curvature of the mode nearest to u,

    u' = u + (h/2) C_j grad log pi(u) + sqrt(h C_j) xi,

repair the shape of the draws inside a mode; jumps from a mode j to a mode k,

    u' = mu_k + C_k^(1/2) C_j^(-1/2) (u - mu_j),

repair the weights of the modes, in turn with draws from a Student-t mixture at the
modes, which bring back what has gone astray. All leave the posterior invariant: a
Langevin step is reversed with the metric where it ends, a jump carries its Jacobian and
the odds of choosing j and k, a fresh draw its density. One gradient each. Two Langevin
steps in eight are far shorter, in turn, so that a path that ended where the density is
much narrower than its mode is not rejected for ever.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.modes.mixture import (
    Mode,
    Modes,
    choose,
    heavy_draw,
    heavy_log_density_at,
    in_widths,
    into_axes,
    log_shares_at,
    mode_at,
    out_of_axes,
    transported,
)
from nutfree.numerics.evaluation import is_finite, select

#: The moves are halved so often for what `Polished.log_densities` tells.
NUM_PARTS = 5
#: What the step size is multiplied by, in turn; it depends on nothing but the turn.
TURNS = (1.0, 1.0, 1.0, 1 / 16, 1.0, 1.0, 1.0, 1 / 256)


class Point(NamedTuple):
    """A position with its log density and gradient."""

    u: jax.Array
    value: jax.Array
    grad: jax.Array


class Polished(NamedTuple):
    """The last point, mean acceptance probabilities, and evaluations so far.

    Shortened Langevin steps do not count for the rate. The rate of a kind of move
    that was never made is NaN. The log densities, `(NUM_PARTS,)`, are means over the
    second half of the moves, the second half of what was before, and so on; NaN where
    there were none.
    """

    point: Point
    acceptance_rate: jax.Array
    jump_rate: jax.Array
    log_densities: jax.Array
    spent: jax.Array


def start_at(
    u: jax.Array, otherwise: Point, evaluate, count: jax.Array
) -> tuple[Point, jax.Array, jax.Array]:
    """`(point, lost, count)`: the point at `u`, or another if that is not finite."""
    value, grad, count = evaluate(u, count)
    point = Point(u, value, grad)
    lost = ~is_finite(point)
    return select(lost, otherwise, point), lost, count


def polish(
    rng_key: jax.Array,
    point: Point,
    evaluate,
    modes: Modes,
    *,
    step_size: float | jax.Array,
    num_steps: int | jax.Array,
    num_jumps: int,
    count: jax.Array | int = 0,
) -> Polished:
    """Make `num_steps` Langevin steps with `num_jumps` jumps spread among them.

    Args:
        rng_key: a key.
        point: the start.
        evaluate: `(u, count) -> (log density, gradient, count)`.
        modes: where the metric comes from, and where the jumps go.
        step_size: h, in units of the mode's own widths.
        count: evaluations so far.
    """
    num_moves = num_steps + num_jumps
    log_choice = _log_choice(modes)
    turns = jnp.asarray(TURNS, point.u.dtype)

    def move(i, carry):
        point, shares, heavy, rates, made, parts, count = carry
        noise_key, from_key, to_key, fresh_key, accept_key = jax.random.split(
            jax.random.fold_in(rng_key, i), 5
        )
        jumped = i * num_jumps // num_moves
        jumps = (i + 1) * num_jumps // num_moves > jumped
        fresh = jumps & (jumped % 2 == 1)
        j = choose(from_key, shares)
        k = choose(to_key, log_choice)
        here = mode_at(modes, jnp.where(jumps, j, jnp.argmax(shares)))
        target = mode_at(modes, k)
        turn = turns[i % len(TURNS)]
        step = step_size * turn
        noise = jax.random.normal(noise_key, point.u.shape, point.u.dtype)
        u = jnp.where(
            jumps,
            transported(point.u, here, target),
            _langevin(point, here, step, noise),
        )
        u = jnp.where(fresh, heavy_draw(fresh_key, modes, k), u)
        value, grad, count = evaluate(u, count)
        new, new_place = Point(u, value, grad), in_widths(modes, u)
        new_shares = log_shares_at(modes, new_place)

        there = mode_at(modes, jnp.argmax(new_shares))
        langevin_ratio = (
            0.5 * jnp.sum(noise**2 - _residual(new, there, step, point.u) ** 2)
            + here.log_volume
            - there.log_volume
        )
        jump_ratio = (
            target.log_volume
            - here.log_volume
            + (jax.nn.log_softmax(new_shares)[k] - log_choice[k])
            - (jax.nn.log_softmax(shares)[j] - log_choice[j])
        )
        new_heavy = heavy_log_density_at(modes, log_choice, new_place)
        jump_ratio = jnp.where(fresh, heavy - new_heavy, jump_ratio)
        log_ratio = value - point.value + jnp.where(jumps, jump_ratio, langevin_ratio)
        log_ratio = jnp.where(is_finite(new, log_ratio), log_ratio, -jnp.inf)
        rate = jnp.exp(jnp.minimum(log_ratio, 0.0))
        accepted = jax.random.uniform(accept_key) < rate
        point, shares, heavy = select(
            accepted, (new, new_shares, new_heavy), (point, shares, heavy)
        )
        kind = jnp.stack([~jumps & (turn == 1), jumps])
        rates, made = rates + jnp.where(kind, rate, 0), made + kind
        # which half of a half ...: as often as i + 1 goes into the number of moves
        goes = num_moves // (i + 1)
        part = jnp.sum(goes >= 2 ** jnp.arange(1, NUM_PARTS))
        parts = parts.at[:, part].add(jnp.stack([jnp.ones_like(rate), point.value]))
        return point, shares, heavy, rates, made, parts, count

    none = jnp.zeros(2, point.value.dtype)
    place = in_widths(modes, point.u)
    shares = log_shares_at(modes, place)
    heavy = heavy_log_density_at(modes, log_choice, place)
    parts = jnp.zeros((2, NUM_PARTS), point.value.dtype)
    start = (point, shares, heavy, none, none, parts, jnp.asarray(count))
    end = jax.lax.fori_loop(0, num_moves, move, start)
    point, _, _, rates, made, parts, count = end
    # a kind of move that was never made has no rate
    means = rates / made
    log_densities = parts[1] / parts[0]
    return Polished(point, means[0], means[1], log_densities, jnp.asarray(count))


def _langevin(point: Point, mode: Mode, step_size, noise) -> jax.Array:
    drift = 0.5 * step_size * mode.width * into_axes(mode.axes, point.grad)
    move = mode.width * (drift + jnp.sqrt(step_size) * noise)
    return point.u + out_of_axes(mode.axes, move)


def _residual(start: Point, mode: Mode, step_size, end) -> jax.Array:
    """The noise of the Langevin step from `start` to `end`."""
    drift = 0.5 * step_size * mode.width * into_axes(mode.axes, start.grad)
    moved = into_axes(mode.axes, end - start.u) / mode.width
    return (moved - drift) / jnp.sqrt(step_size)


def _log_choice(modes: Modes) -> jax.Array:
    """Where to jump: half by weight, half evenly, as a weight may be far too small."""
    log_weight = jax.nn.log_softmax(modes.log_weight)
    live = log_weight > jnp.max(log_weight) - 10.0
    return jnp.log(0.5 * jnp.exp(log_weight) + 0.5 * live / jnp.sum(live))
