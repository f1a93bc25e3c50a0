"""Proximal operators minimise what they say, and envelopes have the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.kernels.bregman import myula
from nutfree.kernels.bregman.entropies import HyperbolicEntropy
from nutfree.kernels.bregman.envelopes import (
    left_bregman_envelope,
    moreau_envelope,
    right_bregman_envelope,
    smoothed,
    widened,
)
from nutfree.kernels.bregman.mirror import MirrorMap
from nutfree.numerics.bodies import Box, HalfSpace, Simplex
from nutfree.numerics.proximal import (
    GroupNorm,
    LaplaceTerm,
    MaxNorm,
    NuclearNorm,
    differences,
)

TERM = LaplaceTerm(0.0, 1.0)
X = jnp.array([-2.0, -0.3, 0.05, 0.8, 5.0])
TERMS = {
    "laplace": LaplaceTerm(0.1, jnp.array([0.1, 0.5, 1.0, 2.0, 0.3])),
    "box": Box(-0.5, 0.5),
    "group": GroupNorm(0.7),
    "max": MaxNorm(0.3),
    "half-space": HalfSpace(jnp.array([1.0, 2.0, 0.0, -1.0, 1.0]), 0.5),
    "simplex": Simplex(2.0),
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
    assert jnp.all(jax.jit(jax.vmap(objective))(others) >= objective(best) - 1e-4)


def test_prox_of_the_nuclear_norm_shrinks_singular_values():
    x = jax.random.normal(jax.random.key(0), (2, 4, 3))
    term, step = NuclearNorm(jnp.array([0.5, 2.0])), 0.4
    singular = jnp.linalg.svd(x, compute_uv=False)
    shrunk = jnp.maximum(singular - step / term.scale[:, None], 0.0)
    found = jnp.linalg.svd(term.prox(x, step), compute_uv=False)
    np.testing.assert_allclose(found, shrunk, atol=1e-5)
    gradient = jax.grad(lambda x: moreau_envelope(term, x, step))(x)
    np.testing.assert_allclose(gradient, (x - term.prox(x, step)) / step, atol=1e-4)
    np.testing.assert_allclose(term.value(x), singular.sum(1) @ (1 / term.scale))


def test_differences_are_those_of_neighbours():
    x = jnp.arange(6.0).reshape(2, 3) ** 2
    down, across = jnp.moveaxis(differences(x), -1, 0)
    np.testing.assert_array_equal(down, [[9, 15, 21], [0, 0, 0]])
    np.testing.assert_array_equal(across, [[1, 3, 0], [7, 9, 0]])
    np.testing.assert_array_equal(differences(x[0]), [1, 3])


@pytest.mark.parametrize("kind", ["laplace", "group", "box", "nuclear"])
def test_prox_is_that_of_pyproximal(kind):
    """Another implementation of the same operators."""
    operators = pytest.importorskip("pyproximal")
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    ours, theirs = {
        "laplace": (LaplaceTerm(0.0, 0.5), operators.L1(sigma=2.0)),
        "group": (GroupNorm(0.5), operators.L21(ndim=3, sigma=2.0)),
        "box": (Box(-0.5, 0.5), operators.Box(-0.5, 0.5)),
        "nuclear": (NuclearNorm(0.5), operators.Nuclear((4, 3), sigma=2.0)),
    }[kind]
    # its groups are columns
    flat = x.T.ravel() if kind == "group" else x.ravel()
    found = theirs.prox(flat, 0.2).reshape(x.T.shape if kind == "group" else x.shape)
    expected = found.T if kind == "group" else found
    np.testing.assert_allclose(ours.prox(jnp.asarray(x), 0.2), expected, atol=1e-5)
    if kind != "box":
        np.testing.assert_allclose(ours.value(x), theirs(flat), rtol=1e-5)


@pytest.mark.parametrize("kind", TERMS)
def test_envelope_is_below_its_term_and_its_gradient_is_the_distance_to_prox(kind):
    term, step = TERMS[kind], 0.4
    assert moreau_envelope(term, X, step) <= term.value(X)
    gradient = jax.grad(lambda x: moreau_envelope(term, x, step))(X)
    expected = (X - term.prox(X, step)) / step
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [1e-10, 1e-3])
def test_gradient_at_a_small_step_keeps_its_digits(step):
    """Away from the kink it is the term's own, where x minus its prox is rounding."""

    def slope(term, x):
        return jax.grad(lambda x: jnp.sum(moreau_envelope(term, x, step)))(x)

    np.testing.assert_allclose(slope(LaplaceTerm(0.0, 0.1), 0.1), 10.0, rtol=1e-6)
    unit = jnp.array([0.6, -0.8])
    found = slope(GroupNorm(0.1), 0.1 * unit)
    np.testing.assert_allclose(found, 10.0 * unit, rtol=1e-5)


def test_a_picture_is_smoothed_up_to_its_last_pixels():
    """Where the difference to a neighbour that is not there is always 0."""
    x = jnp.array([[0.0, 1.0], [1.0, 1.0]])
    scales = jnp.ones((2, 2, 2)).at[-1, :, 0].set(0).at[:, -1, 1].set(0)

    def value(x):
        return widened(GroupNorm(0.5), differences(x), 0.1 * scales)

    found, gradient = jax.jit(jax.value_and_grad(value))(x)
    assert np.all(np.isfinite(gradient))
    # of the corner, and half a width each of the two rows that are 0
    np.testing.assert_allclose(found, 2 * (2**0.5 + 0.1 / 2**0.5), rtol=1e-5)


def test_zero_group_stays_at_zero_with_a_finite_gradient():
    gradient = jax.grad(lambda x: moreau_envelope(GroupNorm(1.0), x, 0.1))(jnp.zeros(3))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("scale", [0.1, 5.0])
@pytest.mark.parametrize("side", ["right", "left"])
def test_bregman_envelope_is_the_least_over_a_grid(side, scale):
    """Its value, its minimiser and its gradient."""
    phi, term, step = HyperbolicEntropy(0.3, 0.0), LaplaceTerm(0.0, scale), 0.2
    is_right = side == "right"
    envelope = right_bregman_envelope if is_right else left_bregman_envelope

    def height(y, x):
        ends = (x, y) if is_right else (y, x)
        return jnp.abs(y) / scale + MirrorMap.divergence(phi, *ends) / step

    @jax.jit
    @jax.vmap
    def measure(x):
        y = jnp.linspace(-1.2 * abs(x) - 0.1, 1.2 * abs(x) + 0.1, 20_001)
        heights = jax.vmap(lambda y: height(y, x))(y)
        nearest = getattr(term, f"{side}_prox")(phi, x, step)
        slope = phi.root(x) ** 2 * (x - nearest)
        slope = (phi.grad(x) - phi.grad(nearest) if is_right else slope) / step
        found = jax.value_and_grad(lambda x: envelope(term, phi, x, step))(x)
        return *found, jnp.min(heights), height(nearest, x), slope

    value, gradient, grid, there, slope = measure(jnp.array([0.01, 0.5, -0.5, 5.0]))
    np.testing.assert_allclose(value, grid, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(there, grid, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4)


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


def test_smoothing_errs_in_its_stated_order():
    """By quadrature, the mean of |x| under a Laplace law with its kink smoothed."""
    x = np.linspace(-30, 30, 60_001)

    def error(step):
        huber = np.where(np.abs(x) < step, x**2 / (2 * step), np.abs(x) - step / 2)
        np.testing.assert_allclose(
            jax.jit(jax.vmap(lambda x: moreau_envelope(TERM, x, step)))(
                x[29_000:31_000]
            ),
            huber[29_000:31_000],
            atol=1e-5,
        )
        density = np.exp(-huber)
        return np.sum(np.abs(x) * density) / np.sum(density) - 1

    order = myula.SPEC.bias_order["smoothing"]
    assert np.log2(error(0.1) / error(0.05)) == pytest.approx(order, abs=0.2)


def test_smoothing_leaves_a_laplace_normaliser_to_a_higher_order():
    """By quadrature: what an unknown scale sees of the smoothing of its sites."""
    x = jnp.linspace(-30, 30, 60_001)

    def errors(potential):
        density = jax.jit(
            jax.vmap(lambda x, step: jnp.exp(-potential(x, step)), (0, None))
        )
        sums = [float(np.sum(density(x, s), dtype=float)) for s in (0.2, 0.1, 0.05)]
        return [abs(total * 1e-3 / 2 - 1) for total in sums]

    raised = errors(lambda x, step: smoothed(TERM, x, step, 1.0))
    plain = errors(lambda x, step: moreau_envelope(TERM, x, step))
    assert raised[2] < raised[0] / 10
    assert raised[0] < plain[0] / 10
    assert plain[2] > plain[0] / 5
