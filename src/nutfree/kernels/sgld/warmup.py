"""Warm-up of the stochastic-gradient kernels: mode, curvature, noise, step size."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.errors import InvalidOption
from nutfree.kernels.sgld.bandit import stein_bandit
from nutfree.kernels.sgld.stochastic import Dynamics, row_sampler
from nutfree.minibatch.estimators import WANDERING
from nutfree.minibatch.gradients import (
    Control,
    control_at,
    control_variate,
    default_batch_size,
    flat_minibatch,
    plain,
)
from nutfree.minibatch.mode import laplace_of_rows
from nutfree.minibatch.noise import surroundings
from nutfree.minibatch.sampling import check_sampling, require_fixed_rows
from nutfree.numerics.evaluation import is_finite
from nutfree.numerics.laplace import Laplace
from nutfree.numerics.preconditioning import (
    matvec,
    root,
    solve_root,
    transpose,
)
from nutfree.warmup.base import AdaptationState, Warmup

#: sampling='auto' looks for unequal rows up to this number of them, and where the noise
#: of even batches is larger than this, in units of the posterior.
AUTO_ROWS, AUTO_NOISE = 2**18, 1.0


def _as_found(mode: Laplace, position, noise=None):
    """The mode as it was found, or the noise as it was measured."""
    del position
    return mode if noise is None else noise


def warmup_builder(
    dynamics: Dynamics, reshape: Callable = _as_found, total_noise: Callable = _as_found
) -> Callable[..., Warmup]:
    """`warmup` of a kernel with these dynamics.

    Args:
        reshape: `(mode, position) -> mode`, for a kernel whose law has another
            covariance than the posterior's.
        total_noise: `(mode as found, position, noise) -> noise`, of shape `(d,)`, with
            what the kernel adds to that of the batches.
    """

    def warmup(
        *,
        batch_size: int | None = None,
        gradient: str = "control_variate",
        sampling: str = "auto",
        replacement: bool = True,
        max_inflation: float = 0.05,
        tuning: str = "predicted",
        tuning_budget: int = 8192,
        fixed: Mapping[str, Any] | None = None,
    ) -> Warmup:
        """Find the mode, its curvature and control variate, and a step size.

        The step size is that at which the predicted inflation of the posterior
        variance, from the noise of gradients around the mode, is `max_inflation`; with
        tuning="stein", pilot chains around it choose another, and how many batches a
        gradient takes. With sampling="auto", where the noise exceeds the posterior's
        own, rows are drawn in proportion to their gradients. After a divergent
        transition the step is halved. Settings of the dynamics that the user has
        `fixed` are so while all of this is tuned.
        """
        check_sampling(sampling, replacement)
        if tuning == "stein" and gradient in WANDERING:
            raise InvalidOption(
                f"tuning='stein' runs many pilot chains, and gradient='{gradient}' has "
                "a memory of its own for each. Leave one of them out."
            )

        def pilot(rng_key, position, target, num_steps) -> AdaptationState:
            del num_steps
            x, unravel = ravel_pytree(position)
            minibatch = flat_minibatch(target.minibatch, unravel)
            num_data = minibatch.num_data
            size = batch_size or default_batch_size(num_data, x.size)
            draw_rows = row_sampler(num_data, size, replacement)
            unequal = sampling != "uniform" and replacement and size < num_data
            if sampling == "importance":
                require_fixed_rows(minibatch, "sampling='importance'")
            elif minibatch.in_order is not None or num_data > AUTO_ROWS:
                unequal = False
            mode_key, noise_key, rows_key = jax.random.split(rng_key, 3)
            count = jnp.zeros((), x.dtype)
            found, count = laplace_of_rows(mode_key, minibatch, x, count)
            control = Control(found.centre, jnp.zeros_like(x))
            if gradient != "plain":
                control, count = control_at(minibatch, found.centre, count)
            around, count = surroundings(
                noise_key,
                minibatch,
                draw_rows,
                found,
                control,
                count,
                batch_size=size,
                gradient=gradient,
                reshape=lambda mode: reshape(mode, position),
                total=lambda mode, noise: total_noise(mode, position, noise),
                unequal=unequal,
                limit=AUTO_NOISE if sampling == "auto" else 0.0,
                max_inflation=max_inflation,
            )
            noise, shares = around.noise, around.shares
            mode = reshape(found._replace(covariance=around.covariance), position)
            settings = {
                name: jnp.asarray((fixed or {}).get(name, value), x.dtype)
                for name, value in dynamics.settings.items()
            }
            params = {
                "inverse_mass_matrix": mode.covariance,
                "control": control if gradient == "control_variate" else (),
                "shares": shares,
                "gradient_noise": noise,
                "curvature": mode.curvature,
                "num_steps": jnp.asarray(0),
                **settings,
                **dynamics.tune(
                    max_inflation, jnp.max(noise), mode.curvature, settings
                ),
            }
            if tuning == "stein":
                chosen, count = _by_stein(
                    jax.random.fold_in(rng_key, 5),
                    dynamics,
                    minibatch,
                    lambda key: draw_rows(key, shares),
                    mode,
                    params,
                    count,
                    tuning_budget,
                )
                params |= chosen
            # chains start apart, where the density allows it
            start = around.places[-1]
            g, count = control_variate(
                minibatch, draw_rows(rows_key, shares), start, control, count
            )
            start = jnp.where(is_finite(start, g), start, mode.centre)
            return AdaptationState(params, unravel(start), num_grad_evals=count)

        def update(adapt_state, state, info) -> AdaptationState:
            del state
            params = dict(adapt_state.params)
            step_size = params["step_size"]
            params["step_size"] = jnp.where(
                info.is_divergent, 0.5 * step_size, step_size
            )
            return adapt_state._replace(params=params)

        return Warmup(pilot, update, lambda adapt_state: adapt_state.params)

    return warmup


def _by_stein(
    rng_key, dynamics, minibatch, draw_rows, mode: Laplace, params, count, budget
) -> tuple[dict, Any]:
    """What tuning='stein' puts in place of the params found before, and the count."""
    centre, factor = mode.centre, root(mode.covariance)
    control, estimator = params["control"], control_variate
    if not isinstance(control, Control):
        estimator = plain
        control, count = control_at(minibatch, centre, count)

    def from_batch(estimator):
        def gradient(key, x, count):
            return estimator(minibatch, draw_rows(key), x, control, count)

        return gradient

    step_size, num_batches, count = stein_bandit(
        rng_key,
        dynamics,
        from_batch(estimator),
        from_batch(control_variate),
        centre,
        (
            lambda x: solve_root(factor, x - centre),
            lambda u: matvec(factor, u),
            lambda g: matvec(transpose(factor), g),
        ),
        jnp.asarray(params["step_size"], centre.dtype),
        {k: jnp.asarray(params[k], centre.dtype) for k in dynamics.settings},
        count,
        budget,
    )
    noise = params["gradient_noise"] / num_batches
    chosen = {"step_size": step_size, "num_batches": num_batches}
    return chosen | {"gradient_noise": noise}, count
