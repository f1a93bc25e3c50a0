"""Ensemble Föllmer sampler: for posteriors that can be evaluated, not differentiated.

Reference: Riel and Bischoff, Gradient-Free Score-Based Sampling Methods with Ensembles,
arXiv 2401.17539; the drift is that of `nutfree.kernels.ensemble.drift`,

    dY = b(Y, t) dt + dW,   b(y, t) = E[z f(y + sqrt(1-t) z)] / (sqrt(1-t) E f(..)),

with one node a particle and all nodes shared by all particles. The paper's second
sampler, by reverse diffusion, is this process in another time, has a larger error of
its steps, and is not here; `drift.py` has the figures. Three things differ from the
paper. The nodes are weighted against the mixture that they were drawn from. The path
ends before t = 1, while a few nodes still carry each particle's weights, by a draw of
Y_1 given Y_t. `num_refresh` Metropolis steps on the posterior follow (0 for the path
alone). The bias is of order 1/N; N is also the number of time steps. A transition takes
no gradients and N density evaluations: it moves the next ensemble on by one step, and
emits one member of the ensemble before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.errors import InvalidOption
from nutfree.facts import no_gradient
from nutfree.kernels.ensemble.particles import Ensemble, advance, no_ensemble
from nutfree.kernels.ensemble.reference import fit_reference, moments, reference
from nutfree.numerics.evaluation import flatten, select
from nutfree.registry import KernelSpec, option
from nutfree.target import Position
from nutfree.warmup import AdaptationState, Warmup

#: Effective share of the nodes from which on the path goes on.
PATH_ESS = 0.05
#: Effective share below which an ensemble is no sample of the posterior.
COLLAPSED_ESS = 0.02
#: Time at which the path ends at the latest.
LATEST_END = 0.95
#: Ensembles that the pilot's fit counts for in the average of their moments.
PILOT_COUNT = 4


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


class EnsembleState(NamedTuple):
    """The draw, the ensemble that it is from, and the next one on its way.

    `step` is both the member emitted next and the step that the next ensemble takes
    next; -1 before the first transition. On the path `moving` is in the coordinates
    of the reference, then in the target's. `log_ratio`, `(N,)`, is log f at the nodes
    of its first step, which are draws of the reference.
    """

    position: Position
    logdensity: jax.Array
    finished: Ensemble
    moving: Ensemble
    log_ratio: jax.Array
    step: jax.Array


class EnsembleInfo(NamedTuple):
    """What the weights tell of the emitted draw and of the reference.

    weight_ess
        Smallest effective share of the weights on the emitted ensemble's path.
        Divergent if below 0.02: then the ensemble is no sample of the posterior.
    log_importance
        log pi - log of the reference's density at the draw.
    proposal_log_importance
        The same at a draw of the reference, -inf where pi is not finite.
    """

    weight_ess: jax.Array
    log_importance: jax.Array
    proposal_log_importance: jax.Array
    is_divergent: jax.Array
    num_density_evals: jax.Array


class ReferenceFit(NamedTuple):
    """Mean of the references so far, and the number of ensembles they count for."""

    center: jax.Array
    covariance: jax.Array
    num_ensembles: jax.Array


def init(position, logdensity_fn, rng_key=None, options=Options()) -> EnsembleState:
    """Return a state without an ensemble; the first transition takes it from params."""
    del rng_key
    none = no_ensemble(options.num_particles, ravel_pytree(position)[0])
    value, ratios = logdensity_fn(position), jnp.zeros_like(none.logdensity)
    return EnsembleState(position, value, none, none, ratios, jnp.asarray(-1))


def _last_of_path(options: Options) -> int:
    """The last step of the path; unless the user says, half of the steps follow it."""
    num_particles, num_refresh = options.num_particles, options.num_refresh
    if num_refresh is None:
        num_refresh = num_particles // 2
    if num_refresh > num_particles - 2:
        raise InvalidOption(
            f"Option 'num_refresh' of the kernel 'follmer' is {num_refresh}; write at "
            f"most num_particles - 2, here {num_particles - 2}: an ensemble takes as "
            "many steps as it has particles."
        )
    return num_particles - 1 - num_refresh


def build_kernel(options=Options()) -> Callable:
    """Return `kernel(rng_key, state, logdensity_fn, **params)`.

    `end_time` is where the path ends; `center`, `(d,)`, and `scale`, `(d, d)`, are the
    reference; `ensemble` is the first `Ensemble` that draws are taken from.
    """
    last = _last_of_path(options)

    def kernel(
        rng_key, state, logdensity_fn, center, scale, end_time, ensemble
    ) -> tuple[EnsembleState, EnsembleInfo]:
        x, logdensity, unravel = flatten(state.position, logdensity_fn)
        finished = select(state.step < 0, ensemble, state.finished)
        step = jnp.maximum(state.step, 0)
        advanced = advance(
            rng_key,
            logdensity,
            state.moving,
            finished.particles,
            step,
            last,
            center=center,
            scale=scale,
            end_time=end_time,
        )
        drawn, value = finished.particles[step], finished.logdensity[step]
        finite = jnp.isfinite(value)
        # at the first step of a path all particles are at the reference's centre
        ratios = jnp.where(step == 0, advanced.log_ratio, state.log_ratio)
        half_log_det = jnp.sum(jnp.log(jnp.diag(scale)))
        constant = half_log_det + 0.5 * x.size * jnp.log(2 * jnp.pi)
        at_draw = jnp.where(finite, drawn, x)
        y = jax.scipy.linalg.solve_triangular(scale, at_draw - center, lower=True)
        importance = jnp.where(finite, value, state.logdensity) + 0.5 * jnp.sum(y**2)
        at_node = ratios[step] + constant
        step = step + 1
        full = step == options.num_particles
        none = no_ensemble(options.num_particles, x)
        new = EnsembleState(
            unravel(jnp.where(finite, drawn, x)),
            jnp.where(finite, value, state.logdensity),
            select(full, advanced.ensemble, finished),
            select(full, none, advanced.ensemble),
            ratios,
            jnp.where(full, 0, step),
        )
        info = EnsembleInfo(
            finished.weight_ess,
            importance + constant,
            at_node,
            finished.weight_ess < COLLAPSED_ESS,
            advanced.num_density_evals,
        )
        return new, info

    return kernel


class Run(NamedTuple):
    """A whole ensemble, the last time at which its weights were sound, and costs."""

    ensemble: Ensemble
    sound_until: jax.Array
    num_density_evals: jax.Array


def _run(rng_key, x, logdensity, num_particles: int, last, params) -> Run:
    """Take an ensemble all its way."""

    def body(carry, inputs):
        ensemble, directions, total = carry
        step, key = inputs
        advanced = advance(key, logdensity, ensemble, directions, step, last, **params)
        ensemble, total = advanced.ensemble, total + advanced.num_density_evals
        # without an earlier ensemble the differences are those at the end of the path
        directions = jnp.where(step == last, ensemble.particles, directions)
        return (ensemble, directions, total), advanced.weight_ess

    steps = jnp.arange(num_particles)
    keys = jax.random.split(rng_key, num_particles)
    none = no_ensemble(num_particles, x)
    start = (none, none.particles, jnp.asarray(0))
    (ensemble, _, total), shares = jax.lax.scan(body, start, (steps, keys))
    num_sound = jnp.sum(jnp.cumprod(shares >= PATH_ESS))
    sound_until = params["end_time"] * jnp.maximum(num_sound - 1, 0) / last
    return Run(ensemble, sound_until.astype(x.dtype), total)


def warmup(options=Options()) -> Warmup:
    """Fit the reference, choose where the path ends, and run the first ensemble.

    During warm-up the reference becomes the mean over the ensembles so far.
    """
    num_particles, last = options.num_particles, _last_of_path(options)

    def init(rng_key, position, target, num_steps) -> AdaptationState:
        del num_steps
        x, logdensity, unravel = flatten(position, target)
        fit_key, run_key = jax.random.split(rng_key)
        center, covariance, num_fit = fit_reference(
            fit_key, position, target, options.num_pilot_draws, options.max_pilot_rounds
        )
        gaussian = reference(center, covariance)._asdict()

        def run_to(end_time, inputs):
            key, last = inputs
            params = {**gaussian, "end_time": end_time}
            run = _run(key, x, logdensity, num_particles, last, params)
            return run.sound_until, (run, end_time)

        # the path alone to see how far it goes, then the first ensemble: a loop of
        # two, which is compiled once
        lasts = jnp.asarray([num_particles - 1, last])
        inputs = (jax.random.split(run_key), lasts)
        _, both = jax.lax.scan(run_to, jnp.asarray(LATEST_END, x.dtype), inputs)
        (run, end_time) = jax.tree.map(lambda leaf: leaf[1], both)
        first = run.ensemble
        best = jnp.argmax(first.logdensity)
        finite = jnp.isfinite(first.logdensity[best])
        return AdaptationState(
            {**gaussian, "end_time": end_time, "ensemble": first},
            unravel(jnp.where(finite, first.particles[best], x)),
            # and one where the chain starts
            num_density_evals=num_fit + jnp.sum(both[0].num_density_evals) + 1,
            inner=ReferenceFit(center, covariance, jnp.asarray(PILOT_COUNT)),
        )

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
        inner = ReferenceFit(center, covariance, count + use)
        return adapt_state._replace(params=params, inner=inner)

    def final(adapt_state) -> dict[str, Any]:
        return adapt_state.params

    return Warmup(init, update, final)


SPEC = KernelSpec(
    name="follmer",
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
    bias="the bias falls with num_particles; weight_ess says where the weights fail, "
    "and Pareto k of the reference's importance ratios where it covers too little",
    bias_order={"num_particles": -1},
    gradients=lambda options, params, target: options.num_particles,
    collects=("weight_ess", "log_importance", "proposal_log_importance"),
    uses_gradient=False,
)
