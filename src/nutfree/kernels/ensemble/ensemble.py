"""Independent proposals of a fitted mixture, and moves by an ensemble's differences.

For posteriors that can be evaluated, not differentiated. A pilot fits a mixture q of
Student-t components by tempered adaptive importance sampling
(`nutfree.kernels.ensemble.tempering`), and keeps an archive of points drawn by the
weights. Both are then frozen, and every step is Metropolis-Hastings, with one proposal:

- with probability g(x), x' from q, accepted with probability
  min(1, g(x') pi(x') q(x) / (g(x) pi(x) q(x')));
- else by differential evolution, a snooker update, or a walk by the shape of q
  (`nutfree.kernels.ensemble.moves`), whose ratio has the factor (1 - g(x')) /
  (1 - g(x)).

With the weight w = pi / q and the evidence Z of the pilot,

    g(x) = global_probability * min(1, 8 Z / w(x)):

q hardly ever leads away from where it is too small, and there the steps are of the
second kind. What flows between such a place and the others by q is as without.

Where q does not reach the posterior, as in high dimension, an ensemble moved by its own
differences makes the archive, and all steps are of the second kind.

References: Cappe, Douc, Guillin, Marin and Robert, Statistics and Computing 18, 2008;
ter Braak, ibid. 16, 2006; ter Braak and Vrugt, ibid. 18, 2008; Tierney, Annals of
Statistics 22, 1994.

Exact. `num_steps` density evaluations per transition, about as many as it
takes for one draw of q to be accepted.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.facts import no_gradient
from nutfree.kernels.ensemble.moves import (
    Ensemble,
    follow,
    propose,
    propose_within,
    sweep,
)
from nutfree.kernels.ensemble.student import draw, log_density
from nutfree.kernels.ensemble.tempering import (
    Fit,
    finite_or_zero_density,
    fit_tempered,
    start_mixture,
)
from nutfree.numerics.evaluation import flatten, select
from nutfree.registry import KernelSpec, option
from nutfree.target import Position
from nutfree.warmup import AdaptationState, Warmup

#: Coordinates up to which a mixture is fitted.
MAX_MIXTURE_DIM = 40
#: Components and coordinates multiply to at most so much; more have too few points.
MAX_COMPONENTS_TIMES_DIM = 192
#: Acceptance of q below which it is not proposed.
LEAST_ACCEPTANCE = 0.02
#: Weight, relative to the evidence, above which q is proposed less often.
HEAVY = 8.0
#: Most steps that propose from q.
MOST_GLOBAL = 0.95
#: Share of the other steps that walk by the mixture's shape.
WITHIN_PROBABILITY = 0.5
#: Sweeps of the ensemble where q fails: a first part, and one for each coordinate.
NUM_SWEEPS, SWEEPS_PER_DIM = 100, 4
#: Transitions over which the step size comes to rest.
GAIN_STEPS = 20.0


@dataclass(frozen=True)
class Options:
    num_steps: int | None = option(
        None, "Metropolis steps, of one evaluation each, a transition", ge=1, tuned=True
    )
    global_probability: float | None = option(
        None,
        "share of the steps that propose from the mixture where it is not too small",
        ge=0,
        le=1,
        tuned=True,
    )
    step_size: float | None = option(
        None, "size of differences, relative to 2.38 / sqrt(2 d)", gt=0, tuned=True
    )
    num_components: int = option(24, "components of the mixture, at most", ge=1)
    num_pilot_draws: int = option(4096, "draws a round of fitting the mixture", ge=32)
    max_pilot_rounds: int = option(40, "rounds of fitting the mixture", ge=1)
    num_particles: int = option(
        256, "points of the archive, at least two a coordinate", ge=16
    )


class EnsembleState(NamedTuple):
    """The draw, its log density, and log q there."""

    position: Position
    logdensity: jax.Array
    log_proposal: jax.Array


class EnsembleInfo(NamedTuple):
    """What the steps of a transition came to.

    acceptance_rate
        Mean over the steps.
    local_rate
        Of the steps by scaled differences; NaN where there were none.
    log_importance
        log pi - log q at the draw.
    proposal_log_importance
        The same at the last draw of q, -inf where pi is zero or not finite; NaN where
        none was made.
    num_not_finite
        Evaluations that were NaN or +inf; each is a rejection.
    """

    acceptance_rate: jax.Array
    local_rate: jax.Array
    log_importance: jax.Array
    proposal_log_importance: jax.Array
    num_not_finite: jax.Array
    num_density_evals: jax.Array


def init(position, logdensity_fn, rng_key=None, options=Options()) -> EnsembleState:
    """Return a state whose `log_proposal`, NaN, the first transition finds."""
    del rng_key, options
    logdensity = jnp.asarray(logdensity_fn(position))
    return EnsembleState(position, logdensity, jnp.full_like(logdensity, jnp.nan))


def build_kernel(options=Options()):
    """Return `kernel(rng_key, state, logdensity_fn, **params)`.

    `mixture` is q, `archive`, `(M, d)`, has the points whose differences are proposed,
    times `step_size`; `log_evidence` is that of the pilot, and tells where q is too
    small; `num_steps` and `global_probability` are as in `Options`.
    """
    del options

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        mixture,
        archive,
        step_size,
        log_evidence,
        global_probability,
        num_steps,
    ) -> tuple[EnsembleState, EnsembleInfo]:
        x, logdensity, unravel = flatten(state.position, logdensity_fn)

        def log_q(x):
            return log_density(mixture, x[None])[0].astype(x.dtype)

        def share(log_weight):
            heavy = log_weight - log_evidence - jnp.log(HEAVY)
            return global_probability * jnp.exp(jnp.minimum(-heavy, 0.0))

        def step(i, carry):
            x, value, at_x, info = carry
            keys = jax.random.split(jax.random.fold_in(rng_key, i), 6)
            at_old = share(value - at_x)
            is_global = jax.random.uniform(keys[0]) < at_old
            local = propose(keys[1], x, archive, step_size)
            is_within = jax.random.uniform(keys[4]) < within_probability
            within = propose_within(keys[5], x, mixture)
            local = select(is_within, within, local)
            y = jnp.where(is_global, draw(keys[2], mixture), local.x)
            raw = jnp.asarray(logdensity(y), value.dtype)
            new, at_y = finite_or_zero_density(raw), log_q(y)
            at_new = share(new - at_y)
            change = jnp.where(
                is_global,
                at_x - at_y + jnp.log(at_new / at_old),
                local.log_jacobian + jnp.log1p(-at_new) - jnp.log1p(-at_old),
            )
            log_ratio = new - value + change
            usable = jnp.isfinite(new) & ~jnp.isnan(log_ratio)
            rate = jnp.where(usable, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
            accepted = jax.random.uniform(keys[3]) < rate
            x, value, at_x = select(accepted, (y, new, at_y), (x, value, at_x))
            is_scaled = ~is_global & local.is_scaled
            info = EnsembleInfo(
                info.acceptance_rate + rate,
                jnp.where(is_scaled, rate, info.local_rate).astype(value.dtype),
                value - at_x,
                jnp.where(is_global, new - at_y, info.proposal_log_importance),
                info.num_not_finite + (jnp.isnan(raw) | jnp.isposinf(raw)),
                info.num_density_evals + 1,
            )
            return x, value, at_x, info

        # where the mixture is not proposed, its shape is not trusted either
        within_probability = WITHIN_PROBABILITY * (global_probability > 0)
        value = jnp.asarray(state.logdensity)
        none, zero = jnp.full_like(value, jnp.nan), jnp.asarray(0)
        at_x = jnp.where(jnp.isnan(state.log_proposal), log_q(x), state.log_proposal)
        at_x = at_x.astype(value.dtype)
        info = EnsembleInfo(jnp.zeros_like(value), none, none, none, zero, zero)
        x, value, at_x, info = jax.lax.fori_loop(
            0, num_steps, step, (x, value, at_x, info)
        )
        rate = info.acceptance_rate / num_steps
        info = info._replace(acceptance_rate=rate.astype(value.dtype))
        return EnsembleState(unravel(x), value, at_x), info

    return kernel


def warmup(options=Options()) -> Warmup:
    """Fit the mixture and make the archive; the transitions tune `step_size`."""

    def init(rng_key, position, target, num_transitions) -> AdaptationState:
        del num_transitions
        x, logdensity, unravel = flatten(position, target)
        base_key, fit_key, sweep_key = jax.random.split(rng_key, 3)
        d = x.size
        num_components = min(options.num_components, MAX_COMPONENTS_TIMES_DIM // d)
        base = start_mixture(base_key, x, target, max(num_components, 1))
        num_particles = max(options.num_particles, 2 * d) // 2 * 2
        found = fit_tempered(
            fit_key,
            base,
            logdensity,
            num_draws=options.num_pilot_draws if d <= MAX_MIXTURE_DIM else 32,
            max_rounds=options.max_pilot_rounds if d <= MAX_MIXTURE_DIM else 1,
            num_particles=num_particles,
        )
        is_good = (found.temperature >= 1) & (found.acceptance >= LEAST_ACCEPTANCE)
        ensemble = _moved(sweep_key, x, logdensity, found, is_good)
        params = _params(found, is_good, ensemble, d)
        first = jnp.argmax(jnp.isfinite(ensemble.logdensity))
        start = jnp.where(jnp.any(jnp.isfinite(ensemble.logdensity)), 1, 0)
        position = unravel(jnp.where(start, ensemble.particles[first], x))
        spent = found.num_density_evals + ensemble.num_density_evals
        return AdaptationState(
            params, position, num_density_evals=spent, inner=jnp.asarray(0)
        )

    def update(adapt_state, state, info) -> AdaptationState:
        del state
        step_size = adapt_state.params["step_size"]
        gain = 1 / (1 + adapt_state.inner / GAIN_STEPS)
        seen = ~jnp.isnan(info.local_rate)
        new = follow(step_size, jnp.where(seen, info.local_rate, 0.0), gain)
        step_size = jnp.where(seen, new, step_size)
        params = {**adapt_state.params, "step_size": step_size}
        return adapt_state._replace(params=params, inner=adapt_state.inner + seen)

    def final(adapt_state) -> dict[str, Any]:
        return adapt_state.params

    return Warmup(init, update, final)


def _moved(rng_key, x, logdensity, found: Fit, is_good) -> Ensemble:
    """The particles as they are where q is good, else moved by their differences."""
    lost = jnp.isneginf(found.logdensity)
    particles = jnp.where(lost[:, None], x, found.particles)
    num_sweeps = NUM_SWEEPS + SWEEPS_PER_DIM * x.size

    def density(x):
        return finite_or_zero_density(logdensity(x))

    one = jnp.ones((), x.dtype)
    ensemble = Ensemble(particles, found.logdensity, one, jnp.asarray(0))
    return jax.lax.fori_loop(
        0,
        jnp.where(is_good, 0, num_sweeps),
        lambda i, e: sweep(jax.random.fold_in(rng_key, i), density, e),
        ensemble,
    )


def _params(found: Fit, is_good, ensemble: Ensemble, d: int) -> dict[str, Any]:
    dtype = ensemble.particles.dtype
    # a step of q is worth its acceptance, one by differences about a third of 1 / d,
    # and where q is too small the steps are by differences anyway
    of_q, of_differences = found.acceptance**2, (0.33 / d) ** 2
    share = of_q / (of_q + of_differences)
    share = jnp.where(is_good, jnp.clip(share, 0.1, MOST_GLOBAL), 0.0)
    most = max(4, d // 2)
    # about until a draw of q is accepted; two where one is enough cost a fifth of what
    # as many evaluations tell
    expected = jnp.clip(jnp.floor(1 / found.acceptance), 1, most)
    return {
        "mixture": found.mixture,
        "archive": ensemble.particles,
        "step_size": ensemble.step_size,
        "log_evidence": jnp.where(is_good, found.log_evidence, 0.0).astype(dtype),
        "global_probability": share.astype(dtype),
        "num_steps": jnp.where(is_good, expected, most).astype(int),
    }


def concerns(params: dict) -> list[str]:
    """What the pilot says against the mixture, for the user to read."""
    share = float(jnp.min(params["global_probability"]))
    if share > 0:
        return []
    return [
        "No mixture was found that covers the posterior, so that draws are made by "
        "differences of an ensemble alone, which hardly move between modes, and no "
        "evidence is given. Write a larger num_pilot_draws, or give the model a prior "
        "that is as wide as its posterior."
    ]


SPEC = KernelSpec(
    name="ensemble",
    family="ensemble",
    summary="exact: proposals of a mixture fitted by tempered importance sampling, and "
    "an ensemble's differences; evidence",
    paper="Cappe et al. 2008; ter Braak and Vrugt 2008",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    draws="chain",
    suits=no_gradient,
    guarantee="exact",
    gradients=lambda options, params, target: params["num_steps"],
    concerns=concerns,
    collects=("log_importance", "proposal_log_importance", "num_not_finite"),
    uses_gradient=False,
    recommended=True,
)
