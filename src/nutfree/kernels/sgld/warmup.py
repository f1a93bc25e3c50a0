"""Warm-up of the stochastic-gradient kernels: mode, curvature, noise, step size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.kernels.sgld.stochastic import (
    Dynamics,
    StochasticOptions,
    batch_size_of,
)
from nutfree.minibatch.gradients import (
    Control,
    control_at,
    control_variate,
    flat_minibatch,
)
from nutfree.minibatch.mode import laplace_of_rows
from nutfree.minibatch.noise import BatchedPosterior, survey
from nutfree.minibatch.sampling import (
    check_sampling,
    require_fixed_rows,
    row_sampler,
)
from nutfree.numerics.evaluation import is_finite
from nutfree.numerics.laplace import Laplace
from nutfree.warmup.base import Warmup
from nutfree.warmup.by_bias import Pilot, warmup_by_bias

#: sampling='auto' looks for unequal rows up to this number of rows.
AUTO_ROWS = 2**18
#: sampling='auto' draws rows unequally where the noise of even batches is larger than
#: this, in units of the posterior's variance.
AUTO_NOISE = 1.0


def _as_found(mode: Laplace, position, noise=None):
    """The mode as it was found, or the noise as it was measured."""
    del position
    return mode if noise is None else noise


def warmup_builder(
    dynamics: Dynamics,
    default: Any = StochasticOptions(),
    reshape: Callable = _as_found,
    total_noise: Callable = _as_found,
) -> Callable[..., Warmup]:
    """`warmup` of a kernel with these dynamics and options.

    Args:
        reshape: `(mode, position) -> mode`, for a kernel whose law has another
            covariance than the posterior's.
        total_noise: `(mode as found, position, noise) -> noise`, of shape `(d,)`, with
            what the kernel adds to that of the batches.
    """

    def warmup(options=default) -> Warmup:
        """Find the mode, its curvature and control variate, and a step size.

        The step size is that at which the predicted inflation of the posterior
        variance, from the noise of gradients around the mode, is `max_inflation`. With
        sampling="auto", where the noise exceeds the posterior's own, rows are drawn in
        proportion to their gradients. After a divergent transition the step is halved.
        Settings of the dynamics that the user has fixed are so while all of this is
        tuned.
        """
        check_sampling(options.sampling, options.replacement)
        settings = {
            name: value if (fixed := getattr(options, name)) is None else fixed
            for name, value in dynamics.settings.items()
        }

        def pilot(rng_key, position, target, num_steps):
            del num_steps
            x, unravel = ravel_pytree(position)
            minibatch = flat_minibatch(target.minibatch, unravel)
            batch_size = batch_size_of(options, minibatch.num_data, x.size)
            mode_key, noise_key, rows_key = jax.random.split(rng_key, 3)
            count = jnp.zeros((), x.dtype)
            found, count = laplace_of_rows(mode_key, minibatch, x, count)
            control = Control(found.centre, jnp.zeros_like(x))
            if options.gradient != "plain":
                control, count = control_at(minibatch, found.centre, count)
            posterior = BatchedPosterior(
                minibatch,
                found,
                control,
                options.gradient,
                batch_size,
                row_sampler(minibatch.num_data, batch_size, options.replacement),
                lambda mode: reshape(mode, position),
                lambda mode, noise: total_noise(mode, position, noise),
            )
            limit = None
            if _may_be_unequal(options, minibatch, batch_size):
                limit = AUTO_NOISE if options.sampling == "auto" else 0.0
            around, count = survey(
                noise_key, posterior, options.max_inflation, limit, count
            )
            mode = reshape(found._replace(covariance=around.covariance), position)
            params = {
                "control": control if options.gradient == "control_variate" else (),
                "shares": around.shares,
                "gradient_noise": around.noise,
                "num_steps": jnp.asarray(0),
            }
            # chains start apart, where the density allows it
            start = around.places[-1]
            rows = posterior.draw_rows(rows_key, around.shares)
            g, count = control_variate(minibatch, rows, start, control, count)
            start = jnp.where(is_finite(start, g), start, mode.centre)
            noise, curvature = around.noise, mode.curvature
            return Pilot(start, mode.covariance, curvature, noise, params), count

        def tune(max_inflation, noise, curvature):
            values = {k: jnp.asarray(v, noise.dtype) for k, v in settings.items()}
            return values | dynamics.tune(max_inflation, noise, curvature, values)

        return warmup_by_bias(pilot, options.max_inflation, tune)

    return warmup


def _may_be_unequal(options, minibatch, batch_size: int) -> bool:
    """Whether rows may be drawn with unequal probabilities."""
    if options.sampling == "importance":
        require_fixed_rows(minibatch, "sampling='importance'")
    elif minibatch.in_order is not None or minibatch.num_data > AUTO_ROWS:
        return False
    allowed = options.sampling != "uniform" and options.replacement
    return allowed and batch_size < minibatch.num_data
