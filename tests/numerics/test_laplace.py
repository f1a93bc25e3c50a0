"""The mode of a log density and the curvature there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.numerics.laplace import (
    DENSE_DIM,
    NUM_PROBES,
    POWER_STEPS,
    hutchinson_diagonal,
    inverse,
    largest_curvature,
    maximise,
    positive,
    precision,
)
from nutfree.numerics.preconditioning import matvec, root, transpose


def gaussian(dim, seed=0, spread=100.0):
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    values = np.geomspace(1.0, spread, dim)
    matrix = jnp.asarray((vectors * values) @ vectors.T)
    mean = jnp.asarray(rng.normal(size=dim))
    return lambda x: -0.5 * (x - mean) @ matrix @ (x - mean), mean, matrix


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


def test_mode_and_precision_of_a_gaussian_are_its_own():
    logdensity, mean, matrix = gaussian(5)

    @jax.jit
    def mode(key):
        x, _, count = maximise(logdensity, jnp.zeros(5), 0.0)
        return x, count, *precision(key, logdensity, x, 0.0)

    x, _, found, count = mode(jax.random.key(0))
    np.testing.assert_allclose(x, mean, atol=0.02)
    np.testing.assert_allclose(found, matrix, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(inverse(found) @ matrix, jnp.eye(5), atol=2e-3)
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


def test_curvature_beyond_the_diagonal_is_measured():
    """Equicorrelated: the largest eigenvalue is 1 + (d - 1) r, and the diagonal 1."""
    dim, r = DENSE_DIM + 50, 0.1

    def logdensity(x):
        return -0.5 * ((1 - r) * jnp.sum(x**2) + r * jnp.sum(x) ** 2)

    @jax.jit
    def curvature(key):
        diagonal, count = precision(key, logdensity, jnp.ones(dim), 0.0)
        return diagonal, *largest_curvature(
            key, logdensity, jnp.ones(dim), inverse(positive(diagonal)), count
        )

    diagonal, largest, count = curvature(jax.random.key(0))
    assert diagonal.shape == (dim,)
    np.testing.assert_allclose(largest, 1 + (dim - 1) * r, rtol=0.3)
    assert count == 2 * (NUM_PROBES + POWER_STEPS)


def test_the_estimate_of_a_diagonal_is_unbiased_with_its_stated_variance():
    """Five standard errors of 4,000 single probes: false alarms below 1e-5."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(5, 5))
    matrix = jnp.asarray(matrix + matrix.T)
    signs = jax.random.rademacher(jax.random.key(0), (4000, 1, 5), float)
    found = jax.jit(jax.vmap(lambda v: hutchinson_diagonal(lambda u: matrix @ u, v)))(
        signs
    )
    variance = np.sum(np.asarray(matrix - jnp.diag(jnp.diag(matrix))) ** 2, axis=1)
    error = np.abs(found.mean(axis=0) - jnp.diag(matrix))
    assert np.all(error < 5 * np.sqrt(variance / 4000))
    np.testing.assert_allclose(found.var(axis=0), variance, rtol=0.2)
