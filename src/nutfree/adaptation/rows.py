"""Warm-up of the stochastic-gradient kernels: mode, curvature, noise, step size."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.adaptation.bandit import stein_bandit
from nutfree.adaptation.base import AdaptationState, Warmup
from nutfree.adaptation.mode import Laplace
from nutfree.adaptation.mode_of_rows import laplace_of_rows
from nutfree.dynamics.estimators import WANDERING, row_gradients
from nutfree.dynamics.evaluation import is_finite, select
from nutfree.dynamics.gradients import (
    BLOCK_SIZE,
    NOISE_DRAWS,
    Control,
    control_at,
    control_variate,
    default_batch_size,
    flat_minibatch,
    plain,
    whitened_noise,
)
from nutfree.dynamics.preconditioning import matvec, root, solve_root, transpose
from nutfree.dynamics.rows import (
    check_sampling,
    even_shares,
    require_fixed_rows,
    row_shares,
)
from nutfree.dynamics.stochastic import Dynamics, row_sampler
from nutfree.errors import InvalidOption

#: Positions at which the rows' gradients are compared for importance sampling.
IMPORTANCE_DRAWS = 4
#: sampling='auto' looks for unequal rows up to this number of them, and where the noise
#: of even batches is larger than this, in units of the posterior.
AUTO_ROWS, AUTO_NOISE = 2**18, 1.0
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

            def draw_pair(key):
                return draw(key), centre(key)

            def estimate(key, pair, count, shares):
                rows = draw_rows(key, shares)
                if gradient == "plain":
                    return plain(minibatch, rows, pair[0], (), count)
                # the gradient at the centre is the same for any batch
                there = Control(pair[1], jnp.zeros_like(x))
                return control_variate(minibatch, rows, pair[0], there, count)

            def measured(shares, count, num_draws=NOISE_DRAWS):
                noise, count = whitened_noise(
                    noise_key,
                    partial(estimate, shares=shares),
                    draw_pair,
                    whiten,
                    count,
                    num_draws,
                )
                return in_all(noise), count

            def in_all(noise):
                noise = total_noise(found, position, noise)
                return jnp.where(jnp.isfinite(noise), noise, 1.0)

            shares: Any = ()
            noise = in_all(jnp.zeros_like(x))
            if unequal:
                keys = jax.random.split(share_key, IMPORTANCE_DRAWS)
                pairs = jax.vmap(draw_pair)(keys)
                limit = AUTO_NOISE if sampling == "auto" else 0.0

                def look(i, carry):
                    """Measure the noise of these shares; choose others at first."""
                    shares, noise, due, count = carry
                    num_draws = jnp.where(due, NOISE_DRAWS, 0)
                    after, count = measured(shares, count, num_draws)
                    noise = jnp.where(due, after, noise)
                    due = (i == 0) & (jnp.max(noise) > limit)
                    importance, count = _importance(
                        minibatch, pairs, gradient != "plain", whiten, count, due
                    )
                    shares = select(due, row_shares(importance), shares)
                    return shares, noise, due, count

                begin = (even_shares(num_data), noise, jnp.asarray(True), count)
                shares, noise, _, count = jax.lax.fori_loop(0, 2, look, begin)
            elif size < num_data:
                noise, count = measured(shares, count)
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
            g, count = estimate(rows_key, (start, mode.centre), count, shares)
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


def _importance(minibatch, pairs, relative: bool, whiten, count, due):
    """Root mean square of each row's whitened gradient, or of how it differs from that
    at a centre, over pairs of x and centre, `(k, d)` each; shape `(N,)`, zeros where
    it is not `due`."""
    num_data = minibatch.num_data
    num_pairs, dim = pairs[0].shape
    size = max(1, min(num_data, BLOCK_SIZE, MAX_NUMBERS // dim))
    num_blocks = -(-num_data // size)

    def block(i, squares):
        # the last block begins early enough to be whole
        start = jnp.minimum(i * size, num_data - size)
        indices = start + jnp.arange(size)

        def add(total, pair):
            _, g = row_gradients(minibatch, pair[0], indices)
            if relative:
                g = g - row_gradients(minibatch, pair[1], indices)[1]
            return total + jnp.sum(jax.vmap(whiten)(g) ** 2, axis=1), None

        total, _ = jax.lax.scan(add, jnp.zeros(size, squares.dtype), pairs)
        return jax.lax.dynamic_update_slice(squares, total, (start,))

    num_blocks = jnp.where(due, num_blocks, 0)
    squares = jnp.zeros(num_data, pairs[0].dtype)
    squares = jax.lax.fori_loop(0, num_blocks, block, squares)
    evaluated = num_blocks * size / num_data
    count = count + num_pairs * (1 + relative) * evaluated
    return jnp.sqrt(squares), count
