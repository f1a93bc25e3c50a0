"""Warm-up of the unadjusted Bregman kernels, with their adjusted sibling as the pilot.

The sibling's warm-up, and draws that it then makes, give the preconditioner and the
time in which the slowest direction is forgotten, and predict the bias (`predicted`).
Then the step of the kernel itself is found.

By dual averaging, with a kernel that has an acceptance rate: it is Metropolis-adjusted
as long as it is tuned (`adjusted` in the parameters), so that a step that is too long
costs a rejection, not the chain. Otherwise by the predicted bias.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree

from nutfree.kernels.bregman import marbmumla
from nutfree.kernels.bregman.envelopes import (
    smoothed,
    smoothed_log_density,
    term_scales,
)
from nutfree.kernels.bregman.geometry import is_real
from nutfree.kernels.bregman.predicted import (
    LADDER,
    NUM_BATCHES,
    Covariances,
    Prediction,
    Scheme,
    no_covariances,
    plus,
    prediction,
    unknown,
)
from nutfree.numerics.evaluation import counted_value_and_grad
from nutfree.numerics.moments import Moments, no_moments
from nutfree.numerics.preconditioning import matvec, standard_deviations, transpose
from nutfree.warmup import fisher
from nutfree.warmup.base import AdaptationState, Warmup

#: Acceptance rate on the smoothed target that an unadjusted step should have.
ACCEPTANCE = 0.9
#: Longest step gamma without adjustment; a Gaussian's variance is then 5 % too large.
MAX_STEP = 0.1
#: Predicted relative error of variances up to which a step is taken that has no
#: acceptance rate.
MAX_BIAS = 0.05
#: Step gamma that dual averaging begins with.
FIRST_STEP = 0.02
#: Draws of the adjusted sibling that scales are learned from; batches divide them.
NUM_DRAWS = 300
#: Transitions of the kernel itself that find its step before the host's warm-up.
NUM_TUNING = 100


class Observed(NamedTuple):
    """The sibling's chain, moments of what was observed of it, and its counts."""

    state: Any
    coordinates: Moments
    log_distances: Moments
    covariances: Covariances
    num_grad_evals: jax.Array
    num_density_evals: jax.Array


def unadjusted_warmup(
    init_state: Callable,
    kernel: Callable,
    observe: Callable,
    metric: Callable,
    smoothing: float,
    num_pilot: int,
    of: Scheme,
    *,
    mirrored: bool,
    longest: float | None = None,
) -> Warmup:
    """Tune `step_size` and what `metric` returns, and find `predicted`.

    Args:
        init_state: `(position, target) -> state`.
        kernel: the kernel that is tuned; its parameters have `adjusted` unless the step
            is found by the predicted bias.
        observe: `(position, target) -> (coordinates, logs of distances to boundaries)`.
        metric: `(params of the sibling, Observed) -> params`.
        smoothing: lambda over gamma, passed on as it is.
        num_pilot: transitions of the sibling's own pilot.
        of: the kernel's integrator.
        mirrored: which sibling, MARBMUMLA or MAMYULA.
        longest: the longest step, where it is found by the predicted bias; None for
            dual averaging.
    """
    da_init, da_update, da_final = dual_averaging_adaptation(ACCEPTANCE)
    sibling = marbmumla.build_kernel(mirrored=mirrored)
    sibling_warmup = marbmumla.warmup(
        marbmumla.Options(num_pilot=num_pilot), mirrored=mirrored
    )

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        pilot_key, draw_key, tune_key = jax.random.split(rng_key, 3)
        pilot = sibling_warmup.init(pilot_key, position, target, 0)
        found = sibling_warmup.final(pilot)
        observed = draw(draw_key, pilot, found, target)
        params = {
            "step_size": jnp.asarray(FIRST_STEP, observed.coordinates.mean.dtype),
            "num_steps": jnp.asarray(1),
            "smoothing": jnp.asarray(smoothing, observed.coordinates.mean.dtype),
            "adjusted": jnp.asarray(True),
            **metric(found, observed),
            "predicted": predict(observed, position, target),
        }
        if longest is not None:
            del params["adjusted"]
            params = {**params, "step_size": unbiased_step(params["predicted"])}
            return start(observed.state.position, params)._replace(
                num_grad_evals=observed.num_grad_evals,
                num_density_evals=observed.num_density_evals + 1,
            )
        state, adapt, grads = tune(tune_key, observed, params, target)
        params = {
            **adapt.params,
            "num_steps": jnp.asarray(0),
            "step_size": tuned_step(adapt),
            "adjusted": jnp.asarray(num_steps > 0),
        }
        # the state that the sibling began from took a density as well
        return start(state.position, params)._replace(
            num_grad_evals=grads, num_density_evals=observed.num_density_evals + 1
        )

    def draw(rng_key, pilot, found, target) -> Observed:
        """Make draws with the sibling, and observe them."""

        def one(observed, at):
            i, key = at
            state, info = sibling(key, observed.state, target, **found)
            coordinates, log_distances = observe(state.position, target)
            covariances, count = observed.covariances, info.num_grad_evals
            if is_predictable(position, target):
                numbers, count = measure(state.position, found, target, count)
                shift = (ravel_pytree(state.position)[0] - origin) / sds
                batch = i // (NUM_DRAWS // NUM_BATCHES)
                covariances = plus(covariances, batch, shift, numbers)
            return Observed(
                state,
                observed.coordinates.plus(coordinates),
                observed.log_distances.plus(log_distances),
                covariances,
                observed.num_grad_evals + count,
                observed.num_density_evals + info.num_density_evals,
            ), None

        position = pilot.position
        origin = ravel_pytree(position)[0]
        sds = standard_deviations(found["factor"])
        coordinates, log_distances = observe(position, target)
        nothing = Observed(
            marbmumla.init(pilot.position, target),
            no_moments(coordinates, dense=coordinates.size <= fisher.MAX_DENSE),
            no_moments(log_distances),
            no_covariances(origin),
            pilot.num_grad_evals,
            pilot.num_density_evals,
        )
        keys = jax.random.split(rng_key, NUM_DRAWS)
        return jax.lax.scan(one, nothing, (jnp.arange(NUM_DRAWS), keys))[0]

    def measure(position, found, target, count) -> tuple[jax.Array, jax.Array]:
        """`|grad U|^2` in the metric of the sibling's factor, and g_lambda - g at the
        steps of the ladder."""
        z, unravel = ravel_pytree(position)
        factor = found["factor"]
        _, grad, count = counted_value_and_grad(lambda z: target(unravel(z)))(z, count)
        scales = term_scales(target.split, position, factor)

        def lies_below(gamma):
            def smooth(term, x, scale):
                return smoothed(term, x, smoothing * gamma, scale)

            values = smoothed_log_density(target.split, smooth, scales)
            below, exact = values(position)
            return exact - below

        numbers = [jnp.sum(jnp.square(matvec(transpose(factor), grad)))]
        return jnp.stack(numbers + [lies_below(gamma) for gamma in LADDER]), count

    def is_predictable(position, target) -> bool:
        """Whether the noise is the same everywhere: no site is moved by a barrier."""
        return not mirrored or not (
            isinstance(position, dict)
            and any(not is_real(target.split.supports[k]) for k in position)
        )

    def predict(observed, position, target) -> Prediction:
        if is_predictable(position, target):
            return prediction(observed.covariances, of)
        return unknown(observed.coordinates.mean.dtype)

    def unbiased_step(predicted) -> jax.Array:
        """The longest step whose predicted bias is small."""
        assert longest is not None
        steps = longest * 2.0 ** -jnp.arange(12.0)
        small = jnp.abs(jax.vmap(predicted)(steps)) < MAX_BIAS
        return steps[jnp.argmax(small | (jnp.arange(12) == 11))]

    def tune(rng_key, observed, params, target) -> tuple:
        """Tune the step: `(state, adaptation state, gradients so far)`."""

        def one(carry, key):
            state, adapt, grads = carry
            state, info = kernel(key, state, target, **adapt.params)
            adapt = update(adapt, state, info)
            return (state, adapt, grads + info.num_grad_evals), None

        position = observed.state.position
        begun = start(position, params)
        carry = (init_state(position, target), begun, observed.num_grad_evals)
        return jax.lax.scan(one, carry, jax.random.split(rng_key, NUM_TUNING))[0]

    def start(position, params) -> AdaptationState:
        averaging = jax.tree.map(jnp.asarray, da_init(params["step_size"]))
        return AdaptationState(params, position, inner=(jnp.asarray(0), averaging))

    def update(adapt, state, info) -> AdaptationState:
        del state
        step, averaging = adapt.inner
        if longest is not None:
            step_size = adapt.params["step_size"]
            step_size = jnp.where(info.is_divergent, 0.5 * step_size, step_size)
            return adapt._replace(params={**adapt.params, "step_size": step_size})
        # a NaN acceptance rate (nowhere to go) counts as a rejection; digits that step
        # and rate would amplify in each other until no two compilations agree are cut
        rate = jnp.round(jnp.nan_to_num(info.acceptance_rate), 3)
        averaging = da_update(averaging, rate)
        step_size = jnp.minimum(jnp.exp(averaging.log_step_size), 2 * MAX_STEP)
        params = {**adapt.params, "step_size": step_size}
        new = adapt._replace(params=params, inner=(step + 1, averaging))
        return jax.tree.map(
            lambda o, n: jnp.asarray(n, jnp.asarray(o).dtype), adapt, new
        )

    def tuned_step(adapt) -> jax.Array:
        step, averaging = adapt.inner
        tuned = jnp.minimum(da_final(averaging), MAX_STEP)
        # without a single update the average is not defined
        step_size = jnp.where(step > 0, tuned, adapt.params["step_size"])
        return step_size.astype(adapt.params["step_size"].dtype)

    def final(adapt) -> dict[str, Any]:
        if longest is not None:
            return adapt.params
        adjusted = jnp.asarray(False)
        return {**adapt.params, "step_size": tuned_step(adapt), "adjusted": adjusted}

    return Warmup(init, update, final)
