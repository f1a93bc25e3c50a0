"""BlackJAX's adaptive tempered SMC, from prior to posterior, a particle a transition.

Reference: Del Moral, Doucet and Jasra, JRSS B 68(3), 2006.

The pilot is the whole run of SMC, through prior * likelihood^t with t from 0 to 1. It
moves particles by HMC, whose variances come from the particles and whose step size
follows the acceptance rate from one temperature to the next. Then the transitions visit
the particles in turn and move each by a few HMC steps on the posterior before it is
emitted, so that a second round gives new draws. Bias of order 1 / num_particles.
Gradients per transition: num_refresh * num_integration_steps + 1.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import blackjax
import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp
from blackjax.smc.tuning.from_particles import particles_stds
from jax.flatten_util import ravel_pytree

from nutfree.facts import separate_modes
from nutfree.kernels.blackjax.adapter import pilot_warmup, register
from nutfree.numerics.evaluation import flatten
from nutfree.registry import option
from nutfree.target import Position
from nutfree.warmup import AdaptationState, Warmup

#: A log likelihood in place of minus infinity, which may be multiplied by zero.
NO_LIKELIHOOD = -1e10
#: Acceptance rate that the step size of the moves follows.
TARGET_ACCEPTANCE = 0.8


@dataclass(frozen=True)
class Options:
    step_size: float | None = option(
        None, "leapfrog step of the moves after the run", gt=0, tuned=True
    )
    num_particles: int = option(1000, "particles", ge=2)
    num_mcmc_steps: int = option(5, "HMC moves per temperature", ge=1)
    num_integration_steps: int = option(10, "leapfrog steps of a move", ge=1)
    num_refresh: int = option(3, "HMC moves of a particle when it is emitted", ge=1)
    target_ess: float = option(
        0.5, "effective share of the particles kept from one to the next", gt=0, lt=1
    )
    max_num_temperatures: int = option(100, "where the run gives up", ge=1)


class TemperedState(NamedTuple):
    """The draw, its log density, all particles `(N, d)`, and which one was drawn."""

    position: Position
    logdensity: jax.Array
    particles: jax.Array
    emitted: jax.Array


class TemperedInfo(NamedTuple):
    """The HMC moves of the emitted particle, and SMC's estimate of log evidence.

    Every transition is divergent if the temperatures ran out before the posterior.
    """

    acceptance_rate: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array
    log_evidence: jax.Array


class _Run(NamedTuple):
    """SMC between two temperatures, and the step size of its moves."""

    smc: Any
    step_size: jax.Array
    log_evidence: jax.Array
    num_temperatures: jax.Array


def init(position, logdensity_fn, rng_key, options: Options) -> TemperedState:
    """Return a state without particles; the first transition takes the pilot's."""
    del rng_key
    x, _ = ravel_pytree(position)
    particles = jnp.zeros((options.num_particles, x.size), x.dtype)
    return TemperedState(position, logdensity_fn(position), particles, jnp.asarray(-1))


def _moves(logdensity, num_steps: int, num_integration_steps: int):
    """Make `(rng_key, x, step_size, variances) -> (state, mean rate, divergent)`."""
    hmc = blackjax.hmc.build_kernel()

    def move(rng_key, x, step_size, variances):
        def body(state, key):
            state, info = hmc(
                key, state, logdensity, step_size, variances, num_integration_steps
            )
            return state, (info.acceptance_rate, info.is_divergent)

        keys = jax.random.split(rng_key, num_steps)
        start = blackjax.hmc.init(x, logdensity)
        state, (rates, divergent) = jax.lax.scan(body, start, keys)
        return state, jnp.mean(rates), jnp.all(divergent)

    return move


def build(options: Options):
    num_moves, num_steps = options.num_refresh, options.num_integration_steps

    def tempered_smc(
        rng_key,
        state,
        target,
        particles,
        step_size,
        inverse_mass_matrix,
        log_evidence,
        is_complete,
    ):
        _, logdensity, unravel = flatten(state.position, target)
        move = _moves(logdensity, num_moves, num_steps)
        started = state.emitted >= 0
        pool = jnp.where(started, state.particles, particles)
        index = (state.emitted + 1) % pool.shape[0]
        new, rate, divergent = move(
            rng_key, pool[index], step_size, inverse_mass_matrix
        )
        new = TemperedState(
            unravel(new.position),
            new.logdensity,
            pool.at[index].set(new.position),
            index,
        )
        count = jnp.asarray(num_moves * num_steps + 1)
        failed = divergent | ~is_complete
        return new, TemperedInfo(rate, failed, count, log_evidence)

    return tempered_smc


def warmup(options: Options) -> Warmup:
    def pilot(rng_key, position, target) -> AdaptationState:
        _, logdensity, unravel = flatten(position, target)
        draw_key, run_key, end_key = jax.random.split(rng_key, 3)
        particles = _draw_prior(draw_key, position, target, options.num_particles)
        run = _temper(run_key, particles, logdensity, unravel, target, options)
        particles, step_size = _move_on_posterior(end_key, run, logdensity, options)
        params = {
            "particles": particles,
            "step_size": step_size,
            "inverse_mass_matrix": particles_stds(particles) ** 2,
            "log_evidence": run.log_evidence,
            "is_complete": run.smc.tempering_param >= 1,
        }
        # a move evaluates its first gradient and one a step; the likelihood is asked
        # for twice at every temperature, for its increment and for the weights
        num_steps = options.num_mcmc_steps * options.num_integration_steps
        per_round = options.num_particles * (num_steps + 1)
        return AdaptationState(
            params,
            unravel(particles[0]),
            num_grad_evals=per_round * (run.num_temperatures + 1),
            num_density_evals=2 * options.num_particles * run.num_temperatures,
        )

    return pilot_warmup(pilot)


def _draw_prior(rng_key, position, target, num_particles: int) -> jax.Array:
    x, _ = ravel_pytree(position)
    draws = jax.vmap(target.prior.sample)(jax.random.split(rng_key, num_particles))
    return jax.vmap(lambda p: ravel_pytree(p)[0])(draws).astype(x.dtype)


def _temper(rng_key, particles, logdensity, unravel, target, options: Options) -> _Run:
    """Take the particles from the prior to the posterior, or as far as it goes."""

    def logprior(v):
        return target.prior.logdensity(unravel(v))

    def loglikelihood(v):
        value = logdensity(v) - logprior(v)
        return jnp.where(jnp.isfinite(value), value, NO_LIKELIHOOD)

    kernel = blackjax.adaptive_tempered_smc.build_kernel(
        logprior,
        loglikelihood,
        partial(
            blackjax.hmc.build_kernel(),
            num_integration_steps=options.num_integration_steps,
        ),
        blackjax.hmc.init,
        resampling.systematic,
        options.target_ess,
    )

    def unfinished(run):
        below = run.smc.tempering_param < 1
        return below & (run.num_temperatures < options.max_num_temperatures)

    def temperature(run):
        key = jax.random.fold_in(rng_key, run.num_temperatures)
        variances = particles_stds(run.smc.particles) ** 2
        parameters = {
            "step_size": run.step_size[None],
            "inverse_mass_matrix": variances[None],
        }
        smc, info = kernel(key, run.smc, options.num_mcmc_steps, parameters)
        rate = jnp.mean(info.update_info.acceptance_rate)
        new = _Run(
            smc,
            run.step_size * jnp.exp(rate - TARGET_ACCEPTANCE),
            run.log_evidence + info.log_likelihood_increment,
            run.num_temperatures + 1,
        )
        return jax.tree.map(lambda n, o: jnp.asarray(n, o.dtype), new, run)

    zero = jnp.zeros((), particles.dtype)
    smc = blackjax.adaptive_tempered_smc.init(particles)
    run = _Run(
        smc._replace(tempering_param=zero),
        jnp.asarray(particles.shape[1] ** -0.25, particles.dtype),
        zero,
        jnp.asarray(0),
    )
    return jax.lax.while_loop(unfinished, temperature, run)


def _move_on_posterior(rng_key, run: _Run, logdensity, options: Options):
    """Resample, as BlackJAX stops with weights, and move on the posterior itself.

    Returns:
        `(particles, step_size)`.
    """
    num_particles = options.num_particles
    pick_key, order_key, move_key = jax.random.split(rng_key, 3)
    chosen = resampling.systematic(pick_key, run.smc.weights, num_particles)
    chosen = jax.random.permutation(order_key, chosen)
    variances = particles_stds(run.smc.particles) ** 2
    move = _moves(logdensity, options.num_mcmc_steps, options.num_integration_steps)
    keys = jax.random.split(move_key, num_particles)
    states, rates, _ = jax.vmap(move, (0, 0, None, None))(
        keys, run.smc.particles[chosen], run.step_size, variances
    )
    step_size = run.step_size * jnp.exp(jnp.mean(rates) - TARGET_ACCEPTANCE)
    return states.position, step_size


def _gradients(options, params, target) -> int:
    return options.num_refresh * options.num_integration_steps + 1


SPECS = (
    register(
        "tempered_smc",
        Options,
        init=init,
        build=build,
        warmup=warmup,
        summary="BlackJAX's adaptive tempered SMC with HMC moves",
        paper="Del Moral, Doucet and Jasra 2006",
        needs=("prior",),
        suits=separate_modes,
        draws="ensemble",
        gradients=_gradients,
        guarantee="biased",
        bias_order={"num_particles": -1},
        bias="the bias falls with num_particles and num_refresh; the kernel Stein "
        "discrepancy, and agreement of mode weights between chains, show it",
    ),
)
