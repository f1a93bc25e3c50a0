"""The loop, the state and the options that all stochastic-gradient kernels share.

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
from nutfree.minibatch.sampling import SAMPLING, check_sampling, row_sampler
from nutfree.numerics.evaluation import select
from nutfree.numerics.preconditioning import guarded, matvec, root, transpose
from nutfree.registry import option
from nutfree.target import Position


@dataclass(frozen=True)
class BatchOptions:
    """Options of every kernel of the family."""

    batch_size: int | None = option(
        None, "rows n per gradient; None is a hundredth of them, 100 to 1,000", ge=1
    )
    gradient: str = option(
        "control_variate",
        "how the gradient is estimated from a batch",
        choices=GRADIENTS,
        needs_fixed_rows=("saga",),
    )
    sampling: str = option(
        "auto",
        "how rows are drawn: evenly, in proportion to their gradient around the mode, "
        "or so where even draws are too noisy",
        choices=SAMPLING,
        needs_fixed_rows=("importance",),
    )
    replacement: bool = option(
        True, "True or False: whether a row can be twice in a batch"
    )
    plate: str | None = option(
        None, "the model's data plate, where it has several", of_model=True
    )
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
class StochasticOptions(BatchOptions):
    """Options of a kernel that takes any of the gradient estimators."""

    refresh_every: int | None = option(
        None, "steps between SVRG's passes over all rows; None is N/n", ge=1
    )


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

    def steps_of(self, num_steps, step_size, noise, settings) -> jax.Array:
        """`num_steps`, or what the dynamics needs where it is zero."""
        needed = self.num_steps(step_size, noise, **settings)
        return jnp.where(jnp.asarray(num_steps) > 0, num_steps, needed).astype(int)


def batch_size_of(options: BatchOptions, num_data: int, dim: int) -> int:
    """The number of rows in a batch, all of them at most."""
    return min(options.batch_size or default_batch_size(num_data, dim), num_data)


def chosen_estimator(options: StochasticOptions) -> Estimator:
    """The gradient estimator that the options name."""
    return estimator(options.gradient, options.refresh_every)


def init_for(dynamics: Dynamics, default: Any = StochasticOptions()) -> Callable:
    """`init` of a kernel with these dynamics and options."""

    def init(position, logdensity_fn, rng_key=None, options=default) -> StochasticState:
        x, unravel = ravel_pytree(position)
        rng_key = jax.random.key(0) if rng_key is None else rng_key
        minibatch = flat_minibatch(logdensity_fn.minibatch, unravel)
        memory = chosen_estimator(options).start(minibatch, x)
        return StochasticState(position, position, dynamics.start(rng_key, x), memory)

    return init


def kernel_builder(
    dynamics: Dynamics,
    default: Any = StochasticOptions(),
    estimator_of: Callable[[Any], Estimator] = chosen_estimator,
) -> Callable:
    """`build_kernel` of a kernel with these dynamics and options."""

    def build_kernel(options=default):
        """Return the kernel; `logdensity_fn` must be a `Target` with `minibatch`.

        Its params: `step_size` h; `inverse_mass_matrix` C, of shape `(d, d)`, `(d,)`
        or `()`; `control`, the `Control` of the control variate; `shares`, the
        `Shares` of rows, which are drawn evenly without; `gradient_noise` V, of shape
        `(d,)` or `()`, and `curvature`, for `predicted_inflation`; `num_steps`, where
        zero stands for what the dynamics needs; and the settings of the dynamics.
        """
        estimate = estimator_of(options).gradient
        check_sampling(options.sampling, options.replacement)

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
            **settings,
        ) -> tuple[StochasticState, StochasticInfo]:
            x, unravel = ravel_pytree(state.position)
            minibatch = flat_minibatch(logdensity_fn.minibatch, unravel)
            size = batch_size_of(options, minibatch.num_data, x.size)
            _require_shares(options, shares, size, minibatch.num_data)
            draw_rows = row_sampler(minibatch.num_data, size, options.replacement)
            factor = root(jnp.asarray(inverse_mass_matrix, x.dtype))
            step_size, settings = jax.tree.map(
                lambda value: jnp.asarray(value, x.dtype),
                (step_size, dynamics.settings | settings),
            )
            noise = jnp.max(jnp.asarray(gradient_noise, x.dtype))
            num_steps = dynamics.steps_of(num_steps, step_size, noise, settings)

            def step(i, carry):
                x, ahead, auxiliary, memory, divergent, count = carry
                rows_key, move_key = jax.random.split(jax.random.fold_in(rng_key, i))
                rows = draw_rows(rows_key, shares)
                g, memory, count = estimate(
                    minibatch, rows, ahead, control, memory, count
                )
                g_of_u = matvec(transpose(factor), g)
                time = (i / num_steps).astype(x.dtype)

                def move(x):
                    displacement, new = dynamics.move(
                        move_key, auxiliary, g_of_u, step_size, time, **settings
                    )
                    return x + matvec(factor, displacement), new

                x, ahead, moved, failed = guarded(x, ahead, g, move)
                # a momentum that led nowhere is drawn anew
                fresh = dynamics.start(jax.random.fold_in(move_key, 1), x)
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


def _require_shares(options, shares, batch_size: int, num_data: int) -> None:
    """Refuse importance sampling without the shares that it samples by."""
    if options.sampling == "importance" and not shares and batch_size < num_data:
        raise InvalidOption(
            "sampling='importance' draws rows by `shares`, which the kernel's "
            "`warmup` finds. Pass them, or leave sampling out."
        )
