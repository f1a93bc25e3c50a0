"""Warm-up of the adjusted Bregman kernels: coordinates, a preconditioner, a reference,
and a step.

The pilot first climbs from a start that is far out. The first half of its transitions
is made on the sampling space, and what it saw gives bounded sites their coordinates
(`tails`). From then on the coordinates stay, and windows as Stan's give a
preconditioner (`fisher`), the quadratic of the reference, and a step that meets the
acceptance rate, in the second half of the pilot and again in the host's warm-up. The
kinks of the reference are those at the mean position of a half of the pilot.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.staged_adaptation import build_schedule
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from nutfree.kernels.bregman import tails
from nutfree.kernels.bregman.reference import reference_at
from nutfree.numerics.descent import descend
from nutfree.numerics.evaluation import counted_value_and_grad, select
from nutfree.numerics.preconditioning import solve_root, standard_deviations
from nutfree.warmup import fisher
from nutfree.warmup.base import AdaptationState, Warmup

#: Acceptance rate of a trajectory. An independent draw is cheapest between 0.55 and
#: 0.75, on 10 and 100 Laplace coordinates and on Gaussians.
ACCEPTANCE = 0.7
#: Part of a step by which a trajectory may be shorter than a whole number of them.
ROUNDED_UP = 0.2
#: The parameters that are learned from what windows see.
LEARNT = ("factor", "reference")
#: Parts of the pilot; after each but the last, bounded sites get new coordinates.
NUM_PHASES = 4
#: Gradients between two checks of what the climb from a far start has gained.
CHUNK = 8
#: Most such checks.
MAX_CHUNKS = 16


class Seen(NamedTuple):
    """What a window has seen: points, scores there, and the forces outside of kinks.

    outside
        The mean of those forces, `(d,)`.
    product
        Sum of the products of a point and a force, both about their means, `(d,)`.
    """

    sums: fisher.Sums
    outside: jax.Array
    product: jax.Array

    def plus(self, x, score, force) -> "Seen":
        sums = fisher.add(self.sums, x, score)
        change = force - self.outside
        mean = self.outside + change / jnp.maximum(sums.x.number, 1)
        product = self.product + (x - sums.x.mean) * change
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
        return jnp.clip(-jnp.sum(self.product) / total, 0.0, 1.0)


class AdjustedWarmupState(NamedTuple):
    """The step, dual averaging, what the window saw, and the schedule of windows."""

    step: jax.Array
    averaging: Any
    seen: Seen
    schedule: jax.Array  # (num_steps, 2): slow window?, last of its window?


class Pilot(NamedTuple):
    """The chain of the pilot, its counts, and its positions."""

    state: Any
    adapt: AdaptationState
    num_grad_evals: jax.Array
    num_density_evals: jax.Array
    sides: tails.Sides


def adjusted_warmup(
    init_state: Callable,
    kernel: Callable,
    constants: dict[str, Any],
    num_pilot: int,
    duration: float,
    follows: bool,
) -> Warmup:
    """Tune `step_size`, `factor`, `tails` and `reference`.

    Args:
        init_state: `(position, target) -> state`.
        kernel: of `kernels.bregman.marbmumla`; its info has `visited`, `force` and
            `outside`.
        constants: other parameters of the kernel.
        num_pilot: transitions of the pilot.
        duration: of a trajectory; also the longest step.
        follows: whether there are tails and a reference.
    """
    da_init, da_update, da_final = dual_averaging_adaptation(ACCEPTANCE)
    length = num_pilot // NUM_PHASES

    def start(position, params, num_steps) -> AdaptationState:
        schedule = jnp.asarray(build_schedule(max(num_steps, 1)), jnp.int32)
        averaging = jax.tree.map(jnp.asarray, da_init(params["step_size"]))
        zeros = ravel_pytree(jax.tree.map(jnp.zeros_like, position))[0]
        seen = Seen(fisher.no_sums(zeros.size, zeros.dtype), zeros, zeros)
        inner = AdjustedWarmupState(jnp.asarray(0), averaging, seen, schedule)
        return AdaptationState(params, position, inner=inner)

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        z, unravel = ravel_pytree(position)
        bounded = tails.bounded(position, target.split)
        z, count = climb(counted_value_and_grad(lambda z: target(unravel(z))), z)
        position = unravel(z)
        params = first_params(z)
        if follows:
            params = referred(
                {**params, "tails": tails.straight(z)}, z, target, unravel
            )
        adapt = start(position, params, length)
        none = tails.no_draws(z)
        pilot = Pilot(init_state(position, target), adapt, count, jnp.asarray(0), none)

        def transition(pilot, key) -> tuple[Pilot, None]:
            state, info = kernel(key, pilot.state, target, **pilot.adapt.params)
            adapt = update(pilot.adapt, state, info)
            more = pilot.sides.plus(ravel_pytree(state.position)[0])
            return Pilot(
                state,
                adapt,
                pilot.num_grad_evals + info.num_grad_evals,
                pilot.num_density_evals + info.num_density_evals,
                select(adapt.inner.step > length // 3, more, pilot.sides),
            ), None

        def phase(pilot, is_last_and_keys) -> tuple[Pilot, None]:
            is_last, keys = is_last_and_keys
            pilot, _ = jax.lax.scan(transition, pilot, keys)
            params, sides = final(pilot.adapt), pilot.sides
            if follows:
                found = bent(params, sides.tails(bounded))
                params = select(is_last, params, found)
                params = referred(params, sides.moments.mean, target, unravel)
            adapt = start(pilot.state.position, params, length)
            return pilot._replace(adapt=adapt, sides=none), None

        is_last = jnp.arange(NUM_PHASES) == NUM_PHASES - 1
        keys = jax.random.split(rng_key, (NUM_PHASES, length))
        pilot, _ = jax.lax.scan(phase, pilot, (is_last, keys))
        begun = start(pilot.state.position, pilot.adapt.params, num_steps)
        # the state at the start took a density as well
        return begun._replace(
            num_grad_evals=pilot.num_grad_evals,
            num_density_evals=pilot.num_density_evals + 1,
        )

    def referred(params, z, target, unravel) -> dict[str, Any]:
        """`params` with a reference whose kinks are those of the target at z."""
        curve = params["tails"]

        def position_of(s):
            return unravel(curve.leave(s)[0])

        s, factor = curve.enter(z), params["factor"]
        found = reference_at(target.split, s, position_of, factor)
        if "reference" in params:
            quadratic = params["reference"]
            found = found.recentred(
                quadratic.center, quadratic.tilt, quadratic.omega, factor
            )
        return {**params, "reference": found}

    def first_params(z) -> dict[str, Any]:
        ones = jnp.ones_like(z)
        typed = jax.tree.map(
            lambda c: jnp.asarray(c, int if isinstance(c, int) else z.dtype), constants
        )
        return {
            "step_size": jnp.asarray(0.2 * z.size**-0.25, z.dtype),
            "factor": jnp.diag(ones) if z.size <= fisher.MAX_DENSE else ones,
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


def bent(params: dict[str, Any], found: tails.Tails) -> dict[str, Any]:
    """`params` with these tails, in whose coordinates sds are about one.

    The quadratic of the reference, which is in other coordinates, is lost.
    """
    factor, flat = params["factor"], params["reference"]
    scales = standard_deviations(factor)
    scales = jnp.where(found.bent, 1 / scales, 1.0)
    factor = scales[:, None] * factor if factor.ndim == 2 else scales * factor
    zeros = jnp.zeros_like(flat.center)
    flat = flat._replace(center=zeros, tilt=zeros, omega=jnp.zeros_like(flat.omega))
    return {**params, "factor": factor, "tails": found, "reference": flat}


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
        end, value, spent = descend(evaluate, z, CHUNK)
        higher = value > old + z.size
        z, value = jnp.where(higher, end, z), jnp.where(higher, value, old)
        return z, value, higher, turn + 1, count + spent

    value, _, count = evaluate(z, jnp.asarray(0))
    start = (z, value, jnp.asarray(True), jnp.asarray(0), count)
    z, _, _, _, count = jax.lax.while_loop(
        lambda carry: carry[2] & (carry[3] < MAX_CHUNKS), chunk, start
    )
    return z, count
