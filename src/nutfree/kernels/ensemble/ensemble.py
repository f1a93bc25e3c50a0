"""Ensemble Föllmer sampler: for posteriors that can be evaluated, not differentiated.

Reference: Riel and Bischoff, Gradient-Free Score-Based Sampling Methods with Ensembles,
arXiv 2401.17539; the drift is that of `nutfree.kernels.ensemble.follmer`,

    dY = b(Y, t) dt + dW,   b(y, t) = E[z f(y + sqrt(1-t) z)] / (sqrt(1-t) E f(..)),

with one node a particle and all nodes shared by all particles. Three things are this
package's: the nodes are weighted against the mixture that they were drawn from; the
path ends before t = 1, while a few nodes still carry each particle's weights, by a draw
of Y_1 given Y_t; and `num_refresh` Metropolis steps on the posterior follow (0 for the
path alone). The bias is of order 1/N, and of the time step. No gradients; N density
evaluations a transition, which moves the next ensemble on by one step and emits one
member of the ensemble before.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.errors import InvalidOption
from nutfree.facts import no_gradient
from nutfree.kernels.ensemble.follmer import (
    draw_nodes,
    ensemble_weights,
    follmer_step,
    jump,
)
from nutfree.kernels.ensemble.reference import (
    fit_reference,
    log_ratio,
    moments,
    reference,
)
from nutfree.numerics.evaluation import select
from nutfree.registry import KernelSpec, option
from nutfree.target import Position
from nutfree.warmup import AdaptationState, Warmup

#: Share of the nodes that must carry a particle's weights for the path to go on.
PATH_ESS = 0.05
#: Below this share a run is no result.
COLLAPSED_ESS = 0.02
LATEST_END = 0.95
#: The pilot's fit counts for so many ensembles when warm-up averages their moments.
PILOT_COUNT = 4
#: Differential evolution takes a whole difference, which leads from mode to mode.
WHOLE_STEP_PROBABILITY = 0.1


class Ensemble(NamedTuple):
    """Particles `(N, d)`, their log densities `(N,)`, and the smallest effective share
    of the weights on their path."""

    particles: jax.Array
    logdensity: jax.Array
    weight_ess: jax.Array


class EnsembleState(NamedTuple):
    """The draw, the ensemble that it is from, and the next one on its way.

    `step` is both the member emitted next and the step that the next ensemble takes
    next; -1 before the first transition. On the path `moving` is in the coordinates
    of the reference, then in the target's.
    """

    position: Position
    logdensity: jax.Array
    finished: Ensemble
    moving: Ensemble
    step: jax.Array


class EnsembleInfo(NamedTuple):
    """Smallest effective share of the weights on the emitted ensemble's path.

    Divergent if that is below 0.02: then the ensemble is no sample of the posterior.
    """

    weight_ess: jax.Array
    is_divergent: jax.Array
    num_density_evals: jax.Array


def _no_ensemble(num_particles: int, x: jax.Array) -> Ensemble:
    particles = jnp.zeros((num_particles, x.size), x.dtype)
    return Ensemble(particles, jnp.zeros(num_particles, x.dtype), jnp.ones((), x.dtype))


def init(position, logdensity_fn, rng_key=None, *, num_particles: int = 128):
    """The first ensemble is taken from `params` at the first transition."""
    del rng_key
    x, _ = ravel_pytree(position)
    none = _no_ensemble(num_particles, x)
    return EnsembleState(position, logdensity_fn(position), none, none, jnp.asarray(-1))


def _advance(logdensity):
    """One step of the ensemble on its way, N density evaluations.

    Returns `(rng_key, ensemble, directions, step, last, **params) -> (ensemble, count,
    effective share)`. Step `last` of the path is the jump; `directions`, `(N, d)`, is
    the ensemble whose differences the Metropolis steps propose.
    """
    evaluate = jax.vmap(logdensity)

    def advance(rng_key, ensemble, directions, step, last, center, scale, end_time):
        node_key, noise_key, jump_key, move_key, accept_key = jax.random.split(
            rng_key, 5
        )
        y = ensemble.particles
        n = y.shape[0]
        on_path = step <= last
        t = (jnp.minimum(step / last, 1.0) * end_time).astype(y.dtype)
        nodes = draw_nodes(node_key, y, t)
        proposals = _differential_evolution(move_key, y, directions)
        points = jnp.where(on_path, center + nodes @ scale.T, proposals)
        values = evaluate(points).astype(y.dtype)
        values = jnp.where(jnp.isfinite(values), values, -jnp.inf)

        weights = ensemble_weights(y, nodes, log_ratio(values, nodes), t)
        mean = weights.values @ nodes
        moved = follmer_step(noise_key, y, mean, t, end_time / last)
        chosen = jump(jump_key, weights)
        arrived = Ensemble(points[chosen], values[chosen], ensemble.weight_ess)
        log_uniform = jnp.log(jax.random.uniform(accept_key, (n,), y.dtype))
        accepted = log_uniform < values - ensemble.logdensity
        refreshed = Ensemble(
            jnp.where(accepted[:, None], points, y),
            jnp.where(accepted, values, ensemble.logdensity),
            ensemble.weight_ess,
        )
        walking = ensemble._replace(particles=moved)
        new = select(step == last, arrived, select(on_path, walking, refreshed))
        worst = jnp.minimum(ensemble.weight_ess, weights.ess)
        worst = jnp.where(on_path, worst, ensemble.weight_ess)
        return new._replace(weight_ess=worst), jnp.asarray(n), weights.ess

    return advance


def _differential_evolution(rng_key, x, directions) -> jax.Array:
    """x_i + g (a - b), a and b members of an ensemble that is no part of `x`."""
    n, d = x.shape
    first_key, second_key, whole_key, noise_key = jax.random.split(rng_key, 4)
    a = directions[jax.random.randint(first_key, (n,), 0, n)]
    b = directions[jax.random.randint(second_key, (n,), 0, n)]
    whole = jax.random.bernoulli(whole_key, WHOLE_STEP_PROBABILITY, (n, 1))
    size = jnp.where(whole, 1.0, 2.38 / jnp.sqrt(2 * d)).astype(x.dtype)
    noise = 1e-3 * jnp.std(directions, axis=0)
    return x + size * (a - b) + noise * jax.random.normal(noise_key, x.shape, x.dtype)


def _num_refresh(num_particles: int, num_refresh: int | None) -> int:
    """How many Metropolis steps: half of the transitions unless the user says."""
    if num_refresh is None:
        return num_particles // 2
    if num_refresh > num_particles - 2:
        raise InvalidOption(
            f"Option 'num_refresh' of the kernel 'ensemble' is {num_refresh}; write at "
            f"most num_particles - 2, here {num_particles - 2}: an ensemble takes as "
            "many steps as it has particles."
        )
    return num_refresh


def build_kernel(*, num_particles: int = 128, num_refresh: int | None = None):
    """Return `kernel(rng_key, state, logdensity_fn, **params)`.

    `end_time` is where the path ends; `center`, `(d,)`, and `scale`, `(d, d)`, are the
    reference; `ensemble` is the first `Ensemble` that draws are taken from.
    """
    last = num_particles - 1 - _num_refresh(num_particles, num_refresh)

    def kernel(
        rng_key, state, logdensity_fn, center, scale, end_time, ensemble
    ) -> tuple[EnsembleState, EnsembleInfo]:
        x, unravel = ravel_pytree(state.position)
        advance = _advance(lambda v: logdensity_fn(unravel(v)))
        finished = select(state.step < 0, ensemble, state.finished)
        step = jnp.maximum(state.step, 0)

        drawn, value = finished.particles[step], finished.logdensity[step]
        finite = jnp.isfinite(value)
        position = jnp.where(finite, drawn, x)
        logdensity = jnp.where(finite, value, state.logdensity)
        moving, count, _ = advance(
            rng_key,
            state.moving,
            finished.particles,
            step,
            last,
            center,
            scale,
            end_time,
        )
        info = EnsembleInfo(
            finished.weight_ess, finished.weight_ess < COLLAPSED_ESS, count
        )
        step = step + 1
        full = step == num_particles
        new = EnsembleState(
            unravel(position),
            logdensity,
            select(full, moving, finished),
            select(full, _no_ensemble(num_particles, x), moving),
            jnp.where(full, 0, step),
        )
        return new, info

    return kernel


def warmup(
    *,
    num_particles: int = 128,
    num_refresh: int | None = None,
    num_pilot_draws: int = 512,
    max_pilot_rounds: int = 40,
) -> Warmup:
    """Fit the reference, choose where the path ends, and run the first ensemble.

    During warm-up the reference becomes the mean over the ensembles so far.
    """
    last = num_particles - 1 - _num_refresh(num_particles, num_refresh)

    def run(rng_key, x, logdensity, params, last):
        """A whole ensemble, and the effective share of the weights at each step."""
        advance = _advance(logdensity)

        def body(carry, inputs):
            ensemble, directions, total = carry
            step, key = inputs
            ensemble, count, share = advance(
                key, ensemble, directions, step, last, **params
            )
            # without an earlier ensemble the differences are those at the jump
            directions = jnp.where(step == last, ensemble.particles, directions)
            return (ensemble, directions, total + count), share

        steps = jnp.arange(num_particles)
        keys = jax.random.split(rng_key, num_particles)
        none = _no_ensemble(num_particles, x)
        start = (none, none.particles, jnp.asarray(0))
        (ensemble, _, total), shares = jax.lax.scan(body, start, (steps, keys))
        return ensemble, shares, total

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        del num_steps
        x, unravel = ravel_pytree(position)
        fit_key, run_key = jax.random.split(rng_key)

        def logdensity(v):
            return target(unravel(v))

        center, covariance, num_fit = fit_reference(
            fit_key, position, target, num_pilot_draws, max_pilot_rounds
        )
        gaussian = reference(center, covariance)._asdict()

        def run_to(end_time, inputs):
            """A run, and the last time at which its weights were sound."""
            key, last = inputs
            params = {**gaussian, "end_time": end_time}
            ensemble, shares, count = run(key, x, logdensity, params, last)
            num_sound = jnp.sum(jnp.cumprod(shares >= PATH_ESS))
            sound_until = end_time * jnp.maximum(num_sound - 1, 0) / last
            return sound_until.astype(x.dtype), (ensemble, end_time, count)

        # the path alone to see how far it goes, then the first ensemble: a loop of
        # two, which is compiled once
        lasts = jnp.asarray([num_particles - 1, last])
        _, runs = jax.lax.scan(
            run_to,
            jnp.asarray(LATEST_END, x.dtype),
            (jax.random.split(run_key), lasts),
        )
        first, end_time, num_run = jax.tree.map(lambda leaf: leaf[1], runs)
        num_trial = runs[2][0]
        params = {**gaussian, "end_time": end_time, "ensemble": first}

        best = jnp.argmax(first.logdensity)
        finite = jnp.isfinite(first.logdensity[best])
        start = unravel(jnp.where(finite, first.particles[best], x))
        inner = (center, covariance, jnp.asarray(PILOT_COUNT))
        count = num_fit + num_trial + num_run
        return AdaptationState(params, start, num_density_evals=count, inner=inner)

    def update(adapt_state, state, info) -> AdaptationState:
        """Only where a new ensemble has just begun: on its way the reference stays."""
        del info
        center, covariance, count = adapt_state.inner
        n = state.finished.particles.shape[0]
        weights = jnp.full(n, 1 / n, center.dtype)
        sound = state.finished.weight_ess >= COLLAPSED_ESS
        new = moments(state.finished.particles, weights)
        use = (state.step == 0) & sound & jnp.all(jnp.isfinite(new[1]))
        center, covariance = (
            jnp.where(use, old + (fresh - old) / (count + 1), old)
            for fresh, old in zip(new, (center, covariance))
        )
        changed = reference(center, covariance)._asdict()
        params = select(use, {**adapt_state.params, **changed}, adapt_state.params)
        inner = (center, covariance, count + use)
        return adapt_state._replace(params=params, inner=inner)

    def final(adapt_state) -> dict:
        return adapt_state.params

    return Warmup(init, update, final)


@dataclass(frozen=True)
class Options:
    num_particles: int = option(
        128, "particles, steps of an ensemble, and evaluations a draw", ge=8
    )
    num_refresh: int | None = option(
        None,
        "Metropolis steps that end an ensemble, by default half of its steps; 0 for "
        "the path alone",
        ge=0,
    )
    end_time: float | None = option(
        None, "time at which the path draws its end", ge=0, lt=1, tuned=True
    )
    num_pilot_draws: int = option(512, "draws a round of fitting the reference", ge=16)
    max_pilot_rounds: int = option(40, "rounds of fitting the reference", ge=1)


SPEC = KernelSpec(
    name="ensemble",
    family="ensemble",
    summary="Föllmer process of an ensemble, from density values alone",
    paper="Riel and Bischoff, arXiv 2401.17539",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    draws="ensemble",
    suits=no_gradient,
    guarantee="biased",
    bias="the bias falls with num_particles; weight_ess says where the weights fail",
    uses_gradient=False,
    recommended=True,
)
