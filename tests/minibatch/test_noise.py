"""The noise of batches where the Gaussian at the mode is, and is not, the posterior."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.minibatch.gradients import control_at
from nutfree.minibatch.mode import curvature_around, laplace_of_rows
from nutfree.minibatch.noise import BatchedPosterior, survey
from nutfree.minibatch.sampling import row_sampler
from nutfree.target import Minibatch

NUM_DATA, SIZE, SD = 2_000, 50, 6.0
Y = SD * jnp.asarray(np.random.default_rng(0).normal(size=NUM_DATA))
#: Coefficients of x_0 and of its square in the mean of the rows.
STRAIGHT, BENT = jnp.array([0.1, 0.0]), jnp.array([0.0, 1.0])


def minibatch_of(shape):
    """y ~ N(x_1 + a x_0 + b x_0^2, SD^2), both coordinates N(0, 1) before."""

    def terms(x, indices):
        mean = x[1] + shape[0] * x[0] + shape[1] * x[0] ** 2
        return -0.5 * x @ x, -0.5 * ((Y[indices] - mean) / SD) ** 2

    return Minibatch(NUM_DATA, terms)


@jax.jit
def mode_of(shape):
    minibatch = minibatch_of(shape)
    mode, _ = laplace_of_rows(jax.random.key(0), minibatch, jnp.ones(2), 0.0)
    return mode, control_at(minibatch, mode.centre, 0.0)[0]


@partial(jax.jit, static_argnames=("gradient", "unequal"))
def _found(shape, mode, control, gradient, unequal):
    posterior = BatchedPosterior(
        minibatch_of(shape),
        mode,
        control,
        gradient,
        SIZE,
        row_sampler(NUM_DATA, SIZE),
        reshape=lambda mode: mode,
        total_noise=lambda mode, noise: noise,
    )
    limit = 0.0 if unequal else None
    return survey(jax.random.key(0), posterior, 0.05, limit, jnp.asarray(0.0))


def found_around(shape, gradient="plain", unequal=False):
    mode, control = mode_of(shape)
    return mode, *_found(shape, mode, control, gradient, unequal)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["plain", "control_variate"])
def test_a_gaussian_posterior_is_left_to_the_mode(gradient):
    mode, around, spent = found_around(STRAIGHT, gradient)
    np.testing.assert_array_equal(around.covariance, mode.covariance)
    # 64 places, two batches at each, one gradient or two of a batch
    each = 2 if gradient == "control_variate" else 1
    np.testing.assert_allclose(spent, 2 * 64 * each * SIZE / NUM_DATA, rtol=1e-4)


@pytest.mark.parametrize(
    ("gradient", "unequal"),
    [
        ("plain", False),
        ("svrg", True),
        pytest.param("plain", True, marks=pytest.mark.slow),
        pytest.param("svrg", False, marks=pytest.mark.slow),
    ],
)
def test_a_bent_posterior_is_walked(gradient, unequal):
    _, around, _ = found_around(BENT, gradient, unequal)
    x0, x1 = around.places.T
    # on the ridge, whose width is SD / sqrt(N) = 0.13, and along it
    assert np.quantile(np.abs(x1 + x0**2 - jnp.mean(Y)), 0.9) < 0.4
    assert jnp.std(x0) > 0.1
    # across the ridge V is N/n; at the Gaussian's draws it is many times that
    assert jnp.max(around.noise) < 10 * NUM_DATA / SIZE
    assert jnp.all(jnp.isfinite(around.covariance))


def test_the_mean_curvature_is_the_curvature_where_it_is_the_same_everywhere():
    places = jax.random.normal(jax.random.key(1), (8, 2))
    mode, _ = mode_of(STRAIGHT)
    covariance, count = jax.jit(
        lambda: curvature_around(jax.random.key(2), minibatch_of(STRAIGHT), places, 0.0)
    )()
    np.testing.assert_allclose(covariance, mode.covariance, rtol=0.02, atol=1e-5)
    np.testing.assert_allclose(count, 8 * 2 * 2)
