"""Warm-up of the stochastic-gradient kernels: mode, curvature, noise, step size."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.adaptation.bandit import stein_bandit
from nutfree.adaptation.base import AdaptationState, Warmup
from nutfree.adaptation.mode import Laplace
from nutfree.adaptation.mode_of_rows import laplace_of_rows
from nutfree.dynamics.estimators import WANDERING, row_gradients
from nutfree.dynamics.evaluation import is_finite
from nutfree.dynamics.gradients import (
    BLOCK_SIZE,
    Control,
    control_at,
    control_variate,
    default_batch_size,
    flat_minibatch,
    plain,
    whitened_noise,
)
from nutfree.dynamics.preconditioning import matvec, root, solve_root, transpose
from nutfree.dynamics.rows import check_sampling, require_fixed_rows, row_shares
from nutfree.dynamics.stochastic import Dynamics, row_sampler
from nutfree.errors import InvalidOption

#: Positions at which the rows' gradients are compared for importance sampling.
IMPORTANCE_DRAWS = 4
#: Numbers of a block of rows' gradients that are in memory at once.
MAX_NUMBERS = 2**20


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
        sampling: str = "uniform",
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
        gradient takes. After a divergent transition it is halved. Settings of the
        dynamics that the user has `fixed` are so while all of this is tuned.
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
            draw_rows = row_sampler(num_data, size, sampling, replacement)
            mode_key, noise_key, start_key, rows_key = jax.random.split(rng_key, 4)
            share_key = jax.random.fold_in(rng_key, 4)
            count = jnp.zeros((), x.dtype)
            found, count = laplace_of_rows(mode_key, minibatch, x, count)
            mode = reshape(found, position)
            factor = root(mode.covariance)
            control: Control | tuple = ()
            if gradient == "control_variate":
                control, count = control_at(minibatch, mode.centre, count)

            def whiten(g):
                return matvec(transpose(factor), g)

            def draw(key):
                noise = jax.random.normal(key, x.shape, x.dtype)
                return mode.centre + matvec(factor, noise)

            def centre(key):
                """Where the estimate is exact; a stand-in for the chain's past."""
                if gradient in WANDERING:
                    return draw(jax.random.fold_in(key, 1))
                return mode.centre

            shares: Any = ()
            if sampling == "importance":
                require_fixed_rows(minibatch, "sampling='importance'")
                keys = jax.random.split(share_key, IMPORTANCE_DRAWS)
                pairs = [(draw(key), centre(key)) for key in keys]
                relative = gradient != "plain"
                importance, count = _importance(
                    minibatch, pairs, relative, whiten, count
                )
                shares = row_shares(importance)

            def draw_pair(key):
                return draw(key), centre(key)

            def estimate(key, pair, count):
                rows = draw_rows(key, shares)
                if gradient == "plain":
                    return plain(minibatch, rows, pair[0], (), count)
                # the gradient at the centre is the same for any batch
                there = Control(pair[1], jnp.zeros_like(x))
                return control_variate(minibatch, rows, pair[0], there, count)

            noise = jnp.zeros_like(x)
            if size < num_data:
                noise, count = whitened_noise(
                    noise_key, estimate, draw_pair, whiten, count
                )
            noise = total_noise(found, position, noise)
            noise = jnp.where(jnp.isfinite(noise), noise, 1.0)
            settings = {
                name: jnp.asarray((fixed or {}).get(name, value), x.dtype)
                for name, value in dynamics.settings.items()
            }
            params = {
                "inverse_mass_matrix": mode.covariance,
                "control": control,
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
            start = draw(start_key)
            g, count = estimate(rows_key, (start, mode.centre), count)
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


def _importance(minibatch, pairs, relative: bool, whiten, count):
    """Root mean square of each row's whitened gradient, or of how it differs from that
    at a centre, over `(x, centre)` pairs; shape `(N,)`."""
    num_data = minibatch.num_data
    dim = pairs[0][0].shape[0]
    size = max(1, min(num_data, BLOCK_SIZE, MAX_NUMBERS // dim))
    num_blocks = -(-num_data // size)

    def block(start):
        indices = jnp.minimum(start + jnp.arange(size), num_data - 1)
        total = jnp.zeros(size, pairs[0][0].dtype)
        for x, centre in pairs:
            _, g = row_gradients(minibatch, x, indices)
            if relative:
                g = g - row_gradients(minibatch, centre, indices)[1]
            total += jnp.sum(jax.vmap(whiten)(g) ** 2, axis=1)
        return total

    squares = jax.lax.map(block, jnp.arange(num_blocks) * size)
    evaluated = num_blocks * size / num_data
    count = count + len(pairs) * (1 + relative) * evaluated
    return jnp.sqrt(squares.reshape(-1)[:num_data]), count
