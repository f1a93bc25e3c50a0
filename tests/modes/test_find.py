"""The modes that `find_modes` reports; deterministic for its seed."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import nutfree as nf
from nutfree.modes.find import find_modes
from nutfree.target import Target

WEIGHTS = np.array([0.7, 0.3])
MEANS = np.array([[-4.0, 0.0], [5.0, 2.0]])
COVARIANCES = np.array([[[1.0, 0.8], [0.8, 1.0]], [[0.25, 0.0], [0.0, 4.0]]])
EVIDENCE = 20.0


def two(x):
    away = jnp.concatenate([x["a"], x["b"][None]]) - MEANS
    squares = jnp.einsum("ki,kij,kj->k", away, np.linalg.inv(COVARIANCES), away)
    log_det = np.log(np.linalg.det(2 * np.pi * COVARIANCES))
    return EVIDENCE + jax.nn.logsumexp(np.log(WEIGHTS) - 0.5 * (squares + log_det))


def test_modes_have_their_positions_masses_and_widths():
    found = find_modes(Target(two, position={"a": jnp.zeros(1), "b": jnp.asarray(0.0)}))
    np.testing.assert_allclose(found.position["a"], MEANS[:, :1], atol=0.02)
    np.testing.assert_allclose(found.position["b"], MEANS[:, 1], atol=0.02)
    np.testing.assert_allclose(found.log_mass, EVIDENCE + np.log(WEIGHTS), atol=0.01)
    np.testing.assert_allclose(found.weights, WEIGHTS, atol=0.01)
    np.testing.assert_allclose(found.covariance, COVARIANCES, atol=0.02)
    sds = np.sqrt(np.diagonal(COVARIANCES, axis1=1, axis2=2))
    np.testing.assert_allclose(found.sd["b"], sds[:, 1], rtol=0.01)
    assert found.num_grad_evals > 64 * 60


def test_descents_that_stop_along_a_ridge_are_no_modes():
    """A regression whose intercept is two thousand units away from its data."""
    year = np.arange(1950, 2012.0)
    y = 9.3 + 0.02 * (year - 1981) + np.random.default_rng(0).normal(size=year.size)

    def model():
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        intercept = numpyro.sample("intercept", dist.Normal(0, 100))
        sigma = numpyro.sample("sigma", dist.HalfNormal(5))
        numpyro.sample("y", dist.Normal(intercept + slope * year, sigma), obs=y)

    with jax.enable_x64(True):
        found = find_modes(nf.model_target(model))
    assert len(found.log_mass) == 1
    np.testing.assert_allclose(found.sd["intercept"], 12.6, rtol=0.05)
