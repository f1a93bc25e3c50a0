"""Stan's windowed warm-up, for kernels whose Info has an acceptance rate.

Dual averaging tunes the step size (Hoffman and Gelman, JMLR 15, 2014), and Welford's
algorithm learns the variances or the covariance. Both and the schedule are BlackJAX's;
this module gives them the shape of `Warmup`, and begins with a pilot where a kernel
could not cover the way from a far start by itself.

A window's covariance is shrunk towards the metric before it, where Stan and BlackJAX
shrink it towards 1e-3 times the identity: that overwrites the metric of a coordinate
whose sd is below 2e-3 on the sampling space.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.mass_matrix import (
    MassMatrixAdaptationState,
    mass_matrix_adaptation,
)
from blackjax.adaptation.staged_adaptation import build_schedule
from blackjax.adaptation.step_size import dual_averaging_adaptation

from nutfree.numerics.evaluation import flatten, select
from nutfree.numerics.preconditioning import root
from nutfree.warmup.base import AdaptationState, Warmup
from nutfree.warmup.pathfinder import pathfinder

#: Up to this dimension the covariance is a matrix unless the user says otherwise.
DENSE_DIM = 50
#: How many draws the metric before a window counts for, and by what it is scaled then;
#: Stan's numbers for the identity.
PRIOR_DRAWS = 5.0
PRIOR_SCALE = 1e-3


class WindowState(NamedTuple):
    """What warm-up has learnt.

    step
        Transitions made.
    dual_averaging, mass_matrix
        BlackJAX's states.
    schedule
        Of shape `(num_steps, 2)`: whether the mass matrix learns from a transition, and
        whether it is the last of its window.
    """

    step: jax.Array
    dual_averaging: Any
    mass_matrix: Any
    schedule: jax.Array


def window_warmup(
    target_acceptance_rate: float,
    initial_step_size: float = 1.0,
    dense_mass: bool | None = None,
    walk: bool = True,
    pilot: str | None = "gradients",
    factor: bool = False,
) -> Warmup:
    """Tune `step_size` and an `inverse_mass_matrix`, the posterior's covariance.

    Args:
        target_acceptance_rate: what the mean of `info.acceptance_rate` should be.
        initial_step_size: where dual averaging starts, in units of d^(-1/3).
        dense_mass: a full matrix of shape `(d, d)` instead of the variances, `(d,)`;
            None for a matrix up to d = `DENSE_DIM`.
        walk: longer windows, for a kernel whose draws are much correlated.
        pilot: Pathfinder by "gradients" or by "differences" gives the start and the
            first covariance; None for the host's position, which is also kept where
            there is no warm-up.
        factor: tune `factor` as well, the root of the covariance (`preconditioning`),
            for a kernel that would otherwise compute it at every transition.
    """
    dual_averaging = dual_averaging_adaptation(target_acceptance_rate)

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        x, logdensity, unravel = flatten(position, target)
        dense = x.size <= DENSE_DIM if dense_mass is None else dense_mass
        mass_matrix = mass_matrix_adaptation(not dense)[0](x.size)
        counts: tuple[Any, Any] = (0.0, 0.0)
        if pilot is not None:
            found, counts = pathfinder(
                rng_key, logdensity, x, dense=dense, differences=pilot == "differences"
            )
            mass_matrix = mass_matrix._replace(inverse_mass_matrix=found.covariance)
            # without warm-up a chain goes on from where the user has put it
            x = found.x if num_steps else x
        step_size = jnp.asarray(initial_step_size * x.size ** (-1 / 3), x.dtype)
        params = {
            "step_size": step_size,
            "inverse_mass_matrix": jnp.asarray(
                mass_matrix.inverse_mass_matrix, x.dtype
            ),
        }
        if factor:
            params["factor"] = root(params["inverse_mass_matrix"])
        averaging, schedule = dual_averaging[0](step_size), _schedule(num_steps, walk)
        inner = WindowState(jnp.asarray(0), averaging, mass_matrix, schedule)
        # Welford's count and the averaging's step start as Python ints in BlackJAX
        inner = jax.tree.map(jnp.asarray, inner)
        return AdaptationState(params, unravel(x), *counts, inner)

    def update(adapt_state, state, info) -> AdaptationState:
        return _updated(dual_averaging, adapt_state, state, info)

    def final(adapt_state) -> dict:
        tuned = dual_averaging[2](adapt_state.inner.dual_averaging)
        # without a single update the average is not defined
        ran = adapt_state.inner.step > 0
        step_size = jnp.where(ran, tuned, adapt_state.params["step_size"])
        return {**adapt_state.params, "step_size": step_size}

    return Warmup(init, update, final)


def _updated(dual_averaging, adapt_state, state, info) -> AdaptationState:
    """Learn from one transition; at the end of a window, take over what was learnt."""
    da_init, da_update, da_final = dual_averaging
    step, averaging, mass_matrix, schedule = adapt_state.inner
    diagonal = mass_matrix.inverse_mass_matrix.ndim == 1
    _, mm_update, _ = mass_matrix_adaptation(diagonal)
    slow, last = schedule[step]
    # a NaN acceptance rate (nowhere to go) counts as a rejection
    averaging = da_update(averaging, jnp.nan_to_num(info.acceptance_rate))
    mass_matrix = select(slow, mm_update(mass_matrix, state.position), mass_matrix)
    roots = {k: v for k, v in adapt_state.params.items() if k == "factor"}

    def next_window():
        new = _next_metric(mass_matrix)
        found = {name: root(new.inverse_mass_matrix) for name in roots}
        return da_init(da_final(averaging)), new, found

    averaging, mass_matrix, roots = jax.lax.cond(
        last, next_window, lambda: (averaging, mass_matrix, roots)
    )
    params = {
        "step_size": jnp.exp(averaging.log_step_size),
        "inverse_mass_matrix": mass_matrix.inverse_mass_matrix,
        **roots,
    }
    inner = WindowState(step + 1, averaging, mass_matrix, schedule)
    return _like(adapt_state, adapt_state._replace(params=params, inner=inner))


def _next_metric(before: MassMatrixAdaptationState) -> MassMatrixAdaptationState:
    """Return the metric that a window has found, and forget its draws.

    A window in which a coordinate never moved leaves the metric as it was.
    """
    old, (_, m2, n) = before.inverse_mass_matrix, before.wc_state
    covariance = m2 / jnp.maximum(n - 1, 1)
    new = n * covariance + PRIOR_DRAWS * PRIOR_SCALE * old
    moved = jnp.all((m2 if m2.ndim == 1 else jnp.diag(m2)) > 0)
    new = jnp.where(moved, new / (n + PRIOR_DRAWS), old)
    return MassMatrixAdaptationState(new, jax.tree.map(jnp.zeros_like, before.wc_state))


def _schedule(num_steps: int, walk: bool) -> jax.Array:
    """Stan's windows; a walk has longer ones, from which correlated draws tell a
    covariance or an acceptance rate."""
    sizes = {
        "first_window_size": max(25, num_steps // 4),
        "final_buffer_size": max(50, num_steps // 5),
    }
    schedule = build_schedule(num_steps, **(sizes if walk else {}))
    return jnp.asarray(schedule, jnp.int32).reshape(-1, 2)


def _like(old, new):
    """Give `new` the array types of `old`, so that it can be a loop's carry."""
    return jax.tree.map(lambda o, n: jnp.asarray(n, o.dtype), old, new)
