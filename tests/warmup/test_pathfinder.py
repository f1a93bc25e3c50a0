"""Pathfinder's Gaussians, and the one it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.optimizers.lbfgs import bfgs_sample, lbfgs_inverse_hessian_factors
from scipy.stats import multivariate_normal

from nutfree.warmup.pathfinder import (
    HISTORY,
    NUM_DRAWS,
    gaussian,
    pathfinder,
)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def _window(dim):
    """Steps over a random quadratic, in a window that is not full."""
    rng = np.random.default_rng(dim)
    root = rng.normal(size=(dim, dim))
    precision = root @ root.T / dim + np.eye(dim)
    steps = rng.normal(size=(HISTORY, dim))
    steps[: max(HISTORY - dim, 2)] = 0
    x, alpha = rng.normal(size=dim), np.exp(rng.normal(size=dim))
    return x, -precision @ x, alpha, steps, steps @ precision


@jax.jit
def _ours_and_theirs(x, gradient, alpha, steps, turns):
    """Our Gaussian and its variances; the covariance of BlackJAX's compact form, and
    log q + |z|^2 / 2 of its draws."""
    noise = jax.random.normal(jax.random.key(0), (NUM_DRAWS, x.size))
    args = noise, x, gradient, alpha, steps, turns
    _, _, variances = gaussian(*args, dense=False)
    beta, gamma = lbfgs_inverse_hessian_factors(steps.T, turns.T, alpha)
    compact = jnp.diag(alpha) + beta @ gamma @ beta.T
    key = jax.random.key(1)
    _, log_q = bfgs_sample(key, NUM_DRAWS, x, gradient, alpha, beta, gamma)
    z = jax.random.normal(key, (NUM_DRAWS, x.size, 1))
    constant = log_q + 0.5 * jnp.sum(z**2, (1, 2))
    return noise, gaussian(*args, dense=True), variances, compact, constant


@pytest.mark.parametrize("dim", [1, 3, 30])
def test_the_gaussian_is_that_of_the_compact_form(dim):
    window = x, gradient, *_ = _window(dim)
    noise, ours, variances, compact, constant = _ours_and_theirs(*window)
    draws, log_q, covariance = ours
    np.testing.assert_allclose(covariance, compact, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(variances, np.diag(compact), rtol=1e-9)
    law = multivariate_normal(x + compact @ gradient, compact)
    np.testing.assert_allclose(log_q, law.logpdf(draws), rtol=1e-9)
    # the same constant of the Gaussian in theirs and in ours
    ours = log_q + 0.5 * jnp.sum(noise**2, axis=1)
    np.testing.assert_allclose(ours, constant, rtol=1e-9)


def test_draws_have_the_covariance():
    dim = 4
    x, gradient, alpha, steps, turns = map(jnp.asarray, _window(dim))
    # the factor is linear in the noise: unit vectors for it give its columns
    draws, _, covariance = jax.jit(gaussian, static_argnames="dense")(
        jnp.eye(dim), x, gradient, alpha, steps, turns, dense=True
    )
    factor = draws - (x + covariance @ gradient)
    np.testing.assert_allclose(factor.T @ factor, covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("differences", [False, True])
def test_a_gaussian_is_found_whole(differences):
    dim = 3
    precision = jnp.asarray([[2.0, 0.6, 0.0], [0.6, 1.0, 0.3], [0.0, 0.3, 0.5]])
    centre = jnp.asarray([1.0, -2.0, 3.0])
    log_z = 0.5 * (dim * jnp.log(2 * jnp.pi) - jnp.linalg.slogdet(precision)[1])
    found, (gradients, densities) = jax.jit(
        lambda key: pathfinder(
            key,
            lambda x: -0.5 * (x - centre) @ precision @ (x - centre) - log_z,
            jnp.zeros(dim),
            dense=True,
            differences=differences,
        )
    )(jax.random.key(0))
    expected = jnp.linalg.inv(precision)
    assert abs(found.bound) < 0.3
    np.testing.assert_allclose(found.covariance, expected, atol=0.3)
    assert (gradients == 0) == differences
    assert densities > 0


def test_the_neck_of_a_funnel_is_not_where_it_starts():
    def funnel(x):
        scale = jnp.exp(x[0] / 2)
        return -(x[0] ** 2) / 18 - 0.5 * jnp.sum((x[1:] / scale) ** 2) - 9 * x[0] / 2

    keys = jax.random.split(jax.random.key(0), 20)
    found, _ = jax.jit(
        jax.vmap(lambda key: pathfinder(key, funnel, jnp.ones(10)), in_axes=0)
    )(keys)
    # the density has no maximum: a climb alone goes down to x[0] = -40 and beyond
    assert jnp.min(found.x[:, 0]) > -15


def test_nothing_found_is_the_point_and_the_identity():
    x = jnp.asarray([1.0, 2.0])

    @jax.jit
    def start(key):
        return pathfinder(key, lambda x: jnp.sum(x) * jnp.nan, x, dense=True)

    found, _ = start(jax.random.key(0))
    assert found.bound == -jnp.inf
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.covariance, jnp.eye(2))
