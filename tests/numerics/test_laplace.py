import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.minibatch.mode import highest_mode, laplace_of_rows, subsample
from nutfree.numerics.laplace import (
    DENSE_DIM,
    inverse,
    laplace,
    matvec,
    maximise,
    positive,
    precision,
    root,
    transpose,
)
from nutfree.target import Minibatch


def gaussian(dim, seed=0, spread=100.0):
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    values = np.geomspace(1.0, spread, dim)
    matrix = jnp.asarray((vectors * values) @ vectors.T)
    mean = jnp.asarray(rng.normal(size=dim))
    return lambda x: -0.5 * (x - mean) @ matrix @ (x - mean), mean, matrix


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


def test_maximise_finds_the_mean_of_an_ill_conditioned_gaussian():
    logdensity, _, _ = gaussian(10, spread=1e4)
    x, gradient, count = jax.jit(lambda x: maximise(logdensity, x, 0.0))(jnp.zeros(10))
    assert jnp.all(jnp.isfinite(gradient))
    # half a posterior sd, in the norm of the precision; the climb starts at 90
    assert logdensity(x) > -0.125
    assert logdensity(jnp.zeros(10)) < -4000
    assert 5 < count < 300


def test_maximise_counts_every_evaluation():
    evaluated = []
    logdensity, _, _ = gaussian(3)

    def watched(x):
        jax.debug.callback(lambda _: evaluated.append(1), x[0])
        return logdensity(x)

    _, _, count = maximise(watched, jnp.zeros(3), 0.0)
    jax.effects_barrier()
    assert int(count) == len(evaluated)


def test_maximise_stops_before_a_point_that_is_not_finite():
    # the density climbs towards a wall behind which it is NaN
    def logdensity(x):
        return jnp.sum(jnp.where(x > 3.0, jnp.nan, 10 * x))

    x, gradient, _ = maximise(logdensity, jnp.zeros(2), 0.0)
    assert jnp.all(jnp.isfinite(x))
    assert jnp.isfinite(logdensity(x))
    assert jnp.all(jnp.isfinite(gradient))


def test_maximise_from_a_point_that_is_not_finite_stays_there():
    x, _, count = maximise(lambda x: jnp.sum(x) * jnp.nan, jnp.ones(2), 0.0)
    np.testing.assert_array_equal(x, jnp.ones(2))
    assert count == 1


def test_precision_of_a_gaussian_is_its_matrix():
    logdensity, mean, matrix = gaussian(5)
    found, count = precision(jax.random.key(0), logdensity, mean, 0.0)
    np.testing.assert_allclose(found, matrix, rtol=1e-4, atol=1e-3)
    assert count == 10


def test_diagonal_precision_is_exact_where_the_curvature_is_diagonal():
    dim = DENSE_DIM + 20
    scale = jnp.linspace(1.0, 5.0, dim)
    found, _ = precision(
        jax.random.key(0), lambda x: -0.5 * jnp.sum(scale * x**2), jnp.zeros(dim), 0.0
    )
    assert found.shape == (dim,)
    np.testing.assert_allclose(found, scale, rtol=1e-5)


@pytest.mark.parametrize(
    "matrix",
    [
        jnp.array([[2.0, 0.0], [0.0, -0.5]]),
        jnp.array([[1.0, 1.0], [1.0, 1.0]]),
        jnp.array([[jnp.nan, 0.0], [0.0, 1.0]]),
        jnp.zeros((2, 2)),
        jnp.array([3.0, -1.0]),
        jnp.array([jnp.inf, 1.0]),
    ],
)
def test_any_curvature_gives_a_usable_precision(matrix):
    usable = positive(matrix)
    assert usable.shape == matrix.shape
    assert jnp.all(jnp.isfinite(usable))
    values = jnp.linalg.eigvalsh(usable) if usable.ndim == 2 else usable
    assert jnp.all(values > -1e-6)
    if not jnp.all(matrix == 0):
        covariance = inverse(usable)
        assert jnp.all(jnp.isfinite(root(covariance)))


def test_inverse_survives_scales_that_differ_by_a_million():
    scale = jnp.array([1e-3, 1.0, 1e3])
    correlation = jnp.array([[1.0, 0.5, 0.2], [0.5, 1.0, 0.3], [0.2, 0.3, 1.0]])
    matrix = correlation / jnp.outer(scale, scale)
    found = inverse(matrix) / jnp.outer(scale, scale)
    np.testing.assert_allclose(found, jnp.linalg.inv(correlation), rtol=1e-4)


def test_root_times_its_transpose_is_the_covariance():
    _, _, matrix = gaussian(4)
    for covariance in (matrix, jnp.array([1.0, 4.0]), jnp.asarray(4.0)):
        factor = root(covariance)
        x = jnp.ones(jnp.shape(covariance)[:1] or (3,))
        got = matvec(factor, matvec(transpose(factor), x))
        np.testing.assert_allclose(got, matvec(covariance, x), rtol=1e-4)


def test_laplace_of_a_gaussian_is_that_gaussian():
    logdensity, mean, matrix = gaussian(6)
    mode, _ = jax.jit(lambda k: laplace(k, logdensity, jnp.zeros(6), 0.0))(
        jax.random.key(0)
    )
    np.testing.assert_allclose(mode.centre, mean, atol=0.02)
    np.testing.assert_allclose(mode.covariance @ matrix, jnp.eye(6), atol=2e-3)
    assert mode.distance < 0.1


def test_curvature_beyond_the_diagonal_is_measured():
    # equicorrelated: the preconditioned precision has largest eigenvalue 1 + (d-1) r
    dim, r = DENSE_DIM + 50, 0.1

    def logdensity(x):
        return -0.5 * ((1 - r) * jnp.sum(x**2) + r * jnp.sum(x) ** 2)

    mode, _ = jax.jit(lambda k: laplace(k, logdensity, jnp.ones(dim), 0.0))(
        jax.random.key(0)
    )
    assert mode.covariance.shape == (dim,)
    np.testing.assert_allclose(mode.curvature, 1 + (dim - 1) * r, rtol=0.3)


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
@pytest.mark.parametrize("num_data", [2_000, 60_000])
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
