"""BlackJAX's microcanonical Langevin, unadjusted and adjusted, with its own tuning.

The pilot is `blackjax.mclmc_find_L_and_step_size` (and its adjusted twin): step size
from the energy error (the acceptance rate), the length L, and the variances. The bias
of the unadjusted kernel is of order two in the step size. Gradients per transition: two
for the unadjusted kernel, on average 2 L / step_size for the adjusted one.
"""

from dataclasses import dataclass
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from blackjax.mcmc.adjusted_mclmc_dynamic import make_random_trajectory_length_fn
from jax.flatten_util import ravel_pytree

from nutfree.errors import MissingCapability
from nutfree.kernels.blackjax.adapter import (
    metropolis_info,
    on_unit_scale,
    pilot_warmup,
    register,
)
from nutfree.numerics.evaluation import flatten, select
from nutfree.numerics.preconditioning import matvec, root
from nutfree.registry import option
from nutfree.warmup import AdaptationState, Warmup
from nutfree.warmup.pathfinder import pathfinder
from nutfree.warmup.window import DENSE_DIM

#: Gradients per step of the McLachlan integrator, BlackJAX's default.
GRADS_PER_STEP = 2


@dataclass(frozen=True)
class MCLMCOptions:
    step_size: float | None = option(None, "integrator step", gt=0, tuned=True)
    L: float | None = option(
        None, "length over which the momentum is forgotten", gt=0, tuned=True
    )
    num_tuning_steps: int = option(3000, "steps of the pilot", ge=100)


@dataclass(frozen=True)
class AdjustedMCLMCOptions:
    step_size: float | None = option(None, "integrator step", gt=0, tuned=True)
    L: float | None = option(None, "mean length of a trajectory", gt=0, tuned=True)
    num_tuning_steps: int = option(2000, "transitions of the pilot", ge=100)
    target_acceptance_rate: float = option(
        0.9, "acceptance rate that the pilot aims at", gt=0, lt=1
    )


class MCLMCInfo(NamedTuple):
    """Energy error of the step, whether it failed, and the gradients spent."""

    energy_change: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array


def _check_dimension(name: str, position) -> None:
    """Refuse a line, on which the momentum has no direction to turn to."""
    x, _ = ravel_pytree(position)
    if x.size < 2:
        raise MissingCapability(
            f"The kernel 'blackjax.{name}' needs at least two parameters, and this "
            "posterior has one. Write 'blackjax.nuts' instead."
        )


def init_mclmc(position, logdensity_fn, rng_key, options=None):
    del options
    _check_dimension("mclmc", position)
    return blackjax.mclmc.init(position, logdensity_fn, rng_key)


def build_mclmc(options: MCLMCOptions):
    del options
    step = blackjax.mclmc.build_kernel()

    def mclmc(rng_key, state, logdensity_fn, step_size, L, inverse_mass_matrix=1.0):
        momentum, unravel = ravel_pytree(state.momentum)
        new, info = on_unit_scale(
            lambda start, density: step(rng_key, start, density, 1.0, L, step_size),
            state._replace(momentum=momentum),
            logdensity_fn,
            inverse_mass_matrix,
        )
        new = new._replace(momentum=unravel(new.momentum))
        failed = ~info.nonans
        count = jnp.asarray(GRADS_PER_STEP)
        return new, MCLMCInfo(info.energy_change, failed, count)

    return mclmc


def init_adjusted(position, logdensity_fn, rng_key, options=None):
    del rng_key, options
    _check_dimension("adjusted_mclmc", position)
    return blackjax.adjusted_mclmc.init(position, logdensity_fn)


def _adjusted_step():
    """Make `adjusted_mclmc_dynamic`, its random number of steps drawn from the key."""
    step = blackjax.adjusted_mclmc.build_kernel()
    draw_length = make_random_trajectory_length_fn(True)

    def dynamic(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        inverse_mass_matrix,
        integration_steps_params,
    ):
        key, length_key = jax.random.split(rng_key)
        return step(
            key,
            state,
            logdensity_fn,
            step_size,
            integration_steps_params=(
                draw_length(length_key, *integration_steps_params),
            ),
            inverse_mass_matrix=inverse_mass_matrix,
        )

    return dynamic


def build_adjusted(options: AdjustedMCLMCOptions):
    del options
    step = _adjusted_step()

    def adjusted_mclmc(
        rng_key, state, logdensity_fn, step_size, L, inverse_mass_matrix=1.0
    ):
        mean_steps = jnp.maximum(L / step_size, 1.0)
        new, info = on_unit_scale(
            lambda start, density: step(
                rng_key, start, density, step_size, 1.0, (mean_steps,)
            ),
            state,
            logdensity_fn,
            inverse_mass_matrix,
        )
        new = select(info.is_accepted, new, state)
        count = GRADS_PER_STEP * info.num_integration_steps
        return new, metropolis_info(info, num_grad_evals=count)

    return adjusted_mclmc


def _pilot(tune, init, rng_key, position, target) -> AdaptationState:
    """Run BlackJAX's tuning from where Pathfinder ends, in its coordinates z.

    They are centred, x = start + R z: BlackJAX takes variances as E[z^2] - E[z]^2,
    which would cancel in float32 far from the origin.
    """
    x, logdensity, unravel = flatten(position, target)
    start_key, init_key, tune_key = jax.random.split(rng_key, 3)
    dense = x.size <= DENSE_DIM
    found, spent = pathfinder(start_key, logdensity, x, dense=dense)
    x, factor = found.x, root(found.covariance)

    def standardised(z):
        return logdensity(x + matvec(factor, z))

    start = init(jnp.zeros_like(x), standardised, init_key)
    state, tuned, num_steps = tune(tune_key, start, standardised)
    default = jnp.sqrt(jnp.asarray(x.size, x.dtype))

    def sane(value, instead):
        value = jnp.asarray(value, x.dtype)
        return jnp.where(jnp.isfinite(value) & (value > 0), value, instead)

    tuned_variances = sane(tuned.inverse_mass_matrix, jnp.ones_like(x))
    step_size = sane(tuned.step_size, 0.1 * default)
    params = {
        "step_size": step_size,
        "L": jnp.maximum(sane(tuned.L, default), step_size),
        "inverse_mass_matrix": factor * tuned_variances @ factor.T
        if dense
        else factor**2 * tuned_variances,
    }
    # and the gradient of the state to start from
    count = spent[0] + GRADS_PER_STEP * jnp.asarray(num_steps) + 1
    end = unravel(x + matvec(factor, state.position))
    return AdaptationState(params, end, count, spent[1])


def warmup_mclmc(options: MCLMCOptions) -> Warmup:
    step = blackjax.mclmc.build_kernel()

    def tune(rng_key, state, logdensity_fn):
        # shares of the steps: the step size, the variances (0.1 more), L
        return blackjax.mclmc_find_L_and_step_size(
            step,
            options.num_tuning_steps,
            state,
            rng_key,
            logdensity_fn,
            frac_tune1=0.3,
            frac_tune2=0.3,
            frac_tune3=0.3,
        )

    def pilot(rng_key, position, target):
        return _pilot(tune, init_mclmc, rng_key, position, target)

    return pilot_warmup(pilot)


def warmup_adjusted(options: AdjustedMCLMCOptions) -> Warmup:
    step = _adjusted_step()

    def tune(rng_key, state, logdensity_fn):
        return blackjax.adjusted_mclmc_find_L_and_step_size(
            step,
            logdensity_fn,
            options.num_tuning_steps,
            state,
            rng_key,
            target=options.target_acceptance_rate,
            frac_tune1=0.3,
            frac_tune2=0.4,
        )

    def pilot(rng_key, position, target):
        return _pilot(tune, init_adjusted, rng_key, position, target)

    return pilot_warmup(pilot)


SPECS = (
    register(
        "mclmc",
        MCLMCOptions,
        init=init_mclmc,
        build=build_mclmc,
        warmup=warmup_mclmc,
        summary="BlackJAX's microcanonical Langevin, one unadjusted step a transition",
        paper="Robnik and Seljak 2023, arXiv 2303.18221",
        gradients=GRADS_PER_STEP,
        guarantee="biased",
        bias_order={"step_size": 2},
        bias="the bias falls with step_size; the kernel Stein discrepancy shows it",
    ),
    register(
        "adjusted_mclmc",
        AdjustedMCLMCOptions,
        init=init_adjusted,
        build=build_adjusted,
        warmup=warmup_adjusted,
        summary="BlackJAX's Metropolis-adjusted microcanonical sampler",
        paper="Robnik, Cohn-Gordon and Seljak 2025, arXiv 2503.01707",
    ),
)
