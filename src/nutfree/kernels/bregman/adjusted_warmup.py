"""Warm-up of the adjusted Bregman kernels: units, a preconditioner, a step.

The pilot first climbs from a start that is far out. In the first half of its
transitions bounded sites are moved along by their logs and logits, whose moments tell
the tails of the coordinates, and scores tell the scales of real ones. From then on the
coordinates stay, but that scales are given up where the second half diverges. Windows
as Stan's give a preconditioner (`fisher`) and a step that meets the acceptance rate, in
the second half of the pilot and again in the host's warm-up.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.staged_adaptation import build_schedule
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from nutfree.kernels.bregman.coordinates import Kinds, enter, fitted, unfitted
from nutfree.kernels.bregman.reference import reference_at
from nutfree.kernels.bregman.scales import found_scales
from nutfree.numerics.descent import descend
from nutfree.numerics.evaluation import counted_value_and_grad, is_finite, select
from nutfree.numerics.moments import Moments, no_moments
from nutfree.numerics.preconditioning import solve_root, standard_deviations
from nutfree.warmup import fisher
from nutfree.warmup.base import AdaptationState, Warmup

#: Acceptance rate of a trajectory. An independent draw is cheapest between 0.55 and
#: 0.75, on 10 and 100 Laplace coordinates and on Gaussians.
ACCEPTANCE = 0.7
#: Part of a step by which a trajectory may be shorter than a whole number of them.
ROUNDED_UP = 0.2
#: Share of a pilot's last transitions above which scales that it found are given up.
MOST_DIVERGENT = 0.05
#: The parameters that are learned from what windows see.
LEARNT = ("factor", "reference")
#: Gradients between two checks of what the climb from a far start has gained.
CHUNK = 8
#: Most such checks.
MAX_CHUNKS = 16


class Seen(NamedTuple):
    """What a window has seen: points, scores there, and the forces outside of kinks.

    outside
        The mean of those forces, `(d,)`.
    product
        Sum of the inner products of a point and a force, both about their means.
    """

    sums: fisher.Sums
    outside: jax.Array
    product: jax.Array

    def plus(self, x, score, force) -> "Seen":
        sums = fisher.add(self.sums, x, score)
        change = force - self.outside
        mean = self.outside + change / jnp.maximum(sums.x.number, 1)
        product = self.product + jnp.sum((x - sums.x.mean) * change)
        added = sums.x.number > self.sums.x.number
        return select(added, Seen(sums, mean, product), self)

    def curvature(self, factor) -> jax.Array:
        """The mean curvature of the potential outside of kinks, in u, between 0 and 1.

        That of a Gaussian of covariance R R' is 1.
        """
        spread = self.sums.x.squares
        if factor.ndim == 2:
            half = solve_root(factor, spread)
            total = jnp.trace(solve_root(factor, half.T))
        else:
            total = jnp.sum(spread / jnp.square(factor))
        return jnp.clip(-self.product / total, 0.0, 1.0)


class AdjustedWarmupState(NamedTuple):
    """The step, dual averaging, what the window saw, and the schedule of windows."""

    step: jax.Array
    averaging: Any
    seen: Seen
    schedule: jax.Array  # (num_steps, 2): slow window?, last of its window?


class Pilot(NamedTuple):
    """The chain of the pilot, its counts, its positions, and the distances to the
    boundaries."""

    state: Any
    adapt: AdaptationState
    num_grad_evals: jax.Array
    num_density_evals: jax.Array
    positions: Moments
    distances: Moments


def adjusted_warmup(
    init_state: Callable,
    kernel: Callable,
    kinds_of: Callable,
    constants: dict[str, Any],
    num_pilot: int,
    duration: float,
    coordinates: Callable | None,
) -> Warmup:
    """Tune `step_size`, `factor`, `tails`, and `reference`.

    Args:
        init_state: `(position, target) -> state`.
        kernel: of `kernels.bregman.marbmumla`; its info has `visited` and `force`.
        kinds_of: `(position, split) -> Kinds` of the coordinates.
        constants: other parameters of the kernel.
        num_pilot: transitions of the pilot.
        duration: of a trajectory; also the longest step.
        coordinates: `(z, position, target, tails) -> (s, s -> position)`, which the
            reference is in; None where there is to be none.
    """
    da_init, da_update, da_final = dual_averaging_adaptation(ACCEPTANCE)
    num_first = num_pilot // 2

    def start(position, params, num_steps) -> AdaptationState:
        z = ravel_pytree(position)[0]
        schedule = jnp.asarray(build_schedule(max(num_steps, 1)), jnp.int32)
        averaging = jax.tree.map(jnp.asarray, da_init(params["step_size"]))
        none = jnp.zeros((), z.dtype)
        seen = Seen(fisher.no_sums(z.size, z.dtype), jnp.zeros_like(z), none)
        inner = AdjustedWarmupState(jnp.asarray(0), averaging, seen, schedule)
        return AdaptationState(params, position, inner=inner)

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        z, unravel = ravel_pytree(position)
        of = kinds_of(position, target.split)
        # no points of many coordinates, whose scales are not looked for
        kept = slice(None if min(of.scaled.sizes) else 0)
        nowhere = z[kept], jnp.zeros_like(z[kept])
        z, count = climb(counted_value_and_grad(lambda z: target(unravel(z))), z)
        position = unravel(z)
        params = referred(first_params(z, of), z, position, target)
        adapt = start(position, params, num_first)
        state, none = init_state(position, target), no_moments(z)
        pilot = Pilot(state, adapt, count, jnp.asarray(0), none, none)

        def transition(pilot, key) -> tuple[Pilot, tuple]:
            state, info = kernel(key, pilot.state, target, **pilot.adapt.params)
            adapt = update(pilot.adapt, state, info)
            z = ravel_pytree(state.position)[0]
            seen = pilot.positions, pilot.distances
            more = (
                seen[0].plus(z),
                seen[1].plus(jnp.exp(jnp.where(of.half_line, z, 0.0))),
            )
            settled = adapt.inner.step > num_first // 3
            point = info.visited[kept], info.force[kept]
            told = settled & info.is_accepted & is_finite(point)
            after = Pilot(
                state,
                adapt,
                pilot.num_grad_evals + info.num_grad_evals,
                pilot.num_density_evals + info.num_density_evals,
                *select(settled, more, seen),
            )
            seen = select(told, point, nowhere)
            return after, (*seen, told, info.is_divergent)

        keys = jax.random.split(rng_key, num_pilot)
        pilot, (*points, _) = jax.lax.scan(transition, pilot, keys[:num_first])
        plain = with_tails(final(pilot.adapt), pilot, of)
        params = with_scales(plain, pilot, tuple(points), of)
        params = referred(params, pilot.positions.mean, position, target)
        again = start(pilot.state.position, params, num_pilot - num_first)
        pilot = pilot._replace(adapt=again, positions=none)
        pilot, (*_, diverged) = jax.lax.scan(transition, pilot, keys[num_first:])
        # scales that hold where the first half was may not elsewhere
        late = diverged[diverged.size // 2 :]
        trusted = jnp.mean(late) <= MOST_DIVERGENT
        params = final(pilot.adapt)
        params = {k: select(trusted, v, plain.get(k, v)) for k, v in params.items()}
        params = referred(params, pilot.positions.mean, position, target)
        begun = start(pilot.state.position, params, num_steps)
        # the state at the start took a density as well
        return begun._replace(
            num_grad_evals=pilot.num_grad_evals,
            num_density_evals=pilot.num_density_evals + 1,
        )

    def referred(params, z, position, target) -> dict[str, Any]:
        """`params` with a reference whose kinks are those of the target at z."""
        if coordinates is None:
            return params
        s, position_of = coordinates(z, position, target, params["tails"])
        found = reference_at(target.split, s, position_of, params["factor"])
        return {**params, "reference": found}

    def first_params(z, of) -> dict[str, Any]:
        ones = jnp.ones_like(z)
        typed = jax.tree.map(
            lambda c: jnp.asarray(c, int if isinstance(c, int) else z.dtype), constants
        )
        return {
            "step_size": jnp.asarray(0.2 * z.size**-0.25, z.dtype),
            "factor": jnp.diag(ones) if z.size <= fisher.MAX_DENSE else ones,
            "tails": unfitted(of, z),
            **typed,
        }

    def update(adapt, state, info) -> AdaptationState:
        del state
        step, averaging, seen, schedule = adapt.inner
        slow, last = schedule[step] == 1
        # a NaN acceptance rate (nowhere to go) counts as a rejection; digits that step
        # and rate would amplify in each other until no two compilations agree are cut
        rate = jnp.round(jnp.nan_to_num(info.acceptance_rate), 3)
        averaging = da_update(averaging, rate)
        more = seen.plus(info.visited, info.force, info.outside)
        seen = select(slow & info.is_accepted, more, seen)
        learnt = {
            k: adapt.params[k] for k in ("factor", "reference") if k in adapt.params
        }

        # a loop of one turn or none, because a condition that is batched runs always;
        # what it learns from is its to empty, or a compiler moves the work out of it
        def window(_, carry):
            seen, old = carry
            new = select(seen.sums.x.number > 2, learn(seen, old), old)
            return jax.tree.map(jnp.zeros_like, seen), new

        turns = jnp.where(last, 1, 0)
        seen, learnt = jax.lax.fori_loop(0, turns, window, (seen, learnt))
        averaging = select(last, da_init(da_final(averaging)), averaging)
        step_size = whole(jnp.exp(averaging.log_step_size))
        params = {**adapt.params, "step_size": step_size, **learnt}
        inner = AdjustedWarmupState(step + 1, averaging, seen, schedule)
        new = adapt._replace(params=params, inner=inner)
        return jax.tree.map(
            lambda o, n: jnp.asarray(n, jnp.asarray(o).dtype), adapt, new
        )

    def final(adapt) -> dict[str, Any]:
        tuned = whole(da_final(adapt.inner.averaging))
        # without a single update the average is not defined
        step_size = jnp.where(adapt.inner.step > 0, tuned, adapt.params["step_size"])
        dtype = adapt.params["step_size"].dtype
        return {**adapt.params, "step_size": step_size.astype(dtype)}

    def whole(step_size):
        """The step next to this one of which a whole number makes a trajectory."""
        if constants["num_steps"]:
            return jnp.minimum(step_size, duration)
        return duration / jnp.maximum(jnp.ceil(duration / step_size - ROUNDED_UP), 1)

    return Warmup(init, update, final)


def learn(seen: Seen, old: dict[str, Any]) -> dict[str, Any]:
    """The factor, and where there is a reference its quadratic, that a window found."""
    # lower triangular, by which a point is turned into u
    factor = fisher.factor(seen.sums)
    factor = jnp.linalg.qr(factor.T, mode="r").T if factor.ndim == 2 else factor
    if "reference" not in old:
        return {"factor": factor}
    omega = jnp.sqrt(seen.curvature(factor))
    reference = old["reference"].recentred(
        seen.sums.x.mean, seen.outside, omega, factor
    )
    return {"factor": factor, "reference": reference}


def with_tails(params: dict[str, Any], pilot: Pilot, of: Kinds) -> dict[str, Any]:
    """`params` with the tails of what the pilot has seen."""
    tails, known = fitted(of, pilot.positions, pilot.distances)
    scales = jnp.where(known, 1.0, standard_deviations(params["factor"]))
    dense = params["factor"].ndim == 2
    return {
        **params,
        "tails": tails._replace(scales=params["tails"].scales),
        "factor": jnp.diag(scales) if dense else scales,
    }


def with_scales(
    params: dict[str, Any], pilot: Pilot, points: tuple, of: Kinds
) -> dict[str, Any]:
    """`params` with the scales of real coordinates that the pilot has seen.

    Args:
        points: in its own coordinates, which are logs but for a constant; as
            `found_scales` takes them.
    """
    old, positive = params["tails"], of.scaled.positive
    level = enter(pilot.positions.mean, of, unfitted(of, pilot.positions.mean))
    z, score, told = points
    found = found_scales(of.scaled, z, score, told, level[positive])
    found = found._replace(level=pilot.positions.mean[positive])
    return {**params, "tails": old._replace(scales=found)}


def climb(evaluate, z) -> tuple[jax.Array, jax.Array]:
    """Go up from a start so far out that no step there tells of the posterior.

    Quasi-Newton steps are made `CHUNK` at a time, at most `MAX_CHUNKS` times, as long
    as they raise the log density by more than d. That is twice what the draws of a
    Gaussian lie below its mode, so that the climb ends before a mode that is narrow and
    holds no mass.

    Args:
        evaluate: `(z, count) -> (log density, gradient, count)`.
        z: the start, shape `(d,)`.

    Returns:
        `(z, count)`.
    """

    def chunk(carry):
        z, old, _, turn, count = carry
        end, value, _, spent = descend(evaluate, z, CHUNK)
        higher = value > old + z.size
        z, value = jnp.where(higher, end, z), jnp.where(higher, value, old)
        return z, value, higher, turn + 1, count + spent

    value, _, count = evaluate(z, jnp.asarray(0))
    start = (z, value, jnp.asarray(True), jnp.asarray(0), count)
    z, _, _, _, count = jax.lax.while_loop(
        lambda carry: carry[2] & (carry[3] < MAX_CHUNKS), chunk, start
    )
    return z, count
