"""The root of a covariance, by our own columns and by LAPACK."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.numerics.preconditioning import SMALL_DIM, root


def covariance(dim: int, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(dim, 3 * dim))
    return (z @ z.T / (3 * dim)).astype(np.float32)


@pytest.mark.parametrize("dim", [1, 2, 7, SMALL_DIM, SMALL_DIM + 1])
def test_the_root_is_choleskys(dim):
    matrix = covariance(dim)
    exact = np.linalg.cholesky(matrix.astype(float))
    np.testing.assert_allclose(root(jnp.asarray(matrix)), exact, atol=2e-6)


def test_scales_far_apart_keep_their_digits():
    scale = np.logspace(-6, 6, 8).astype(np.float32)
    matrix = covariance(8) * np.outer(scale, scale)
    exact = np.linalg.cholesky(matrix.astype(float))
    found = np.asarray(root(jnp.asarray(matrix)))
    np.testing.assert_allclose(
        found / scale[:, None], exact / scale[:, None], atol=2e-6
    )


def test_several_at_once_and_inside_a_loop():
    many = jnp.asarray([covariance(5, seed) for seed in range(3)])
    exact = np.linalg.cholesky(np.asarray(many, float))
    np.testing.assert_allclose(jax.vmap(root)(many), exact, atol=1e-6)
    looped = jax.lax.map(root, many)
    np.testing.assert_allclose(looped, exact, atol=1e-6)


def test_a_diagonal_is_its_square_roots():
    np.testing.assert_allclose(root(jnp.asarray([4.0, 9.0])), [2.0, 3.0])
    assert float(root(jnp.asarray(4.0))) == 2.0


@pytest.mark.parametrize("dim", [3, SMALL_DIM + 1])
def test_what_is_not_definite_has_no_root(dim):
    matrix = covariance(dim)
    matrix[-1, -1] = -1.0
    assert not np.all(np.isfinite(root(jnp.asarray(matrix))))
    assert not np.all(np.isfinite(root(jnp.full((dim, dim), jnp.nan))))
