"""BlackJAX's Metropolis chains, tuned by its window adaptation.

Step size by dual averaging to each kernel's acceptance rate, and variances (or the
covariance) by Welford's algorithm on Stan's schedule: `blackjax.window_adaptation`.
"""

from dataclasses import dataclass

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


def _init(api):
    def init(position, logdensity_fn, rng_key=None):
        del rng_key
        return api.init(position, logdensity_fn)

    return init


def _step_size(help: str):
    return option(None, help, gt=0, tuned=True)


def _dense_mass():
    return option(None, "adapt a full covariance; None is up to 50 dimensions")


def _target(default: float):
    return option(default, "acceptance rate that warm-up aims at", gt=0, lt=1)


def build_nuts(*, max_num_doublings: int = 10):
    step = blackjax.nuts.build_kernel()

    def nuts(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0):
        imm = metric(inverse_mass_matrix, state.position)
        new, info = step(
            rng_key, state, logdensity_fn, step_size, imm, max_num_doublings
        )
        return new, metropolis_info(info, num_grad_evals=info.num_integration_steps)

    return nuts


def build_hmc(*, num_integration_steps: int = 10):
    step = blackjax.hmc.build_kernel()

    def hmc(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0):
        """With a step within 20 % of `step_size`, drawn anew at each transition: the
        trajectory is not a whole period of a Gaussian for good (Neal 2011, 4.2)."""
        imm = metric(inverse_mass_matrix, state.position)
        rng_key, jitter_key = jax.random.split(rng_key)
        step_size = step_size * jax.random.uniform(jitter_key, (), imm.dtype, 0.8, 1.2)
        new, info = step(
            rng_key, state, logdensity_fn, step_size, imm, num_integration_steps
        )
        return new, metropolis_info(info, num_grad_evals=info.num_integration_steps)

    return hmc


def _on_unit_scale(step):
    """BlackJAX's MALA takes no metric, and its Barker proposal moves by the square root
    of the mass matrix where its inverse is meant (1.7.1), so neither is given one.
    """

    def scaled(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0):
        new, info = on_unit_scale(
            lambda start, density: step(rng_key, start, density, step_size),
            state,
            logdensity_fn,
            inverse_mass_matrix,
        )
        # a rejected proposal leaves everything exactly as it was
        new = select(info.is_accepted, new, state)
        return new, metropolis_info(info, num_grad_evals=1)

    return scaled


def build_mala():
    return _on_unit_scale(blackjax.mala.build_kernel())


def build_barker():
    return _on_unit_scale(blackjax.barker.build_kernel())


def build_ghmc():
    step = blackjax.ghmc.build_kernel()

    def ghmc(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0):
        """Damping by MEADS' rule for a posterior of unit scale, where gamma = 1."""
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


def init_ghmc(position, logdensity_fn, rng_key=None):
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    return blackjax.ghmc.init(position, logdensity_fn, rng_key)


def build_rmh():
    step = blackjax.additive_step_random_walk.build_kernel()

    def rmh(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0):
        """Proposals N(x, h^2 C), C the inverse mass matrix."""
        factor = root(metric(inverse_mass_matrix, state.position))
        new, info = step(rng_key, state, logdensity_fn, normal(step_size * factor))
        return new, metropolis_info(info, num_density_evals=1)

    return rmh


@dataclass(frozen=True)
class NUTSOptions:
    step_size: float | None = _step_size("leapfrog step")
    target_acceptance_rate: float = _target(0.8)
    max_num_doublings: int = option(10, "most doublings of a trajectory", ge=1, le=20)
    dense_mass: bool = option(False, "adapt a full mass matrix")


@dataclass(frozen=True)
class HMCOptions:
    step_size: float | None = _step_size("leapfrog step")
    target_acceptance_rate: float = _target(0.8)
    num_integration_steps: int = option(10, "leapfrog steps per transition", ge=1)
    dense_mass: bool | None = _dense_mass()


@dataclass(frozen=True)
class MALAOptions:
    step_size: float | None = _step_size("half of h, on coordinates of unit scale")
    target_acceptance_rate: float = _target(0.574)
    dense_mass: bool | None = _dense_mass()


@dataclass(frozen=True)
class BarkerOptions:
    step_size: float | None = _step_size(
        "scale of the proposal, on coordinates of unit scale"
    )
    target_acceptance_rate: float = _target(0.574)
    dense_mass: bool | None = _dense_mass()


@dataclass(frozen=True)
class GHMCOptions:
    step_size: float | None = _step_size("leapfrog step")
    target_acceptance_rate: float = _target(0.95)
    dense_mass: bool | None = _dense_mass()


@dataclass(frozen=True)
class RMHOptions:
    step_size: float | None = _step_size("proposal scale, in posterior deviations")
    target_acceptance_rate: float = _target(0.3)
    dense_mass: bool | None = _dense_mass()


def warmup_metric(
    *, target_acceptance_rate: float = 0.8, dense_mass: bool | None = False
) -> Warmup:
    return window_warmup(
        target_acceptance_rate, dense_mass=dense_mass, walk=False, pilot=None
    )


def warmup_walk(
    *, target_acceptance_rate: float = 0.574, dense_mass: bool | None = None
) -> Warmup:
    return window_warmup(
        target_acceptance_rate, initial_step_size=0.5, dense_mass=dense_mass
    )


def warmup_random_walk(
    *, target_acceptance_rate: float = 0.3, dense_mass: bool | None = None
) -> Warmup:
    return window_warmup(
        target_acceptance_rate, dense_mass=dense_mass, pilot="differences"
    )


SPECS = (
    register(
        "nuts",
        build_nuts,
        _init(blackjax.nuts),
        warmup_metric,
        summary="BlackJAX's No-U-Turn sampler",
        paper="Hoffman and Gelman 2014",
        options=NUTSOptions,
    ),
    register(
        "hmc",
        build_hmc,
        _init(blackjax.hmc),
        warmup_metric,
        summary="BlackJAX's Hamiltonian Monte Carlo, of a fixed number of steps",
        paper="Neal 2011, arXiv 1206.1901",
        options=HMCOptions,
    ),
    register(
        "mala",
        build_mala,
        _init(blackjax.mala),
        warmup_walk,
        summary="BlackJAX's Metropolis-adjusted Langevin",
        paper="Roberts and Tweedie 1996",
        options=MALAOptions,
    ),
    register(
        "barker",
        build_barker,
        _init(blackjax.barker),
        warmup_walk,
        summary="BlackJAX's Barker proposal, robust to a rough step size",
        paper="Livingstone and Zanella 2022, arXiv 1908.11812",
        options=BarkerOptions,
    ),
    register(
        "ghmc",
        build_ghmc,
        init_ghmc,
        warmup_walk,
        summary="BlackJAX's generalised HMC, one leapfrog step with lasting momentum",
        paper="Horowitz 1991; Neal 2020, arXiv 2001.11950",
        options=GHMCOptions,
    ),
    register(
        "rmh",
        build_rmh,
        _init(blackjax.additive_step_random_walk),
        warmup_random_walk,
        summary="BlackJAX's random walk with an adapted covariance",
        paper="Haario, Saksman and Tamminen 2001",
        options=RMHOptions,
        suits=no_gradient,
        uses_gradient=False,
    ),
)
