"""Metropolis-adjusted moves on the posterior end an annealed path.

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

from typing import Any, NamedTuple

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

#: Number of parts, each half as long as the next, of `Polished.log_densities`.
NUM_PARTS = 5
#: Factors of the step size, in turn; they depend on nothing but the turn.
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
    spent: Any


def start_at(
    u: jax.Array, otherwise: Point, evaluate, count: Any
) -> tuple[Point, jax.Array, Any]:
    """`(point, lost, count)`: the point at `u`, or another if that is not finite."""
    value, grad, count = evaluate(u, count)
    point = Point(u, value, grad)
    lost = ~is_finite(point)
    return select(lost, otherwise, point), lost, count


class _PointAmongModes(NamedTuple):
    """A point, and what the modes say of it.

    shares : (modes,), log density of each mode there, weight included.
    heavy : log density of the Student-t mixture there.
    """

    point: Point
    shares: jax.Array
    heavy: jax.Array


class _MoveKind(NamedTuple):
    """Which move is made: a jump or a Langevin step, a fresh draw if it is a jump.

    turn : what a Langevin step's size is multiplied by.
    """

    jumps: jax.Array
    fresh: jax.Array
    turn: jax.Array


class _Tally(NamedTuple):
    """Sums over the moves so far.

    rates, made : (2,), acceptance probabilities and moves, of steps and of jumps.
    parts : (2, NUM_PARTS), moves and their log densities, of each part of the moves.
    """

    rates: jax.Array
    made: jax.Array
    parts: jax.Array


def polish(
    rng_key: jax.Array,
    point: Point,
    evaluate,
    modes: Modes,
    *,
    step_size: float | jax.Array,
    num_steps: int | jax.Array,
    num_jumps: int,
    count: Any = 0,
) -> Polished:
    """Make `num_steps` Langevin steps with `num_jumps` jumps spread among them.

    Args:
        rng_key: a key.
        point: the start.
        evaluate: `(u, count) -> (log density, gradient, count)`.
        modes: where the metric comes from, and where the jumps go.
        step_size: h, in units of the mode's own widths.
        count: evaluations so far, as `evaluate` counts them.
    """
    num_moves = num_steps + num_jumps
    log_choice = _log_choice(modes)
    turns = jnp.asarray(TURNS, point.u.dtype)

    def move(i, carry):
        here, tally, count = carry
        jumped = i * num_jumps // num_moves
        jumps = (i + 1) * num_jumps // num_moves > jumped
        kind = _MoveKind(jumps, jumps & (jumped % 2 == 1), turns[i % len(TURNS)])
        *keys, accept_key = jax.random.split(jax.random.fold_in(rng_key, i), 5)
        new, log_ratio, count = _propose(
            keys, here, kind, step_size * kind.turn, modes, log_choice, evaluate, count
        )
        log_ratio = jnp.where(is_finite(new.point, log_ratio), log_ratio, -jnp.inf)
        rate = jnp.exp(jnp.minimum(log_ratio, 0.0))
        accepted = jax.random.uniform(accept_key) < rate
        here = select(accepted, new, here)
        part = _part_of_moves(i, num_moves)
        tally = _with_move(tally, kind, rate, part, here.point.value)
        return here, tally, count

    none = jnp.zeros(2, point.value.dtype)
    tally = _Tally(none, none, jnp.zeros((2, NUM_PARTS), point.value.dtype))
    count = jax.tree.map(jnp.asarray, count)
    start = (_among_modes(point, modes, log_choice), tally, count)
    here, tally, count = jax.lax.fori_loop(0, num_moves, move, start)
    # a kind of move that was never made has no rate
    rates = tally.rates / tally.made
    log_densities = tally.parts[1] / tally.parts[0]
    return Polished(here.point, rates[0], rates[1], log_densities, count)


def _among_modes(point: Point, modes: Modes, log_choice) -> _PointAmongModes:
    z = in_widths(modes, point.u)
    heavy = heavy_log_density_at(modes, log_choice, z)
    return _PointAmongModes(point, log_shares_at(modes, z), heavy)


def _propose(
    keys,
    here: _PointAmongModes,
    kind: _MoveKind,
    step_size,
    modes,
    log_choice,
    evaluate,
    count,
) -> tuple[_PointAmongModes, jax.Array, jax.Array]:
    """`(proposal, log acceptance ratio, count)` of a move of this kind."""
    noise_key, from_key, to_key, fresh_key = keys
    point = here.point
    j = choose(from_key, here.shares)
    k = choose(to_key, log_choice)
    old = mode_at(modes, jnp.where(kind.jumps, j, jnp.argmax(here.shares)))
    target = mode_at(modes, k)
    noise = jax.random.normal(noise_key, point.u.shape, point.u.dtype)
    u = jnp.where(
        kind.jumps,
        transported(point.u, old, target),
        _langevin(point, old, step_size, noise),
    )
    u = jnp.where(kind.fresh, heavy_draw(fresh_key, modes, k), u)
    value, grad, count = evaluate(u, count)
    new = _among_modes(Point(u, value, grad), modes, log_choice)

    there = mode_at(modes, jnp.argmax(new.shares))
    residual = _residual(new.point, there, step_size, point.u)
    langevin_ratio = (
        0.5 * jnp.sum(noise**2 - residual**2) + old.log_volume - there.log_volume
    )
    jump_ratio = (
        target.log_volume
        - old.log_volume
        + (jax.nn.log_softmax(new.shares)[k] - log_choice[k])
        - (jax.nn.log_softmax(here.shares)[j] - log_choice[j])
    )
    jump_ratio = jnp.where(kind.fresh, here.heavy - new.heavy, jump_ratio)
    ratio = jnp.where(kind.jumps, jump_ratio, langevin_ratio)
    return new, value - point.value + ratio, count


def _part_of_moves(i: jax.Array, num_moves) -> jax.Array:
    """Which half of a half ... move `i` is in.

    It is how often i + 1 can be doubled within the number of moves.
    """
    goes = num_moves // (i + 1)
    return jnp.sum(goes >= 2 ** jnp.arange(1, NUM_PARTS))


def _with_move(tally: _Tally, kind: _MoveKind, rate, part, value) -> _Tally:
    kinds = jnp.stack([~kind.jumps & (kind.turn == 1), kind.jumps])
    new = jnp.stack([jnp.ones_like(rate), value])
    return _Tally(
        tally.rates + jnp.where(kinds, rate, 0),
        tally.made + kinds,
        tally.parts.at[:, part].add(new),
    )


def _langevin(point: Point, mode: Mode, step_size, noise) -> jax.Array:
    drift = 0.5 * step_size * mode.width * into_axes(mode.axes, point.grad)
    # the noise is turned, so that the order and the signs of the axes do not matter
    noise = into_axes(mode.axes, noise)
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
