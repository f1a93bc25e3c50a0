"""BlackJAX's Metropolis chains, tuned by its window adaptation.

Dual averaging brings the step size to each kernel's acceptance rate, and Welford's
algorithm learns the variances (or the covariance) on Stan's schedule, as in
`blackjax.window_adaptation`. All are exact. Gradients per transition: those of the
trajectory for NUTS and HMC; one for MALA, Barker and GHMC; none for the random walk.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from blackjax.mcmc.random_walk import normal

from nutfree.facts import no_gradient
from nutfree.kernels.blackjax.adapter import (
    metric,
    metropolis_info,
    on_unit_scale,
    register,
)
from nutfree.numerics.evaluation import select
from nutfree.numerics.preconditioning import root
from nutfree.registry import option
from nutfree.warmup import Warmup, window_warmup


def _step_size(help: str):
    return option(None, help, gt=0, tuned=True)


def _target(default: float):
    return option(default, "acceptance rate that warm-up aims at", gt=0, lt=1)


@dataclass(frozen=True)
class HamiltonianOptions:
    step_size: float | None = _step_size("leapfrog step")
    target_acceptance_rate: float = _target(0.8)
    dense_mass: bool | None = option(
        None, "adapt a full covariance; None is up to 50 dimensions"
    )


@dataclass(frozen=True)
class NUTSOptions(HamiltonianOptions):
    dense_mass: bool = option(False, "adapt a full mass matrix")
    max_num_doublings: int = option(10, "most doublings of a trajectory", ge=1, le=20)


@dataclass(frozen=True)
class HMCOptions(HamiltonianOptions):
    num_integration_steps: int = option(10, "leapfrog steps per transition", ge=1)


@dataclass(frozen=True)
class MALAOptions(HamiltonianOptions):
    step_size: float | None = _step_size("half of h, on coordinates of unit scale")
    target_acceptance_rate: float = _target(0.574)


@dataclass(frozen=True)
class BarkerOptions(MALAOptions):
    step_size: float | None = _step_size(
        "scale of the proposal, on coordinates of unit scale"
    )


@dataclass(frozen=True)
class GHMCOptions(HamiltonianOptions):
    target_acceptance_rate: float = _target(0.95)


@dataclass(frozen=True)
class RMHOptions(HamiltonianOptions):
    step_size: float | None = _step_size("proposal scale, in posterior deviations")
    target_acceptance_rate: float = _target(0.3)


def _init(algorithm):
    def init(position, logdensity_fn, rng_key, options):
        del rng_key, options
        return algorithm.init(position, logdensity_fn)

    return init


def init_ghmc(position, logdensity_fn, rng_key, options):
    del options
    return blackjax.ghmc.init(position, logdensity_fn, rng_key)


class HamiltonianInfo(NamedTuple):
    """As of every Metropolis kernel, and the energy, minus the log density of position
    and momentum, which ArviZ's `plot_energy` and `bfmi` read."""

    acceptance_rate: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array
    num_density_evals: jax.Array
    energy: jax.Array


def _hamiltonian_info(info: Any) -> HamiltonianInfo:
    made = metropolis_info(info, num_grad_evals=info.num_integration_steps)
    return HamiltonianInfo(*made, info.energy)


def build_nuts(options: NUTSOptions):
    step = blackjax.nuts.build_kernel()
    max_num_doublings = options.max_num_doublings

    def nuts(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0):
        imm = metric(inverse_mass_matrix, state.position)
        new, info = step(
            rng_key, state, logdensity_fn, step_size, imm, max_num_doublings
        )
        return new, _hamiltonian_info(info)

    return nuts


def build_hmc(options: HMCOptions):
    step = blackjax.hmc.build_kernel()
    num_steps = options.num_integration_steps

    def hmc(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0):
        """Draw the step within 20 % of `step_size` at each transition, so that the
        trajectory is not a whole period of a Gaussian for good (Neal 2011, 4.2)."""
        imm = metric(inverse_mass_matrix, state.position)
        rng_key, jitter_key = jax.random.split(rng_key)
        step_size = step_size * jax.random.uniform(jitter_key, (), imm.dtype, 0.8, 1.2)
        new, info = step(rng_key, state, logdensity_fn, step_size, imm, num_steps)
        return new, _hamiltonian_info(info)

    return hmc


def _build_on_unit_scale(algorithm):
    """BlackJAX's MALA takes no metric, and its Barker proposal moves by the square root
    of the mass matrix where its inverse is meant (1.7.1), so neither is given one.
    """

    def build(options):
        del options
        step = algorithm.build_kernel()

        def scaled(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0):
            new, info = on_unit_scale(
                lambda start, density: step(rng_key, start, density, step_size),
                state,
                logdensity_fn,
                inverse_mass_matrix,
            )
            # a rejected proposal leaves everything exactly as it was
            new = select(info.is_accepted, new, state)
            made = metropolis_info(info, num_grad_evals=1)
            # BlackJAX refuses a point without a gradient as one without density
            return new, made._replace(is_divergent=made.acceptance_rate == 0)

        return scaled

    return build


def build_ghmc(options: GHMCOptions):
    del options
    step = blackjax.ghmc.build_kernel()

    def ghmc(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0):
        """Damp by MEADS' rule for a posterior of unit scale, where gamma = 1."""
        alpha = 1 - jnp.exp(-2 * step_size)
        delta = alpha / 2
        scale = metric(inverse_mass_matrix, state.position)
        # BlackJAX takes a covariance, but scales where there are only variances
        scale = scale if scale.ndim == 2 else jnp.sqrt(scale)
        new, info = step(rng_key, state, logdensity_fn, step_size, scale, alpha, delta)
        # where the energy is infinite BlackJAX's slice becomes inf * 0
        kept = (state.slice + 1 + delta) % 2 - 1
        new = new._replace(slice=jnp.where(info.is_accepted, new.slice, kept))
        return new, metropolis_info(info, num_grad_evals=1)

    return ghmc


def build_rmh(options: RMHOptions):
    del options
    step = blackjax.additive_step_random_walk.build_kernel()

    def rmh(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0):
        """Propose N(x, h^2 C), C the inverse mass matrix."""
        factor = root(metric(inverse_mass_matrix, state.position))
        new, info = step(rng_key, state, logdensity_fn, normal(step_size * factor))
        return new, metropolis_info(info, num_density_evals=1)

    return rmh


def warmup_hamiltonian(options: HamiltonianOptions) -> Warmup:
    return window_warmup(
        options.target_acceptance_rate,
        dense_mass=options.dense_mass,
        walk=False,
        pilot=None,
    )


def warmup_langevin(options: HamiltonianOptions) -> Warmup:
    return window_warmup(
        options.target_acceptance_rate,
        initial_step_size=0.5,
        dense_mass=options.dense_mass,
    )


def warmup_random_walk(options: RMHOptions) -> Warmup:
    return window_warmup(
        options.target_acceptance_rate,
        dense_mass=options.dense_mass,
        pilot="differences",
    )


SPECS = (
    register(
        "nuts",
        NUTSOptions,
        init=_init(blackjax.nuts),
        build=build_nuts,
        warmup=warmup_hamiltonian,
        summary="BlackJAX's No-U-Turn sampler",
        paper="Hoffman and Gelman 2014",
        collects=("energy",),
    ),
    register(
        "hmc",
        HMCOptions,
        init=_init(blackjax.hmc),
        build=build_hmc,
        warmup=warmup_hamiltonian,
        summary="BlackJAX's Hamiltonian Monte Carlo, of a fixed number of steps",
        paper="Neal 2011, arXiv 1206.1901",
        collects=("energy",),
        gradients=lambda options, params, target: options.num_integration_steps,
    ),
    register(
        "mala",
        MALAOptions,
        init=_init(blackjax.mala),
        build=_build_on_unit_scale(blackjax.mala),
        warmup=warmup_langevin,
        summary="BlackJAX's Metropolis-adjusted Langevin",
        paper="Roberts and Tweedie 1996",
        gradients=1,
    ),
    register(
        "barker",
        BarkerOptions,
        init=_init(blackjax.barker),
        build=_build_on_unit_scale(blackjax.barker),
        warmup=warmup_langevin,
        summary="BlackJAX's Barker proposal, robust to a rough step size",
        paper="Livingstone and Zanella 2022, arXiv 1908.11812",
        gradients=1,
    ),
    register(
        "ghmc",
        GHMCOptions,
        init=init_ghmc,
        build=build_ghmc,
        warmup=warmup_langevin,
        summary="BlackJAX's generalised HMC, one leapfrog step with lasting momentum",
        paper="Horowitz 1991; Neal 2020, arXiv 2001.11950",
        gradients=1,
    ),
    register(
        "rmh",
        RMHOptions,
        init=_init(blackjax.additive_step_random_walk),
        build=build_rmh,
        warmup=warmup_random_walk,
        summary="BlackJAX's random walk with an adapted covariance",
        paper="Haario, Saksman and Tamminen 2001",
        gradients=1,
        suits=no_gradient,
        uses_gradient=False,
    ),
)
