"""BlackJAX's stochastic-gradient samplers on the rows of `target.minibatch`.

With g the gradient of the log density from a batch of n of N rows, and p the momentum,

    SGLD:  x' = x + h g(x) + sqrt(2 h) xi,
    SGHMC: x' = x + h p,  p' = (1 - alpha h) p + h g(x) + sqrt(2 alpha h) xi,
    SGNHT: the same with friction s in place of alpha's, s' = s + h (|p'|^2 / d - 1).

BlackJAX leaves the step size to the caller. The pilot here goes to the mode by Adam,
measures the curvature there, in whose scale the sampler then runs, and takes the
largest step that is stable and lets the batch's noise heat the chain by a tenth.

SGLD and SGNHT have a bias of order one in h. SGHMC draws p anew every L steps, and its
Euler steps gain energy in between: however small h is, the variance of a Gaussian is
L / (L - 1) times too large, a bias of order one in 1 / L.
Gradients per transition: n / N; L n / N for SGHMC.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from blackjax.sgmcmc.sgnht import SGNHTState
from jax.flatten_util import ravel_pytree

from nutfree.facts import many_rows
from nutfree.kernels.blackjax.adapter import pilot_warmup, register
from nutfree.kernels.blackjax.minibatch_pilot import (
    BATCHES_PER_PROBE,
    NUM_PROBES,
    Curvature,
    draw_rows,
    find_mode,
    gradient_on_scale,
    measure_curvature,
)
from nutfree.registry import option
from nutfree.target import Position
from nutfree.warmup import AdaptationState, Warmup

#: Relative extra variance that the batch's noise may bring.
HEAT = 0.1


@dataclass(frozen=True)
class SGLDOptions:
    step_size: float | None = option(
        None, "step, in coordinates of unit curvature", gt=0, tuned=True
    )
    batch_size: int = option(100, "rows per gradient", ge=1)
    num_pilot_steps: int = option(1000, "Adam steps of the pilot", ge=1)


@dataclass(frozen=True)
class SGHMCOptions(SGLDOptions):
    num_integration_steps: int = option(10, "steps between fresh momenta", ge=2)
    friction: float = option(0.01, "friction, BlackJAX's alpha", ge=0)


@dataclass(frozen=True)
class SGNHTOptions(SGLDOptions):
    friction: float = option(1.0, "noise of the momentum, BlackJAX's alpha", gt=0)


class StochasticState(NamedTuple):
    position: Position


class StochasticInfo(NamedTuple):
    """Whether the step was not finite, and the gradients spent, in full passes."""

    is_divergent: jax.Array
    num_grad_evals: jax.Array


def _step(move, num_grads: int, batch_size: int):
    """Make a transition of `move(rng_key, state in z, gradient, rows, step_size)`."""

    def step(rng_key, state, target, step_size, scale=1.0):
        move_key, row_key = jax.random.split(rng_key)
        num_data = target.minibatch.num_data
        rows = draw_rows(row_key, num_data, batch_size)
        grad, z, back = gradient_on_scale(target, state.position, scale)
        new = move(move_key, state._replace(position=z), grad, rows, step_size)
        count = jnp.asarray(num_grads * rows.size / num_data, z.dtype)
        new = new._replace(position=back(new.position))
        return new, StochasticInfo(jnp.asarray(False), count)

    return step


def init(position, logdensity_fn, rng_key, options) -> StochasticState:
    del logdensity_fn, rng_key, options
    return StochasticState(position)


def init_sgnht(position, logdensity_fn, rng_key, options: SGNHTOptions) -> SGNHTState:
    del logdensity_fn
    x, _ = ravel_pytree(position)
    friction = jnp.asarray(options.friction, x.dtype)
    state = blackjax.sgmcmc.sgnht.init(x, rng_key, friction)
    return state._replace(position=position)


def build_sgld(options: SGLDOptions):
    kernel = blackjax.sgld.build_kernel()

    def move(rng_key, state, grad, rows, step_size):
        return StochasticState(kernel(rng_key, state.position, grad, rows, step_size))

    return _step(move, 1, options.batch_size)


def build_sghmc(options: SGHMCOptions):
    kernel = blackjax.sghmc.build_kernel(options.friction)
    num_steps = options.num_integration_steps

    def move(rng_key, state, grad, rows, step_size):
        position = kernel(rng_key, state.position, grad, rows, step_size, num_steps)
        return StochasticState(position)

    return _step(move, num_steps, options.batch_size)


def build_sgnht(options: SGNHTOptions):
    kernel = blackjax.sgnht.build_kernel(options.friction)

    def move(rng_key, state, grad, rows, step_size) -> SGNHTState:
        return kernel(rng_key, state, grad, rows, step_size)

    return _step(move, 1, options.batch_size)


def _warmup(choose_step):
    def warmup(options: SGLDOptions) -> Warmup:
        batch_size, num_steps = options.batch_size, options.num_pilot_steps

        def pilot(rng_key, position, target) -> AdaptationState:
            descent_key, curvature_key = jax.random.split(rng_key)
            mode = find_mode(descent_key, position, target, batch_size, num_steps)
            found = measure_curvature(curvature_key, mode, target, batch_size)
            step_size = choose_step(found, options)
            params = {"step_size": step_size, "scale": found.scale}
            num_batches = num_steps + BATCHES_PER_PROBE * NUM_PROBES
            spent = _one_batch(options, params, target) * num_batches
            count = jnp.asarray(spent, found.scale.dtype)
            return AdaptationState(params, mode, num_grad_evals=count)

        return pilot_warmup(pilot)

    return warmup


def _sgld_step(found: Curvature, options: SGLDOptions) -> jax.Array:
    # the batch's noise adds h^2 V to a step's variance of 2 h
    del options
    return jnp.minimum(0.1 / found.largest, 2 * HEAT / found.noise)


def _sghmc_step(found: Curvature, options: SGHMCOptions) -> jax.Array:
    # the same rows serve all steps between two fresh momenta of variance 1, so that
    # their errors h sqrt(V) add up; beyond a trajectory of length one in the narrowest
    # direction, Euler's gain of energy is the larger error
    num_steps = options.num_integration_steps
    for_noise = jnp.sqrt(2 * HEAT / found.noise) / num_steps
    stable = min(0.2, 1 / num_steps) / jnp.sqrt(found.largest)
    return jnp.minimum(stable, for_noise)


def _sgnht_step(found: Curvature, options: SGNHTOptions) -> jax.Array:
    # the thermostat takes up friction of h V / 2
    del options
    return jnp.minimum(0.2 / jnp.sqrt(found.largest), 2 / found.noise)


def _one_batch(options, params, target) -> float:
    return min(options.batch_size / target.minibatch.num_data, 1.0)


def _batch_per_step(options, params, target) -> float:
    return options.num_integration_steps * _one_batch(options, params, target)


_FIELDS: dict[str, Any] = {
    "needs": ("minibatch",),
    "suits": many_rows,
    "guarantee": "biased",
}
FALLS_WITH_STEP_SIZE = (
    "the bias falls with step_size and with batch_size; the kernel Stein discrepancy "
    "shows it"
)

SPECS = (
    register(
        "sgld",
        SGLDOptions,
        init=init,
        build=build_sgld,
        warmup=_warmup(_sgld_step),
        summary="BlackJAX's stochastic-gradient Langevin dynamics",
        paper="Welling and Teh 2011",
        gradients=_one_batch,
        bias_order={"step_size": 1},
        bias=FALLS_WITH_STEP_SIZE,
        **_FIELDS,
    ),
    register(
        "sghmc",
        SGHMCOptions,
        init=init,
        build=build_sghmc,
        warmup=_warmup(_sghmc_step),
        summary="BlackJAX's stochastic-gradient HMC",
        paper="Chen, Fox and Guestrin 2014, arXiv 1402.4102",
        gradients=_batch_per_step,
        bias_order={"num_integration_steps": -1},
        bias="the bias falls with num_integration_steps, and that of the batch's noise "
        "with step_size and batch_size; the kernel Stein discrepancy shows it",
        **_FIELDS,
    ),
    register(
        "sgnht",
        SGNHTOptions,
        init=init_sgnht,
        build=build_sgnht,
        warmup=_warmup(_sgnht_step),
        summary="BlackJAX's stochastic-gradient Nosé-Hoover thermostat",
        paper="Ding et al. 2014",
        gradients=_one_batch,
        bias_order={"step_size": 1},
        bias=FALLS_WITH_STEP_SIZE,
        **_FIELDS,
    ),
)
