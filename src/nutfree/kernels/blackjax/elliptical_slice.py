"""BlackJAX's elliptical slice sampling, for a posterior with a Gaussian prior.

Reference: Murray, Adams and MacKay, AISTATS 2010.

    x' = m + (x - m) cos(t) + (y - m) sin(t),    y ~ N(m, C) the prior,

with the angle t drawn from a bracket around zero, which shrinks until the likelihood of
x' is above a random height. Exact. No gradients; one density per angle tried. The pilot
finds out numerically whether the prior is Gaussian on the sampling space.
"""

from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from nutfree import facts
from nutfree.errors import MissingCapability
from nutfree.kernels.blackjax.adapter import pilot_warmup, register
from nutfree.numerics.gaussian import gaussian_moments
from nutfree.registry import NoOptions
from nutfree.warmup import AdaptationState


class SliceInfo(NamedTuple):
    """Whether the transition failed, and the number of angles tried."""

    is_divergent: jax.Array
    num_density_evals: jax.Array


def gaussian_prior(target, position) -> tuple[jax.Array, jax.Array]:
    """Find the mean and covariance of the target's prior, if that is Gaussian.

    Returns:
        `(mean, covariance)`, the covariance of shape `(d,)` where it is diagonal.

    Raises:
        MissingCapability: if the Hessian of its log density is not the same negative
            definite matrix everywhere.
    """
    # the check needs numbers, also where the host is tracing
    with jax.ensure_compile_time_eval():
        zero = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), position)
        x, unravel = ravel_pytree(zero)
    found = gaussian_moments(lambda v: target.prior.logdensity(unravel(v)), x)
    if found is None:
        raise MissingCapability(
            "The kernel 'blackjax.elliptical_slice' needs a Gaussian prior on the "
            "sampling space, and this posterior's is not. Give every latent site a "
            "Normal or MultivariateNormal prior, or write another kernel's name."
        )
    mean, covariance = found
    if np.count_nonzero(covariance) == np.count_nonzero(np.diag(covariance)):
        covariance = np.diag(covariance)
    return jnp.asarray(mean, x.dtype), jnp.asarray(covariance, x.dtype)


def init(position, logdensity_fn, rng_key, options):
    del rng_key, options
    return blackjax.elliptical_slice.init(position, logdensity_fn)


def build(options):
    del options

    def elliptical_slice(rng_key, state, target, prior_mean, prior_covariance):
        # BlackJAX's state holds the likelihood, ours the density of the posterior

        def loglikelihood(position):
            value = target(position) - target.prior.logdensity(position)
            # the loop on the ellipse ends at a NaN, and must not
            return jnp.where(jnp.isnan(value), -jnp.inf, value)

        step = blackjax.elliptical_slice.build_kernel(prior_covariance, prior_mean)
        here = state.logdensity - target.prior.logdensity(state.position)
        new, info = step(rng_key, state._replace(logdensity=here), loglikelihood)
        density = new.logdensity + target.prior.logdensity(new.position)
        count = jnp.asarray(info.subiter)
        return new._replace(logdensity=density), SliceInfo(jnp.asarray(False), count)

    return elliptical_slice


def warmup(options):
    del options

    def pilot(rng_key, position, target):
        del rng_key
        mean, covariance = gaussian_prior(target, position)
        params = {"prior_mean": mean, "prior_covariance": covariance}
        return AdaptationState(params, position)

    return pilot_warmup(pilot)


SPECS = (
    register(
        "elliptical_slice",
        NoOptions,
        init=init,
        build=build,
        warmup=warmup,
        summary="BlackJAX's elliptical slice sampler, for a Gaussian prior",
        paper="Murray, Adams and MacKay 2010, arXiv 1001.0175",
        needs=("prior",),
        suits=facts.gaussian_prior,
        uses_gradient=False,
    ),
)
