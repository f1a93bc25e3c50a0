"""What the pilot finds; deterministic for its seed.

Densities of one dimension and one effort share a program, which takes their number.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.modes.pilot import run_pilot
from nutfree.modes.search import Effort
from nutfree.target import Prior, Target

ANGLES = np.arange(8) * np.pi / 4
RING = 10 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
WEIGHTS = np.random.default_rng(0).dirichlet(np.ones(8))
COVARIANCE = np.array([[1.0, 0.9], [0.9, 1.0]])
KINK_SCALES = jnp.array([0.1, 30.0])


def ring(x, weights=np.full(8, 1 / 8), scales=np.full(8, 0.7)):
    squares = jnp.sum((x - RING) ** 2, axis=-1) / scales**2
    return jax.nn.logsumexp(jnp.log(weights) - 2 * jnp.log(scales) - 0.5 * squares)


def uneven_ring(x):
    return ring(x, WEIGHTS, np.linspace(0.5, 1.0, 8))


def correlated(x):
    return -0.5 * x @ np.linalg.inv(COVARIANCE) @ x


def half(x):
    return jnp.where(x[0] > 0.0, -0.5 * jnp.sum((x - 2.0) ** 2), jnp.nan)


def kinks(x):
    return -jnp.sum(jnp.abs(x) / KINK_SCALES)


def steep_wall(x):
    """Log of gamma(2) variables; from a start at 100 the curvature is 1e43."""
    return jnp.sum(2 * x - jnp.exp(x))


def wall_and_tail(x):
    """Log of gamma(1/2) variables."""
    return jnp.sum(0.5 * x - jnp.exp(x))


def cauchy(x):
    return -jnp.sum(jnp.log1p(x**2))


def flat_direction(x):
    return -0.5 * x[0] ** 2


def student(x):
    return -1.5 * jnp.log1p(x @ x)


def grid(x):
    """324 modes."""
    side = 10.0 * jnp.arange(18)
    points = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    return jax.nn.logsumexp(-0.5 * jnp.sum((x - points) ** 2, axis=-1))


def wide_and_narrow(x):
    """In ten dimensions nearly all starts lead to the wider of these two modes."""
    centers = jnp.array([[-6.0], [6.0]]) * jnp.ones(10)
    scales = jnp.array([1.3, 0.6])
    squares = jnp.sum((x - centers) ** 2, axis=-1) / scales**2
    return jax.nn.logsumexp(-10 * jnp.log(scales) - 0.5 * squares)


def funnel(x):
    """Its mode is far down its neck, where there is hardly any mass."""
    others = -0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) - 0.5 * 9 * x[0]
    return others - 0.5 * (x[0] / 3) ** 2


UNITS = jnp.logspace(-4, 5, 10)


def in_units(x):
    return -0.5 * jnp.sum((x / UNITS) ** 2)


@cache
def program(densities, dim, draw_prior=None, **effort):
    """Return `pilot(density, position, seed, num_steps, prior_scale)`, compiled once
    for all these densities."""

    @jax.jit
    def run(which, position, key, num_steps, prior_scale):
        def logdensity(x):
            return jax.lax.switch(which, densities, x)

        def sample(key):
            return prior_scale * draw_prior(key, (dim,))

        prior = Prior(sample, None) if draw_prior else None
        target = Target(logdensity, position=position, prior=prior)
        effort_now = Effort(num_steps=num_steps, **effort)
        return run_pilot(key, position, target, effort_now)

    def pilot(density, position=None, seed=0, num_steps=60, prior_scale=1.0):
        position = jnp.zeros(dim) if position is None else jnp.asarray(position)
        scale = jnp.broadcast_to(jnp.asarray(prior_scale, float), (dim,))
        which = densities.index(density)
        return run(which, position, jax.random.key(seed), num_steps, scale)

    return pilot


PLANE = (ring, uneven_ring, correlated, half, kinks, steep_wall)
PLANE += (wall_and_tail, cauchy, flat_direction)
starts_only = program(PLANE, 2, num_starts=128)
with_probes = program(
    (ring, student, cauchy),
    2,
    num_starts=64,
    num_first_steps=30,
    num_modes=40,
    num_probes=512,
)
in_ten_dimensions = program(
    (wide_and_narrow, funnel, in_units),
    10,
    jax.random.normal,
    num_starts=64,
    num_modes=16,
    num_probes=4096,
)
many_starts = program(
    (ring, grid),
    2,
    jax.random.uniform,
    num_starts=1024,
    num_first_steps=10,
    num_modes=512,
)


def number_of_modes(found):
    return np.isfinite(found.modes.log_weight).sum()


def test_all_modes_are_found_with_their_weights():
    found = starts_only(uneven_ring)
    share = np.exp(found.modes.log_weight)
    centers = np.asarray(found.center + found.scale * found.modes.center)[share > 1e-4]
    distance = np.linalg.norm(centers[:, None] - RING, axis=-1)
    assert len(centers) == 8
    assert distance.min(0).max() < 0.02
    np.testing.assert_allclose(
        share[share > 1e-4], WEIGHTS[distance.argmin(1)], atol=0.005
    )


def test_center_and_scale_are_those_of_the_posterior():
    found = starts_only(ring, [3.0, -4.0])
    np.testing.assert_allclose(found.center, 0.0, atol=0.05)
    np.testing.assert_allclose(found.scale, np.sqrt(50 + 0.49), rtol=0.01)
    np.testing.assert_allclose(found.width * found.scale, 0.7, rtol=0.01)


@pytest.mark.slow
def test_units_of_a_prior_carry_over():
    found = in_ten_dimensions(in_units, 3 * UNITS, prior_scale=5 * UNITS)
    np.testing.assert_allclose(found.scale, UNITS, rtol=0.01)
    np.testing.assert_allclose(found.center / UNITS, 0.0, atol=0.02)


def test_correlated_gaussian_has_its_axes():
    found = starts_only(correlated, [1.0, 1.0])
    axes, width = found.modes.axes[0], found.modes.width[0]
    scale = np.asarray(found.scale)
    np.testing.assert_allclose(
        (axes * width**2) @ axes.T * scale * scale[:, None], COVARIANCE, atol=0.02
    )
    np.testing.assert_allclose(found.scale, 1.0, rtol=0.02)
    np.testing.assert_allclose(found.width * found.scale, 0.19**0.5, rtol=0.02)


@pytest.mark.slow
def test_many_dimensions_use_the_diagonal():
    sd = jnp.logspace(-1, 1, 100)

    def gaussian(x):
        return -0.5 * jnp.sum((x / sd) ** 2)

    found = program((gaussian,), 100, num_starts=16)(gaussian, jnp.ones(100))
    assert found.modes.axes.size == 0
    np.testing.assert_allclose(found.scale, sd, rtol=0.05)


def test_starts_without_density_are_dropped():
    found = starts_only(half, [1.0, 1.0])
    assert all(np.isfinite(leaf).all() for leaf in found._replace(modes=0.0)[:-1])
    np.testing.assert_allclose(found.center, 2.0, atol=0.05)


def test_evaluations_are_counted():
    # a descent's gradients, and two for each of the curvature's two columns
    for num_steps in (7, 60):
        found = starts_only(ring, num_steps=num_steps)
        assert found.num_grad_evals == 128 * (num_steps + 2 * 2)
    # no width is searched for where the curvature tells it
    assert starts_only(kinks).num_grad_evals > 128 * (60 + 2 * 2)


def test_same_point_everywhere_is_no_division_by_zero():
    found = in_ten_dimensions(wide_and_narrow, prior_scale=0.0)
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()


def test_a_kink_has_the_width_of_the_density():
    found = starts_only(kinks, [1.0, 1.0], num_steps=200)
    # no curvature there; log pi falls by one at the scale itself, and halving from afar
    # finds a width between half of that and all; ends beside the kink are wider
    assert (found.scale > 0.5 * KINK_SCALES).all()
    assert (found.scale < 2.5 * KINK_SCALES).all()


def test_starts_in_a_steep_wall_leave_the_scale_finite():
    found = starts_only(steep_wall)
    np.testing.assert_allclose(found.center, np.log(2), atol=1e-3)
    np.testing.assert_allclose(found.scale, 2**-0.5, rtol=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_descents_from_a_wall_into_a_tail_arrive(seed):
    """The curvature of a wall, met on the way, must not keep the steps in the tail
    short."""
    found = starts_only(wall_and_tail, seed=seed)
    np.testing.assert_allclose(found.scale, 2**0.5, rtol=0.03)
    found = starts_only(cauchy, seed=seed)
    np.testing.assert_allclose(found.scale, 2**-0.5, rtol=0.03)


def test_a_direction_without_density_of_its_own_stays_wide():
    found = starts_only(flat_direction, [1.0, 1.0])
    np.testing.assert_allclose(found.scale[0], 1.0, rtol=0.1)
    assert found.scale[1] > 10.0


def weights_of_two(found):
    return np.sort(np.exp(found.modes.log_weight))[-2:]


@pytest.mark.parametrize("seed", range(5))
def test_a_mode_that_few_starts_lead_to_is_found_by_probes(seed):
    found = in_ten_dimensions(wide_and_narrow, seed=seed, prior_scale=12.0)
    np.testing.assert_allclose(weights_of_two(found), 0.5, atol=0.01)


@pytest.mark.slow
def test_few_starts_lead_to_a_mode_that_is_found_by_probes():
    settings = {"num_starts": 64, "num_modes": 16}
    pilot = program((wide_and_narrow,), 10, jax.random.normal, **settings)
    found = [pilot(wide_and_narrow, seed=s, prior_scale=12.0) for s in range(5)]
    assert sum(weights_of_two(one)[0] > 0.1 for one in found) <= 2


#: First steps of 64 starts, two rounds of 32 descents, the curvature's columns at their
#: ends, and the probes.
COST_OF_STARTS = 64 * 30 + 64 * (60 + 2 * 2) + 512


def test_probes_of_a_density_that_the_modes_explain_cost_themselves():
    assert with_probes(ring).num_grad_evals == COST_OF_STARTS


def test_probing_ends_when_a_round_finds_no_mode():
    found = with_probes(student)
    # its tails are more than the mode says: one round of descents to modes, one of
    # short ones to masses, and at each end two products with the curvature, and the
    # width where that is flat
    rounds = 32 * (60 + 10 + 2 * 2 * 2)
    assert rounds <= found.num_grad_evals - COST_OF_STARTS < 1.1 * rounds


def test_a_descent_that_has_not_arrived_is_no_mode():
    """Probes in the tails of a Cauchy density begin descents that end on the way."""
    found = with_probes(cauchy, num_steps=4)
    assert found.num_grad_evals > 64 * 30 + 64 * (4 + 2 * 2) + 512
    assert number_of_modes(found) == 1


@pytest.mark.slow
def test_starts_go_on_while_they_find_modes():
    """256 descents cannot find all modes, and there is room for them."""
    found = many_starts(grid, prior_scale=170.0)
    assert number_of_modes(found) > 300
    few = many_starts(ring, prior_scale=170.0).num_grad_evals
    assert few == 1024 * 10 + 256 * (60 + 2 * 2) < found.num_grad_evals


@pytest.mark.parametrize("seed", range(3))
def test_where_the_mode_has_no_mass_the_heaviest_place_does(seed):
    found = in_ten_dimensions(funnel, seed=seed, prior_scale=5.0)
    assert abs(found.best[0]) < 6.0
