"""What the pilot finds; deterministic for its seed."""

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.modes.pilot import run_pilot
from nutfree.modes.search import Effort
from nutfree.target import Prior, Target

ANGLES = np.arange(8) * np.pi / 4
EVEN, WIDTHS = np.full(8, 1 / 8), np.full(8, 0.7)
RING = 10 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)


def pilot(logdensity, position, seed=0, prior=None, **effort):
    target = Target(logdensity, position=position, prior=prior)
    return jax.jit(lambda key: run_pilot(key, position, target, Effort(**effort)))(
        jax.random.key(seed)
    )


def ring(x, weights=EVEN, scales=WIDTHS):
    squares = jnp.sum((x - RING) ** 2, axis=-1) / scales**2
    return jax.nn.logsumexp(jnp.log(weights) - 2 * jnp.log(scales) - 0.5 * squares)


def test_all_modes_are_found_with_their_weights():
    weights = np.random.default_rng(0).dirichlet(np.ones(8))
    scales = np.linspace(0.5, 1.0, 8)
    found = pilot(lambda x: ring(x, weights, scales), jnp.zeros(2))
    share = np.exp(found.modes.log_weight)
    centers = np.asarray(found.center + found.scale * found.modes.center)[share > 1e-4]
    distance = np.linalg.norm(centers[:, None] - RING, axis=-1)
    assert len(centers) == 8
    assert distance.min(0).max() < 0.02
    np.testing.assert_allclose(
        share[share > 1e-4], weights[distance.argmin(1)], atol=0.005
    )


def test_center_and_scale_are_those_of_the_posterior():
    found = pilot(ring, jnp.array([3.0, -4.0]), num_starts=256)
    np.testing.assert_allclose(found.center, 0.0, atol=0.05)
    np.testing.assert_allclose(found.scale, np.sqrt(50 + 0.49), rtol=0.01)
    np.testing.assert_allclose(found.width * found.scale, 0.7, rtol=0.01)


def test_units_of_a_prior_carry_over():
    sd = jnp.array([1e-4, 1.0, 1e5])
    prior = Prior(lambda key: 5 * sd * jax.random.normal(key, (3,)), None)
    found = pilot(lambda x: -0.5 * jnp.sum((x / sd) ** 2), 3 * sd, prior=prior)
    np.testing.assert_allclose(found.scale, sd, rtol=0.01)
    np.testing.assert_allclose(found.center / sd, 0.0, atol=0.02)


def test_correlated_gaussian_has_its_axes():
    covariance = np.array([[1.0, 0.9], [0.9, 1.0]])
    precision = np.linalg.inv(covariance)
    found = pilot(lambda x: -0.5 * x @ precision @ x, jnp.ones(2))
    axes, width = found.modes.axes[0], found.modes.width[0]
    scale = np.asarray(found.scale)
    np.testing.assert_allclose(
        (axes * width**2) @ axes.T * scale * scale[:, None], covariance, atol=0.02
    )
    np.testing.assert_allclose(found.scale, 1.0, rtol=0.02)
    np.testing.assert_allclose(found.width * found.scale, 0.19**0.5, rtol=0.02)


def test_many_dimensions_use_the_diagonal():
    sd = jnp.logspace(-1, 1, 100)
    found = pilot(lambda x: -0.5 * jnp.sum((x / sd) ** 2), jnp.ones(100), num_starts=16)
    assert found.modes.axes.size == 0
    np.testing.assert_allclose(found.scale, sd, rtol=0.05)


def test_starts_without_density_are_dropped():
    def half(x):
        return jnp.where(x[0] > 0.0, -0.5 * jnp.sum((x - 2.0) ** 2), jnp.nan)

    found = pilot(half, jnp.ones(2))
    assert all(np.isfinite(leaf).all() for leaf in found._replace(modes=0.0)[:-1])
    np.testing.assert_allclose(found.center, 2.0, atol=0.05)


def test_evaluations_are_counted():
    found = pilot(ring, jnp.zeros(2), num_starts=10, num_steps=7)
    # a descent's gradients, and two for each of the curvature's two columns
    assert found.num_grad_evals == 10 * (7 + 2 * 2)


def test_same_point_everywhere_is_no_division_by_zero():
    prior = Prior(lambda key: jnp.zeros(2), None)
    found = pilot(ring, jnp.zeros(2), prior=prior, num_starts=4)
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()


def test_a_kink_has_the_width_of_the_density():
    scales = jnp.array([0.1, 1.0, 30.0])

    def laplace(x):
        return -jnp.sum(jnp.abs(x) / scales)

    found = pilot(laplace, jnp.ones(3), num_starts=64, num_steps=200)
    # no curvature there; log pi falls by one at the scale itself, and halving from afar
    # finds a width between half of that and all; ends beside the kink are wider
    assert (found.scale > 0.5 * scales).all()
    assert (found.scale < 2.5 * scales).all()


def test_starts_in_a_steep_wall_leave_the_scale_finite():
    # log of a gamma variable; from a start at 100 the curvature is 1e43
    found = pilot(lambda x: jnp.sum(2 * x - jnp.exp(x)), jnp.zeros(2), num_starts=256)
    np.testing.assert_allclose(found.center, np.log(2), atol=1e-3)
    np.testing.assert_allclose(found.scale, 2**-0.5, rtol=0.01)


def test_descents_from_a_wall_into_a_tail_arrive():
    """The curvature of a wall, met on the way, must not keep the steps in the tail
    short: log of a gamma(1/2) variable, and a Cauchy."""

    def cauchy(x):
        return -jnp.sum(jnp.log1p(x**2))

    for seed in range(3):
        found = pilot(lambda x: jnp.sum(0.5 * x - jnp.exp(x)), jnp.zeros(1), seed)
        np.testing.assert_allclose(found.scale, 2**0.5, rtol=0.03)
        found = pilot(cauchy, jnp.zeros(2), seed)
        np.testing.assert_allclose(found.scale, 2**-0.5, rtol=0.03)


def test_a_direction_without_density_of_its_own_stays_wide():
    found = pilot(lambda x: -0.5 * x[0] ** 2, jnp.ones(2), num_starts=64)
    np.testing.assert_allclose(found.scale[0], 1.0, rtol=0.1)
    assert found.scale[1] > 10.0


def test_where_the_curvature_is_of_use_no_width_is_looked_for():
    def evaluations(logdensity):
        return pilot(logdensity, jnp.ones(3), num_starts=10).num_grad_evals

    # ten descents of 60, and twice three products with the curvature at each end
    assert evaluations(lambda x: -0.5 * jnp.sum(x**2)) == 10 * (60 + 6)
    assert evaluations(lambda x: -jnp.sum(jnp.abs(x))) > 10 * (60 + 6)


def test_a_mode_that_few_starts_lead_to_is_found_by_looks():
    """In ten dimensions nearly all starts lead to the wider of two modes."""
    centers = jnp.array([[-6.0], [6.0]]) * jnp.ones(10)
    scales = jnp.array([1.3, 0.6])
    prior = Prior(lambda key: 12.0 * jax.random.normal(key, (10,)), None)

    def two(x):
        squares = jnp.sum((x - centers) ** 2, axis=-1) / scales**2
        return jax.nn.logsumexp(-10 * jnp.log(scales) - 0.5 * squares)

    def weights(seed, num_probes):
        options = {"num_starts": 64, "num_modes": 16, "num_probes": num_probes}
        found = pilot(two, jnp.zeros(10), seed, prior, **options)
        return np.sort(np.exp(found.modes.log_weight))[-2:]

    assert sum(weights(seed, 0)[0] > 0.1 for seed in range(5)) <= 2
    for seed in range(5):
        np.testing.assert_allclose(weights(seed, 4096), 0.5, atol=0.01)


def test_looks_at_a_density_that_the_modes_explain_cost_themselves():
    options = {"num_starts": 64, "num_first_steps": 7, "num_modes": 40}
    first = pilot(ring, jnp.zeros(2), **options).num_grad_evals
    found = pilot(ring, jnp.zeros(2), num_probes=500, **options)
    assert found.num_grad_evals == first + 500


def test_looks_end_when_a_round_finds_no_mode():
    def student(x):
        return -1.5 * jnp.log1p(x @ x)

    options = {"num_starts": 64, "num_first_steps": 7, "num_modes": 32}
    first = pilot(student, jnp.zeros(2), **options).num_grad_evals
    found = pilot(student, jnp.zeros(2), num_probes=500, **options)
    # its tails are more than the mode says: one round of descents to modes, one of
    # short ones to masses, and at each end two products with the curvature and a
    # gradient, and the width where that is flat
    rounds = 32 * (60 + 10 + 2 * (2 * 2 + 1))
    assert rounds <= found.num_grad_evals - first - 500 < 1.1 * rounds


def test_a_descent_that_has_not_arrived_is_no_mode():
    """Looks into the tails of a Cauchy density lead to descents that end on the way."""
    options = {"num_starts": 64, "num_first_steps": 30, "num_modes": 32, "num_steps": 4}
    found = pilot(lambda x: -jnp.sum(jnp.log1p(x**2)), jnp.zeros(2), **options)
    again = pilot(
        lambda x: -jnp.sum(jnp.log1p(x**2)), jnp.zeros(2), num_probes=512, **options
    )
    assert again.num_grad_evals > found.num_grad_evals
    assert np.isfinite(found.modes.log_weight).sum() == 1
    assert np.isfinite(again.modes.log_weight).sum() == 1


def test_starts_go_on_while_they_find_modes():
    """324 modes, and room for all: 256 descents cannot find them."""
    side = 10.0 * jnp.arange(18)
    grid = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    prior = Prior(lambda key: jax.random.uniform(key, (2,), maxval=170.0), None)

    def many(x):
        return jax.nn.logsumexp(-0.5 * jnp.sum((x - grid) ** 2, axis=-1))

    options = {"num_starts": 1024, "num_first_steps": 10, "prior": prior}
    found = pilot(many, jnp.zeros(2), num_modes=512, **options)
    assert np.isfinite(found.modes.log_weight).sum() > 300
    few = pilot(ring, jnp.zeros(2), num_modes=512, **options).num_grad_evals
    assert few == 1024 * 10 + 256 * (60 + 2 * 2) < found.num_grad_evals


def test_where_the_mode_has_no_mass_the_heaviest_place_does():
    """A funnel's mode is far down its neck."""

    def funnel(x):
        others = -0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) - 0.5 * 9 * x[0]
        return others - 0.5 * (x[0] / 3) ** 2

    prior = Prior(lambda key: 5.0 * jax.random.normal(key, (10,)), None)
    options = {"num_starts": 512, "num_first_steps": 10, "num_modes": 128}
    for seed in range(3):
        found = pilot(funnel, jnp.zeros(10), seed, prior, num_probes=4096, **options)
        assert abs(found.best[0]) < 6.0
