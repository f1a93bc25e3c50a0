"""The search for the separate modes of a posterior: many cheap starts, in rounds.

From each start a quasi-Newton descent of -log pi makes a bounded number of gradients,
and the curvature at its end makes the end a candidate for a mode. A round makes up to
32 descents at once, and there are three phases of rounds:

    STARTS   from the starts, while they find modes,
    MODES    from probes, points at which the log density exceeds what the known modes
             explain, while they find modes,
    MASSES   short ones from the probes that are still unexplained, to places that
             outweigh all modes: a funnel's mode is where there is hardly any mass.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.modes.candidates import (
    UNEXPLAINED,
    Candidates,
    laplace_at,
    newton_decrement,
    no_candidates,
    unexplained,
)
from nutfree.modes.starts import far_apart, median_and_spread, starts_and_probes
from nutfree.numerics.descent import descend
from nutfree.numerics.evaluation import counted_value_and_grad, flatten
from nutfree.target import LogDensity, Target

#: The phases of the search, in their order.
STARTS, MODES, MASSES = 0, 1, 2
#: The most descents of a round, made side by side.
NUM_DESCENTS = 32
#: Descents from the starts that are made whether or not they find modes, at most.
MIN_DESCENTS = 256
#: The most rounds of each phase after the first.
MAX_ROUNDS = 8
#: Squared length of a Newton step, in widths, above which an end is no mode.
ARRIVED = 0.1
#: Nats of log mass above that of all modes with which a place counts though no mode.
OUTWEIGHS = 1.0
#: Gradients of a descent to such a place; more would leave it for a mode.
NUM_MASS_STEPS = 10


@dataclass(frozen=True)
class Effort:
    """How much work a search does.

    Args:
        num_starts: number of starts.
        num_steps: gradients of each descent.
        num_modes: the most modes that are kept.
        num_first_steps: where it is not 0, every start makes only so many steps, and
            of the ends, those that are far apart first, as many make the rest as may be
            kept, and further ones while they find modes.
        num_probes: further points like the starts, at which the log density is compared
            with that of the modes.
    """

    num_starts: int = 128
    num_steps: int = 60
    num_modes: int = 32
    num_first_steps: int = 0
    num_probes: int = 0

    @property
    def round_size(self) -> int:
        return min(NUM_DESCENTS, self.num_starts)

    @property
    def max_start_rounds(self) -> int:
        return -(-self.num_starts // self.round_size)

    @property
    def min_start_rounds(self) -> int:
        if not self.num_first_steps:
            return self.max_start_rounds
        needed = -(-min(self.num_modes, MIN_DESCENTS) // self.round_size)
        return min(self.max_start_rounds, needed)

    @property
    def num_candidates(self) -> int:
        """Room for candidates while the search goes on."""
        return max(self.num_modes, self.min_start_rounds * self.round_size)


class Search(NamedTuple):
    """What a search found.

    origin, unit : (d,), the candidates are in coordinates u = (x - origin) / unit.
    candidates : the modes found, those of weight above zero, and others.
    logdensity : a function of u.
    num_grad_evals : gradients spent; a product of the curvature with a vector is two,
        and a probe's log density one.
    """

    origin: jax.Array
    unit: jax.Array
    candidates: Candidates
    logdensity: LogDensity
    num_grad_evals: jax.Array


def standardised(
    logdensity: LogDensity, center: jax.Array, scale: jax.Array
) -> LogDensity:
    """Return the log density as a function of u = (x - center) / scale."""
    return lambda u: logdensity(center + scale * u)


def search(rng_key: jax.Array, position: Any, target: Target, effort: Effort) -> Search:
    """Search for the separate modes of a target; traceable.

    Args:
        rng_key: a key.
        position: one of the starts, and the centre of the others where the target has
            no prior to draw them from.
        target: the posterior.
        effort: how much work to do.
    """
    x, logdensity, _ = flatten(position, target)
    start_key, sign_key = jax.random.split(rng_key)
    starts, probes = starts_and_probes(
        start_key, x, target, effort.num_starts, effort.num_probes
    )
    origin, unit = median_and_spread(starts)
    scaled = standardised(logdensity, origin, unit)
    starts, probes = (starts - origin) / unit, (probes - origin) / unit
    starts, first_gradients = _after_first_steps(scaled, starts, effort)
    problem = _Problem(scaled, starts, probes, sign_key, effort)
    state = _before_rounds(problem)
    state = jax.lax.while_loop(lambda s: s.more, partial(_round, problem), state)
    spent = effort.num_probes + first_gradients + state.num_grad_evals
    return Search(origin, unit, state.candidates, scaled, spent)


class _Problem(NamedTuple):
    """What stays the same in all rounds; starts and probes are in standard units."""

    logdensity: LogDensity
    starts: jax.Array
    probes: jax.Array
    sign_key: jax.Array
    effort: Effort


class _Rounds(NamedTuple):
    """What the rounds so far have found.

    candidates, num_modes : the best of the ends, and how many are modes of their own.
    heaviest : log mass of the heaviest of them.
    probe_values : log density at each probe; -inf where a descent has begun.
    excess : by how much that is above what the modes explain.
    phase, more : what the next round does, and whether there is one.
    i, probe_rounds, num_grad_evals : rounds, those of them from probes, and gradients.
    """

    candidates: Candidates
    num_modes: jax.Array
    heaviest: jax.Array
    probe_values: jax.Array
    excess: jax.Array
    phase: jax.Array
    more: jax.Array
    i: jax.Array
    probe_rounds: jax.Array
    num_grad_evals: jax.Array


def _before_rounds(problem: _Problem) -> _Rounds:
    room, dim = problem.effort.num_candidates, problem.starts.shape[1]
    nothing = no_candidates(jnp.resize(problem.starts, (room, dim)))
    values = jax.lax.map(problem.logdensity, problem.probes, batch_size=256)
    none = jnp.asarray(0)
    return _Rounds(
        candidates=nothing,
        num_modes=none,
        heaviest=nothing.values[0],
        probe_values=values,
        excess=values,
        phase=jnp.asarray(STARTS),
        more=jnp.asarray(True),
        i=none,
        probe_rounds=none,
        num_grad_evals=none,
    )


def _round(problem: _Problem, state: _Rounds) -> _Rounds:
    """Descend from some points, and merge the ends with what was found before."""
    points, probe_values = _next_points(problem, state)
    new, spent = _descents(problem, state, points)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), state.candidates, new)
    best = jnp.argsort(-both.weights)[: problem.effort.num_candidates]
    candidates = jax.tree.map(lambda a: a[best], both)
    num_modes = jnp.sum(candidates.weights > 0)
    excess = unexplained(problem.probes, probe_values, candidates)
    heaviest = jnp.max(candidates.log_mass)
    probe_rounds = state.probe_rounds + (state.phase > STARTS)
    phase = _next_phase(problem, state, num_modes, probe_rounds)
    return _Rounds(
        candidates=candidates,
        num_modes=num_modes,
        heaviest=jnp.where(state.phase == MASSES, state.heaviest, heaviest),
        probe_values=probe_values,
        excess=excess,
        phase=phase,
        more=(phase == STARTS) | (jnp.any(excess > UNEXPLAINED) & (phase <= MASSES)),
        i=state.i + 1,
        probe_rounds=probe_rounds,
        num_grad_evals=state.num_grad_evals + spent,
    )


def _next_points(problem: _Problem, state: _Rounds) -> tuple[jax.Array, jax.Array]:
    """Choose where the round's descents begin.

    Returns:
        `(points, probe_values)`.
    """
    effort = problem.effort
    size = effort.round_size
    turn = state.i * size + jnp.arange(size)
    points = problem.starts[turn % effort.num_starts]
    if not effort.num_probes:
        return points, state.probe_values
    chosen = far_apart(problem.probes, state.excess, size)
    from_starts = state.phase == STARTS
    points = jnp.where(from_starts, points, problem.probes[chosen])
    # a descent from the same point would end in the same mode
    used = state.probe_values.at[chosen].set(-jnp.inf)
    return points, jnp.where(from_starts, state.probe_values, used)


def _descents(
    problem: _Problem, state: _Rounds, points: jax.Array
) -> tuple[Candidates, jax.Array]:
    """Descend from each point; of the ends, those that the phase is for count.

    Returns:
        `(candidates, gradients)`.
    """
    num_steps = jnp.where(
        state.phase == MASSES, NUM_MASS_STEPS, problem.effort.num_steps
    )
    evaluate = counted_value_and_grad(problem.logdensity)
    ends, values, gradients, counts = jax.vmap(
        lambda u: descend(evaluate, u, num_steps)
    )(points)
    key = jax.random.fold_in(problem.sign_key, state.i)
    new, count = laplace_at(problem.logdensity, ends, values, key)
    step = newton_decrement(gradients, new)
    arrived = (state.phase == STARTS) | (step < ARRIVED)
    heavy = new.log_mass > state.heaviest + OUTWEIGHS
    counts_as_mode = jnp.where(state.phase == MASSES, heavy, arrived)
    new = new._replace(values=jnp.where(counts_as_mode, new.values, -jnp.inf))
    return new, jnp.sum(counts) + count


def _next_phase(problem: _Problem, state: _Rounds, num_modes, probe_rounds):
    """Stay in the phase while it finds modes, within its bounds on rounds."""
    effort, phase = problem.effort, state.phase
    may_go_on = jnp.where(
        phase == STARTS,
        state.i + 1 < effort.max_start_rounds,
        probe_rounds < phase * MAX_ROUNDS,
    )
    again = (num_modes > state.num_modes) & may_go_on
    must = (phase == STARTS) & (state.i + 1 < effort.min_start_rounds)
    return jnp.where(again | must, phase, phase + 1)


def _after_first_steps(logdensity, starts, effort: Effort):
    """Make the first steps from every start, and order the ends, far apart first.

    Returns:
        `(starts, gradients)`.
    """
    if not effort.num_first_steps:
        return starts, 0
    evaluate = counted_value_and_grad(logdensity)
    ends, values, _, counts = jax.vmap(
        lambda u: descend(evaluate, u, effort.num_first_steps)
    )(starts)
    return ends[far_apart(ends, values, effort.num_starts)], jnp.sum(counts)
