"""Warm-up of adjusted trajectories: units of half-lines, a preconditioner, a step.

The pilot has two halves. In the first, half-lines are moved along by their logs, and
the standard deviations of the distances to the boundaries become their units. From then
on the coordinates stay, and windows as Stan's give them a preconditioner (`fisher`) and
a step to the acceptance rate, first in the pilot and again in the host's warm-up.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.staged_adaptation import build_schedule
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from nutfree.numerics.descent import descend
from nutfree.numerics.evaluation import counted_value_and_grad, select
from nutfree.numerics.moments import no_moments
from nutfree.warmup import fisher
from nutfree.warmup.base import AdaptationState, Warmup

#: The rate at which an independent draw is cheapest, for leapfrog trajectories,
#: is 0.65; above it chains do not stick in tails.
ACCEPTANCE = 0.8
#: Steps of the approach between two looks at what they brought, and how many looks.
CHUNK, MAX_CHUNKS = 8, 16
#: Makes half-lines' coordinates their logs.
FAR = 1e6


class TrajectoryWarmupState(NamedTuple):
    """The step, dual averaging, the window's sums, and the schedule of windows."""

    step: jax.Array
    averaging: Any
    sums: fisher.Sums
    schedule: jax.Array  # (num_steps, 2): slow window?, last of its window?


def trajectory_warmup(
    init_state: Callable,
    kernel: Callable,
    half_lines: Callable,
    constants: dict[str, Any],
    num_pilot: int,
) -> Warmup:
    """Tune `step_size`, `factor` and `unit`.

    Args:
        init_state: `(position, target) -> state`.
        kernel: of `kernels.bregman.marbmumla`; its info has `visited` and `force`.
        half_lines: `(position, target) -> (d,) bools`, which coordinates have a unit.
        constants: other parameters of the kernel.
        num_pilot: transitions of the pilot.
    """
    da_init, da_update, da_final = dual_averaging_adaptation(ACCEPTANCE)

    def start(position, params, num_steps) -> AdaptationState:
        schedule = jnp.asarray(build_schedule(max(num_steps, 1)), jnp.int32)
        averaging = jax.tree.map(jnp.asarray, da_init(params["step_size"]))
        unit = params["unit"]
        inner = TrajectoryWarmupState(
            jnp.asarray(0), averaging, fisher.no_sums(unit.size, unit.dtype), schedule
        )
        return AdaptationState(params, position, inner=inner)

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        z, unravel = ravel_pytree(position)
        mask = half_lines(position, target)
        dense = z.size <= fisher.MAX_DENSE
        ones = jnp.ones_like(z)
        params = {
            "step_size": jnp.asarray(0.2 * z.size**-0.25, z.dtype),
            "factor": jnp.diag(ones) if dense else ones,
            "unit": jnp.where(mask, FAR, ones),
            **jax.tree.map(
                lambda c: jnp.asarray(c, int if isinstance(c, int) else z.dtype),
                constants,
            ),
        }

        def transition(carry, key):
            state, adapt, grads, densities, moments = carry
            state, info = kernel(key, state, target, **adapt.params)
            adapt = update(adapt, state, info)
            x = jnp.exp(jnp.where(mask, ravel_pytree(state.position)[0], 0.0))
            moments = select(adapt.inner.step > first // 3, moments.plus(x), moments)
            grads, densities = grads + info.num_grad_evals, densities + 1
            return (state, adapt, grads, densities, moments), None

        def logdensity(z):
            return target(unravel(z))

        z, count = approach(counted_value_and_grad(logdensity), z)
        position = unravel(z)
        first = num_pilot // 2
        moments = no_moments(z)
        state = init_state(position, target)
        carry = (state, start(position, params, first), count, jnp.asarray(0), moments)
        keys = jax.random.split(rng_key, num_pilot)
        carry, _ = jax.lax.scan(transition, carry, keys[:first])
        state, adapt, grads, densities, moments = carry
        sd = jnp.sqrt(moments.covariance())
        known = mask & jnp.isfinite(sd) & (sd > 0)
        params = final(adapt)
        # the arc length in units of a standard deviation has about unit variance
        scales = _scales(params["factor"])
        scales = jnp.where(mask, jnp.minimum(scales, 1.0), scales)
        params = {
            **params,
            "unit": jnp.where(known, sd, ones),
            "factor": jnp.diag(scales) if dense else scales,
        }
        again = start(state.position, params, num_pilot - first)
        carry = (state, again, grads, densities, moments)
        carry, _ = jax.lax.scan(transition, carry, keys[first:])
        state, adapt, grads, densities, _ = carry
        begun = start(state.position, final(adapt), num_steps)
        return begun._replace(num_grad_evals=grads, num_density_evals=densities + 1)

    def update(adapt, state, info) -> AdaptationState:
        step, averaging, sums, schedule = adapt.inner
        slow, last = schedule[step] == 1
        # a NaN acceptance rate (nowhere to go) counts as a rejection; digits that step
        # and rate would amplify in each other until no two compilations agree are cut
        rate = jnp.round(jnp.nan_to_num(info.acceptance_rate), 3)
        averaging = da_update(averaging, rate)
        more = fisher.add(sums, info.visited, info.force)
        sums = select(slow & info.is_accepted, more, sums)

        # a loop of one turn or none, because a condition that is batched runs always
        def refreshed(_, old):
            return jnp.where(sums.x.number > 2, fisher.factor(sums), old)

        turns = jnp.where(last, 1, 0)
        factor = jax.lax.fori_loop(0, turns, refreshed, adapt.params["factor"])
        averaging = select(last, da_init(da_final(averaging)), averaging)
        sums = select(last, jax.tree.map(jnp.zeros_like, sums), sums)
        params = {
            **adapt.params,
            "step_size": jnp.minimum(jnp.exp(averaging.log_step_size), 2.0),
            "factor": factor,
        }
        inner = TrajectoryWarmupState(step + 1, averaging, sums, schedule)
        new = adapt._replace(params=params, inner=inner)
        return jax.tree.map(
            lambda o, n: jnp.asarray(n, jnp.asarray(o).dtype), adapt, new
        )

    def final(adapt) -> dict[str, Any]:
        tuned = jnp.minimum(da_final(adapt.inner.averaging), 2.0)
        # without a single update the average is not defined
        step_size = jnp.where(adapt.inner.step > 0, tuned, adapt.params["step_size"])
        dtype = adapt.params["step_size"].dtype
        return {**adapt.params, "step_size": step_size.astype(dtype)}

    return Warmup(init, update, final)


def approach(evaluate, z) -> tuple[jax.Array, jax.Array]:
    """Go up from a start so far out that no step there tells of the posterior.

    Quasi-Newton steps, `CHUNK` at a time and for at most `MAX_CHUNKS`, as long as they
    raise the log density by more than d, which is twice what the draws of a Gaussian
    lie below its mode: a mode that is narrow and holds no mass is not run into.

    Args:
        evaluate: `(z, count) -> (log density, gradient, count)`.
        z: the start, shape `(d,)`.

    Returns:
        `(z, count)`.
    """

    def climb(carry):
        z, old, _, turn, count = carry
        end, value, spent = descend(evaluate, z, CHUNK)
        higher = value > old + z.size
        z, value = jnp.where(higher, end, z), jnp.where(higher, value, old)
        return z, value, higher, turn + 1, count + spent

    value, _, count = evaluate(z, jnp.asarray(0))
    start = (z, value, jnp.asarray(True), jnp.asarray(0), count)
    z, _, _, _, count = jax.lax.while_loop(
        lambda carry: carry[2] & (carry[3] < MAX_CHUNKS), climb, start
    )
    return z, count


def _scales(factor):
    """Standard deviations of the covariance `factor factor'`."""
    if factor.ndim == 1:
        return jnp.asarray(factor)
    return jnp.sqrt(jnp.sum(factor**2, axis=1))
