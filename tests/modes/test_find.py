"""The modes that `find_modes` reports; deterministic for its seed."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from nutfree.frontends.numpyro import model_target
from nutfree.modes.find import BRIEF_EFFORT, find_modes
from nutfree.target import Prior, Target

WEIGHTS = np.array([0.7, 0.3])
MEANS = np.array([[-4.0, 0.0], [5.0, 2.0]])
COVARIANCES = np.array([[[1.0, 0.8], [0.8, 1.0]], [[0.25, 0.0], [0.0, 4.0]]])
EVIDENCE = 20.0


def two(x):
    away = jnp.concatenate([x["a"], x["b"][None]]) - MEANS
    squares = jnp.einsum("ki,kij,kj->k", away, np.linalg.inv(COVARIANCES), away)
    log_det = np.log(np.linalg.det(2 * np.pi * COVARIANCES))
    return EVIDENCE + jax.nn.logsumexp(np.log(WEIGHTS) - 0.5 * (squares + log_det))


@pytest.mark.slow
def test_modes_have_their_positions_masses_and_widths():
    found = find_modes(Target(two, position={"a": jnp.zeros(1), "b": jnp.asarray(0.0)}))
    np.testing.assert_allclose(found.position["a"], MEANS[:, :1], atol=0.02)
    np.testing.assert_allclose(found.position["b"], MEANS[:, 1], atol=0.02)
    np.testing.assert_allclose(found.log_mass, EVIDENCE + np.log(WEIGHTS), atol=0.01)
    np.testing.assert_allclose(found.weights, WEIGHTS, atol=0.01)
    np.testing.assert_allclose(found.covariance, COVARIANCES, atol=0.02)
    sds = np.sqrt(np.diagonal(COVARIANCES, axis1=1, axis2=2))
    np.testing.assert_allclose(found.sd["b"], sds[:, 1], rtol=0.01)
    assert found.num_grad_evals >= 64 * (60 + 2 * 2)


def test_descents_that_stop_along_a_ridge_lead_to_one_mode():
    """A regression whose intercept is two thousand years away from its data."""
    year = np.arange(1950, 2012.0)
    y = 9.3 + 0.02 * (year - 1981) + np.random.default_rng(0).normal(size=year.size)

    def logdensity(x):
        intercept, slope, log_sigma = x
        residuals = (y - intercept - slope * year) / jnp.exp(log_sigma)
        prior = (intercept / 100) ** 2 + slope**2 + (jnp.exp(log_sigma) / 5) ** 2
        log_det = (year.size - 1) * log_sigma
        return -0.5 * (jnp.sum(residuals**2) + prior) - log_det

    def sample(key):
        normal = jax.random.normal(key, (3,)) * jnp.array([100.0, 1.0, 5.0])
        return normal.at[2].set(jnp.log(jnp.abs(normal[2])))

    with jax.enable_x64(True):
        target = Target(logdensity, position=jnp.zeros(3), prior=Prior(sample, None))
        found = find_modes(target)
        precision = -np.asarray(jax.jit(jax.hessian(logdensity))(found.position[0]))
        height = float(logdensity(found.position[0]))
    assert len(found.log_mass) == 1
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(found.covariance[0], covariance, rtol=1e-3)
    np.testing.assert_allclose(found.sd[0], np.sqrt(np.diag(covariance)), rtol=1e-3)
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    np.testing.assert_allclose(found.log_mass[0], height + 0.5 * log_det, atol=1e-3)


def test_the_neck_of_a_funnel_has_no_modes():
    """Its density grows without end, and single precision makes steps seem short."""
    rng = np.random.default_rng(3)
    group, x = np.repeat(np.arange(8), 6), rng.normal(size=48).astype(np.float32)
    rates = np.exp(0.5 + 0.4 * x + 0.5 * rng.normal(size=8)[group])
    counts = rng.poisson(rates)

    def model():
        level = numpyro.sample("level", dist.Normal(0, 2))
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        scale = numpyro.sample("scale", dist.HalfNormal(1))
        with numpyro.plate("groups", 8):
            effect = numpyro.sample("effect", dist.Normal(0, scale))
        rate = jnp.exp(level + slope * x + effect[group])
        with numpyro.plate("rows", 48):
            numpyro.sample("count", dist.Poisson(rate), obs=counts)

    found = find_modes(model_target(model), effort=BRIEF_EFFORT)
    assert not len(found.log_mass)
