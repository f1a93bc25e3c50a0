"""What every stochastic-gradient kernel shares: the loop, its state and its options.

A kernel states a `Dynamics`, one step in the coordinates u in which the posterior is
roughly N(0, I): x = R u, C = R R' the inverse curvature at the mode, found in warm-up.
There the gradient is R' g(x), g estimated from a batch of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.errors import InvalidOption
from nutfree.minibatch.estimators import GRADIENTS, Estimator, estimator
from nutfree.minibatch.gradients import default_batch_size, flat_minibatch
from nutfree.minibatch.sampling import (
    SAMPLING,
    Rows,
    Shares,
    check_sampling,
    draw_by_shares,
    draw_rows,
)
from nutfree.numerics.evaluation import select
from nutfree.numerics.preconditioning import (
    guarded,
    matvec,
    root,
    transpose,
)
from nutfree.registry import option
from nutfree.target import Position


class StochasticState(NamedTuple):
    """Where the chain is; the log density is never known.

    position
        The last position at which the gradient was found finite, a pytree.
    ahead
        The step from it, whose gradient is the next to be evaluated.
    auxiliary
        The dynamics' own variables, a momentum for instance.
    memory
        What the gradient estimator remembers.
    """

    position: Position
    ahead: Position
    auxiliary: Any = ()
    memory: Any = ()


class StochasticInfo(NamedTuple):
    """What a transition did.

    is_divergent
        A step led to where the log density or its gradient is not finite, and was
        not taken.
    num_grad_evals
        In gradients over all rows.
    num_steps
        Steps made.
    predicted_inflation
        By what fraction the step size makes posterior variances wrong, too large
        unless negative, as predicted at the mode: for the worst coordinate, on a
        Gaussian.
    gradient_noise
        Variance V of the gradient's noise in units of the posterior, as measured
        around the mode in warm-up: for the worst coordinate.
    """

    is_divergent: jax.Array
    num_grad_evals: jax.Array
    num_steps: jax.Array
    predicted_inflation: jax.Array
    gradient_noise: jax.Array


class Dynamics(NamedTuple):
    """One step of a kernel in coordinates of unit posterior variance.

    `settings` are traced numbers that a user may fix: the functions take them by name.

    start
        `(rng_key, u) -> auxiliary`, for a `u` of which only shape and dtype matter.
    move
        `(rng_key, auxiliary, gradient, step_size, time, **settings) ->
        (displacement, auxiliary)`; `time` goes from 0 to 1 over a transition.
    inflation
        `(step_size, noise, curvature, num_steps, **settings) -> fraction`, of
        posterior variances on a Gaussian, for the worst coordinate.
    tune
        `(max_inflation, noise, curvature, settings) -> params`: a dict with
        `step_size`, and `num_steps` or any setting that follows from it.
    num_steps
        `(step_size, noise, **settings)`: steps in which the chain forgets about two
        thirds of its place.
    settings
        Their values where nothing else is known.
    """

    start: Callable
    move: Callable
    inflation: Callable
    tune: Callable
    num_steps: Callable
    settings: dict[str, float]


def init_for(dynamics: Dynamics) -> Callable:
    """`init` of a kernel with these dynamics."""

    def init(
        position,
        logdensity_fn,
        rng_key=None,
        *,
        gradient: str = "control_variate",
        refresh_every: int | None = None,
    ) -> StochasticState:
        x, unravel = ravel_pytree(position)
        rng_key = jax.random.key(0) if rng_key is None else rng_key
        memory: Any = ()
        if gradient in ("svrg", "saga"):
            minibatch = flat_minibatch(logdensity_fn.minibatch, unravel)
            memory = estimator(gradient, refresh_every).start(minibatch, x)
        return StochasticState(position, position, dynamics.start(rng_key, x), memory)

    return init


def row_sampler(
    num_data: int, batch_size: int, replacement: bool
) -> Callable[[jax.Array, Any], Rows]:
    """`(rng_key, shares) -> Rows`, drawn evenly where `shares` is empty."""

    def draw(rng_key, shares):
        if isinstance(shares, Shares):
            return draw_by_shares(rng_key, shares, batch_size)
        return draw_rows(rng_key, num_data, batch_size, replacement)

    return draw


def kernel_builder(
    dynamics: Dynamics, estimator_of: Callable[..., Estimator] = estimator
) -> Callable:
    """`build_kernel` of a kernel with these dynamics."""

    def build_kernel(
        *,
        batch_size: int | None = None,
        gradient: str = "control_variate",
        sampling: str = "auto",
        replacement: bool = True,
        refresh_every: int | None = None,
    ):
        """Return the kernel; `logdensity_fn` must be a `Target` with `minibatch`.

        Its params: `step_size` h; `inverse_mass_matrix` C, of shape `(d, d)`, `(d,)`
        or `()`; `control`, the `Control` of the control variate; `shares`, the
        `Shares` of rows, which are drawn evenly without; `gradient_noise` V, of shape
        `(d,)` or `()`, and `curvature`, for `predicted_inflation`; `num_steps`, where
        zero stands for what the dynamics needs; `num_batches`, of which the gradient is
        the mean, one where it is None; and the settings of the dynamics.
        """
        estimate = estimator_of(gradient, refresh_every).gradient
        check_sampling(sampling, replacement)

        def kernel(
            rng_key,
            state,
            logdensity_fn,
            step_size,
            inverse_mass_matrix=1.0,
            control=(),
            shares=(),
            gradient_noise=0.0,
            curvature=1.0,
            num_steps=0,
            num_batches=None,
            **settings,
        ) -> tuple[StochasticState, StochasticInfo]:
            x, unravel = ravel_pytree(state.position)
            minibatch = flat_minibatch(logdensity_fn.minibatch, unravel)
            num_data = minibatch.num_data
            size = batch_size or default_batch_size(num_data, x.size)
            if sampling == "importance" and not shares and size < num_data:
                raise InvalidOption(
                    "sampling='importance' draws rows by `shares`, which the kernel's "
                    "`warmup` finds. Pass them, or leave sampling out."
                )
            draw = row_sampler(num_data, size, replacement)
            factor = root(jnp.asarray(inverse_mass_matrix, x.dtype))
            step_size = jnp.asarray(step_size, x.dtype)
            settings = {
                name: jnp.asarray(value, x.dtype)
                for name, value in (dynamics.settings | settings).items()
            }
            noise = jnp.max(jnp.asarray(gradient_noise, x.dtype))
            needed = dynamics.num_steps(step_size, noise, **settings)
            num_steps = jnp.where(jnp.asarray(num_steps) > 0, num_steps, needed)
            num_steps = num_steps.astype(int)

            def from_batch(key, x, memory, count):
                rows = draw(key, shares)
                return estimate(minibatch, rows, x, control, memory, count)

            def gradient_at(key, x, memory, count):
                if num_batches is None:
                    return from_batch(key, x, memory, count)

                def add(j, carry):
                    total, memory, count = carry
                    key_of_batch = jax.random.fold_in(key, j)
                    g, memory, count = from_batch(key_of_batch, x, memory, count)
                    return total + g, memory, count

                start = (jnp.zeros_like(x), memory, count)
                total, *rest = jax.lax.fori_loop(0, num_batches, add, start)
                return total / num_batches, *rest

            def step(i, carry):
                x, ahead, auxiliary, memory, divergent, count = carry
                keys = jax.random.split(jax.random.fold_in(rng_key, i))
                g, memory, count = gradient_at(keys[0], ahead, memory, count)

                def move(x):
                    displacement, new = dynamics.move(
                        keys[1],
                        auxiliary,
                        matvec(transpose(factor), g),
                        step_size,
                        (i / num_steps).astype(x.dtype),
                        **settings,
                    )
                    return x + matvec(factor, displacement), new

                x, ahead, moved, failed = guarded(x, ahead, g, move)
                # a momentum that led nowhere is drawn anew
                fresh = dynamics.start(jax.random.fold_in(keys[1], 1), x)
                auxiliary = select(failed, fresh, moved)
                return x, ahead, auxiliary, memory, divergent | failed, count

            ahead, _ = ravel_pytree(state.ahead)
            none = jnp.zeros((), x.dtype)
            start = (x, ahead, state.auxiliary, state.memory, jnp.asarray(False), none)
            x, ahead, auxiliary, memory, divergent, count = jax.lax.fori_loop(
                0, num_steps, step, start
            )
            inflation = dynamics.inflation(
                step_size, noise, curvature, num_steps, **settings
            )
            info = StochasticInfo(divergent, count, num_steps, inflation, noise)
            new = StochasticState(unravel(x), unravel(ahead), auxiliary, memory)
            return new, info

        return kernel

    return build_kernel


@dataclass(frozen=True)
class StochasticOptions:
    batch_size: int | None = option(
        None, "rows n per gradient; None is a hundredth of them, 100 to 1,000", ge=1
    )
    gradient: str = option(
        "control_variate",
        "how the gradient is estimated from a batch",
        choices=GRADIENTS,
    )
    sampling: str = option(
        "auto",
        "how rows are drawn: evenly, in proportion to their gradient around the mode, "
        "or so where even draws are too noisy",
        choices=SAMPLING,
    )
    replacement: bool = option(
        True, "True or False: whether a row can be twice in a batch"
    )
    refresh_every: int | None = option(
        None, "steps between SVRG's passes over all rows; None is N/n", ge=1
    )
    plate: str | None = option(None, "the model's data plate, where it has several")
    max_inflation: float = option(
        0.05, "predicted error of posterior variances that sets the step", gt=0, le=1
    )
    step_size: float | None = option(
        None, "step h, in units of the preconditioned coordinates", gt=0, tuned=True
    )
    num_steps: int | None = option(
        None, "steps per transition; None is 2/h, at most 1,000", ge=1, tuned=True
    )


@dataclass(frozen=True)
class TunableOptions(StochasticOptions):
    """Of a kernel whose law is the posterior's, which a Stein discrepancy can judge."""

    tuning: str = option(
        "predicted",
        "the step size by its predicted inflation, or step and batch size by the Stein "
        "discrepancy of pilot chains",
        choices=("predicted", "stein"),
    )
    tuning_budget: int = option(
        8192, "batches that all pilot chains of tuning='stein' may spend", ge=1024
    )


#: What the specs of the family have in common.
BIAS = (
    "variances are too large by order step_size (or max_inflation), and less with "
    "a larger batch_size; predicted_inflation and the kernel Stein discrepancy show it"
)
