"""BlackJAX's Metropolis chains, tuned by its window adaptation.

Step size by dual averaging to each kernel's acceptance rate, and variances (or the
covariance) by Welford's algorithm on Stan's schedule: `blackjax.window_adaptation`.
"""

from dataclasses import dataclass

import blackjax
import jax
import jax.numpy as jnp
from blackjax.mcmc.random_walk import normal
from jax.flatten_util import ravel_pytree

from nutfree.adaptation import Warmup, window_warmup
from nutfree.kernels.blackjax.adapter import metric, metropolis_info, register
from nutfree.registry import option


def _init(api):
    def init(position, logdensity_fn, rng_key=None):
        del rng_key
        return api.init(position, logdensity_fn)

    return init


def _step_size(help: str):
    return option(None, help, gt=0, tuned=True)


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
        imm = metric(inverse_mass_matrix, state.position)
        new, info = step(
            rng_key, state, logdensity_fn, step_size, imm, num_integration_steps
        )
        return new, metropolis_info(info, num_grad_evals=info.num_integration_steps)

    return hmc


def _on_unit_scale(step):
    """Run `step` on coordinates z = x / scale, where the variances are one.

    BlackJAX's MALA takes no metric, and its Barker proposal moves by the square root
    of the mass matrix where its inverse is meant (1.7.1), so neither is given one.
    """

    def scaled(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix=1.0):
        x, unravel = ravel_pytree(state.position)
        scale = jnp.sqrt(metric(inverse_mass_matrix, x))
        grad, _ = ravel_pytree(state.logdensity_grad)
        start = state._replace(position=x / scale, logdensity_grad=grad * scale)
        new, info = step(
            rng_key, start, lambda z: logdensity_fn(unravel(z * scale)), step_size
        )
        # a rejected proposal leaves the position exactly as it was
        position = jnp.where(info.is_accepted, new.position * scale, x)
        new = new._replace(
            position=unravel(position),
            logdensity_grad=unravel(new.logdensity_grad / scale),
        )
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
        scale = jnp.sqrt(metric(inverse_mass_matrix, state.position))
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
        covariance = metric(inverse_mass_matrix, state.position)
        dense = covariance.ndim == 2
        root = jnp.linalg.cholesky(covariance) if dense else jnp.sqrt(covariance)
        new, info = step(rng_key, state, logdensity_fn, normal(step_size * root))
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
    dense_mass: bool = option(False, "adapt a full mass matrix")


@dataclass(frozen=True)
class MALAOptions:
    step_size: float | None = _step_size("half of h, on coordinates of unit scale")
    target_acceptance_rate: float = _target(0.574)


@dataclass(frozen=True)
class BarkerOptions:
    step_size: float | None = _step_size(
        "scale of the proposal, on coordinates of unit scale"
    )
    target_acceptance_rate: float = _target(0.574)


@dataclass(frozen=True)
class GHMCOptions:
    step_size: float | None = _step_size("leapfrog step")
    target_acceptance_rate: float = _target(0.95)


@dataclass(frozen=True)
class RMHOptions:
    step_size: float | None = _step_size("proposal scale, in posterior deviations")
    target_acceptance_rate: float = _target(0.3)
    dense_mass: bool = option(True, "adapt the full covariance, not the variances")


def warmup_metric(
    *, target_acceptance_rate: float = 0.8, dense_mass: bool = False
) -> Warmup:
    return window_warmup(target_acceptance_rate, dense_mass=dense_mass)


def warmup_diagonal(*, target_acceptance_rate: float = 0.574) -> Warmup:
    return window_warmup(target_acceptance_rate, initial_step_size=0.5)


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
        summary="BlackJAX's Hamiltonian Monte Carlo, of fixed length",
        paper="Neal 2011, arXiv 1206.1901",
        options=HMCOptions,
    ),
    register(
        "mala",
        build_mala,
        _init(blackjax.mala),
        warmup_diagonal,
        summary="BlackJAX's Metropolis-adjusted Langevin",
        paper="Roberts and Tweedie 1996",
        options=MALAOptions,
    ),
    register(
        "barker",
        build_barker,
        _init(blackjax.barker),
        warmup_diagonal,
        summary="BlackJAX's Barker proposal, robust to a rough step size",
        paper="Livingstone and Zanella 2022, arXiv 1908.11812",
        options=BarkerOptions,
    ),
    register(
        "ghmc",
        build_ghmc,
        init_ghmc,
        warmup_diagonal,
        summary="BlackJAX's generalised HMC, one leapfrog step with lasting momentum",
        paper="Horowitz 1991; Neal 2020, arXiv 2001.11950",
        options=GHMCOptions,
    ),
    register(
        "rmh",
        build_rmh,
        _init(blackjax.additive_step_random_walk),
        warmup_metric,
        summary="BlackJAX's random walk with an adapted covariance",
        paper="Haario, Saksman and Tamminen 2001",
        options=RMHOptions,
        uses_gradient=False,
    ),
)
