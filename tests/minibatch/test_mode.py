"""The posterior mode over many rows, and the curvature there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.minibatch.mode import highest_mode, laplace_of_rows, subsample
from nutfree.target import Minibatch


def logistic(num_data, dim, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_data, dim))
    X[:, 1] = 0.9 * X[:, 0] + 0.3 * X[:, 1]
    y = rng.uniform(size=num_data) < 1 / (1 + np.exp(-X @ (0.5 * np.ones(dim))))
    features, labels = jnp.asarray(X), jnp.asarray(y)

    def terms(x, indices):
        logits = features[indices] @ x
        return -jnp.sum(x**2) / 8, labels[indices] * logits - jax.nn.softplus(logits)

    mode = np.zeros(dim)
    for _ in range(30):
        p = 1 / (1 + np.exp(-X @ mode))
        hessian = (X * (p * (1 - p))[:, None]).T @ X + np.eye(dim) / 4
        mode = mode + np.linalg.solve(hessian, X.T @ (y - p) - mode / 4)
    return Minibatch(num_data, terms), mode, hessian


def test_subsample_has_the_expected_log_density_of_all_rows():
    minibatch, mode, _ = logistic(20_000, 3)
    x = jnp.asarray(mode)
    some = subsample(jax.random.key(0), minibatch, 5_000)
    assert some.num_data == 5_000
    value = some.logdensity(x, jnp.arange(5_000))
    full = minibatch.logdensity(x, jnp.arange(20_000))
    np.testing.assert_allclose(value, full, rtol=0.05)
    assert subsample(jax.random.key(0), minibatch, 20_000) is minibatch


def test_the_highest_of_several_modes_is_found_from_a_lesser_one():
    higher = jnp.array([1.0, 1.0])

    def logdensity(x):
        lesser = -0.5 * jnp.sum((x + higher) ** 2) / 0.2**2 - 10.0
        return jnp.logaddexp(lesser, -0.5 * jnp.sum((x - higher) ** 2) / 0.2**2)

    def found(x):
        return highest_mode(jax.random.key(0), logdensity, x, 0.0, 1.0)

    best, count = jax.jit(found)(-higher)
    np.testing.assert_allclose(best, higher, atol=1e-3)
    # from there, another climb that ends there is enough
    best, fewer = jax.jit(found)(higher)
    np.testing.assert_allclose(best, higher, atol=1e-3)
    assert fewer < count


def test_a_mode_is_found_where_no_other_start_has_a_density():
    def logdensity(x):
        return jnp.where(jnp.all(x > 5.0), -0.5 * jnp.sum((x - 6.0) ** 2), -jnp.inf)

    x = jnp.full(3, 5.5)
    best, _ = jax.jit(
        lambda x: highest_mode(jax.random.key(0), logdensity, x, 0.0, 1.0)
    )(x)
    np.testing.assert_allclose(best, jnp.full(3, 6.0), atol=1e-3)


# with more rows than the curvature uses, the mode is finished on all of them
@pytest.mark.parametrize(
    "num_data", [2_000, pytest.param(60_000, marks=pytest.mark.slow)]
)
def test_mode_and_covariance_of_a_logistic_regression(num_data):
    minibatch, mode, hessian = logistic(num_data, 4)
    found, count = jax.jit(lambda k: laplace_of_rows(k, minibatch, jnp.zeros(4), 0.0))(
        jax.random.key(0)
    )
    sd = np.sqrt(np.diag(np.linalg.inv(hessian)))
    assert np.max(np.abs(found.centre - mode) / sd) < 0.1
    # the curvature of 32,768 rows is right to a few hundredths
    np.testing.assert_allclose(found.covariance @ hessian, np.eye(4), atol=0.08)
    assert found.distance < 0.1
    assert 10 < count < 100
