"""Proximal operators minimise what they say, and envelopes have the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.kernels.bregman.envelopes import (
    moreau_envelope,
    right_bregman_envelope,
    smoothed,
)
from nutfree.kernels.bregman.mirror import HyperbolicEntropy, MirrorMap
from nutfree.numerics.proximal import Box, GroupNorm, LaplaceTerm, project_simplex

X = jnp.array([-2.0, -0.3, 0.05, 0.8, 5.0])
TERMS = {
    "laplace": LaplaceTerm(0.1, jnp.array([0.1, 0.5, 1.0, 2.0, 0.3])),
    "box": Box(-0.5, 0.5),
    "group": GroupNorm(0.7),
}


@pytest.mark.parametrize("kind", TERMS)
def test_prox_beats_every_other_point(kind):
    term, step = TERMS[kind], 0.4
    best = term.prox(X, step)

    def objective(y):
        return term.value(y) + jnp.sum((y - X) ** 2) / (2 * step)

    others = best + 0.1 * jax.random.normal(jax.random.key(0), (2000, X.size))
    others = others * jnp.logspace(-4, 0, 2000)[:, None] + best * (
        1 - jnp.logspace(-4, 0, 2000)[:, None]
    )
    assert jnp.all(jax.vmap(objective)(others) >= objective(best) - 1e-4)


@pytest.mark.parametrize("kind", TERMS)
def test_envelope_is_below_its_term_and_its_gradient_is_the_distance_to_prox(kind):
    term, step = TERMS[kind], 0.4
    assert moreau_envelope(term, X, step) <= term.value(X)
    gradient = jax.grad(lambda x: moreau_envelope(term, x, step))(X)
    expected = (X - term.prox(X, step)) / step
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_zero_group_stays_at_zero_with_a_finite_gradient():
    gradient = jax.grad(lambda x: moreau_envelope(GroupNorm(1.0), x, 0.1))(jnp.zeros(3))
    np.testing.assert_array_equal(gradient, 0)


def test_simplex_projection_satisfies_its_optimality_conditions():
    x = jax.random.normal(jax.random.key(0), (50, 6))
    p = project_simplex(x)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    assert jnp.all(p >= 0)
    # x - p is one number where p is positive, and no more than it elsewhere
    gap = x - p
    level = jnp.max(gap, axis=-1, keepdims=True)
    assert jnp.all(jnp.where(p > 0, jnp.abs(gap - level) < 1e-5, gap <= level + 1e-5))


@pytest.mark.parametrize("x", [0.01, 0.5, -0.5, 5.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_right_bregman_envelope_is_the_least_over_a_grid(x, scale):
    phi, term, step = HyperbolicEntropy(0.3, 0.0), LaplaceTerm(0.0, scale), 0.2
    y = jnp.linspace(-1.2 * abs(x) - 0.1, 1.2 * abs(x) + 0.1, 20_001)
    divergence = jax.vmap(lambda y: MirrorMap.divergence(phi, jnp.asarray(x), y))(y)
    grid = jnp.min(jnp.abs(y) / scale + divergence / step)
    envelope, gradient = jax.value_and_grad(
        lambda x: right_bregman_envelope(term, phi, x, step)
    )(x)
    np.testing.assert_allclose(envelope, grid, rtol=1e-3, atol=1e-5)
    nearest = term.right_prox(phi, jnp.asarray(x), step)
    expected = (phi.grad(x) - phi.grad(nearest)) / step
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


@pytest.mark.parametrize("x", [0.02, 3.0])
def test_gradient_in_the_laplace_scale_is_that_of_the_envelope(x):
    """The envelope theorem, against differences, at the kink and away from it."""
    x = jnp.asarray(x)

    def value(scale):
        return smoothed(LaplaceTerm(0.0, scale), x, 0.2, 1.0)

    difference = (value(1.01) - value(0.99)) / 0.02
    np.testing.assert_allclose(jax.grad(value)(1.0), difference, rtol=2e-3)


def test_smoothed_laplace_term_is_exact_away_from_the_kink_whatever_its_scale():
    term = LaplaceTerm(0.0, 0.5)
    np.testing.assert_allclose(smoothed(term, jnp.asarray(4.0), 0.1, 1.0), 8.0)


def test_laplace_term_passes_through_transformations():
    terms = LaplaceTerm(jnp.zeros(3), jnp.array([1.0, 2.0, 4.0]))
    values = jax.jit(jax.vmap(lambda term: term.value(jnp.asarray(2.0))))(terms)
    np.testing.assert_allclose(values, [2.0, 1.0, 0.5])


def test_smoothing_leaves_a_laplace_normaliser_to_a_higher_order():
    """By quadrature: what an unknown scale sees of the smoothing of its sites."""
    term, x = LaplaceTerm(0.0, 1.0), np.linspace(-30, 30, 60_001, dtype=np.float32)

    def errors(potential):
        def error(step):
            density = np.exp(-jax.vmap(lambda x: potential(x, step))(x))
            return abs(float(np.sum(density, dtype=float)) * 1e-3 / 2 - 1)

        return [error(step) for step in (0.2, 0.1, 0.05)]

    raised = errors(lambda x, step: smoothed(term, x, step, 1.0))
    plain = errors(lambda x, step: moreau_envelope(term, x, step))
    assert raised[2] < raised[0] / 10
    assert raised[0] < plain[0] / 10
    assert plain[2] > plain[0] / 5
