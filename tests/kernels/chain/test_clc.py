"""The chain of observations from its own warm-up.

Tolerances are four standard errors or more. With fixed seeds, false alarms are below
1e-3 for the file.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.kernels.chain import clc
from nutfree.kernels.chain.clc import SPEC, Options
from nutfree.modes.mixture import modes_of
from nutfree.target import Target
from tests.chains import sample
from tests.paths.oracles import RING, assert_ring


@pytest.mark.slow
def test_modes_have_their_weights_and_the_cost_is_what_the_spec_says():
    states, info, params = sample(RING, spec=SPEC, num_warmup=20, num_samples=1000)
    assert_ring(states, info)
    assert (info.num_grad_evals == SPEC.gradients(Options(), params, RING)).all()


def two_gaussians(separation):
    """.8 and .2 of them, in the plane."""
    far = jnp.array([separation, 0.0])

    def logdensity(x):
        near = jnp.log(0.8) - 0.5 * jnp.sum(x**2)
        return jnp.logaddexp(near, jnp.log(0.2) - 0.5 * jnp.sum((x - far) ** 2))

    return Target(logdensity, jnp.zeros(2))


@pytest.mark.slow
@pytest.mark.parametrize("separation", [4.0, 10.0, 26.0, 64.0])
def test_observations_alone_give_the_weights_of_two_modes(separation):
    """Without a jump between modes: within .02, of which the standard error is .004."""
    states, info, _ = sample(
        two_gaussians(separation),
        spec=SPEC,
        num_warmup=20,
        num_samples=8000,
        num_jumps=0,
    )
    x = np.asarray(states.position[:, 0])
    near = x < separation / 2
    # at four sds from each other some draws lie beyond the middle
    overlap = 0.5 * math.erfc(separation / 2 / 2**0.5)
    exact = 0.8 * (1 - overlap) + 0.2 * overlap
    print(f"separation {separation}: {near.mean():.4f} for {exact:.4f}")
    assert abs(near.mean() - exact) < 0.02
    assert not info.is_divergent.any()
    if separation > 4:
        np.testing.assert_allclose(x[near].std(), 1.0, rtol=0.06)
        np.testing.assert_allclose(x[~near].std(), 1.0, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"denoiser": "plug_in"},
        {"denoiser": "importance", "num_fast_steps": 16},
        {"order": "all_at_once"},
        {"look_dynamics": "overdamped"},
        {"restart": "look", "num_fast_steps": 8},
    ],
    ids=lambda options: next(iter(options.values())),
)
def test_every_part_is_finite_and_costs_what_the_spec_says(options):
    """On a Gaussian all are right; a variance over two coordinates has an error of 3 %,
    and four of them are allowed."""
    target = Target(lambda x: -0.5 * jnp.sum((x / 3.0) ** 2), jnp.zeros(2))
    states, info, params = sample(
        target, spec=SPEC, num_warmup=10, num_samples=1000, num_starts=8, **options
    )
    assert (info.num_grad_evals == SPEC.gradients(Options(**options), params, 0)).all()
    assert not info.is_divergent.any()
    assert abs(states.position.var() / 9 - 1) < 0.12


def test_noise_is_raised_where_modes_lie_far_apart():
    """To half their distance, and no further than num_looks are enough for."""

    def chosen(distance, **options):
        center = jnp.asarray([[0.0, 0.0], [distance, 0.0]])
        axes = jnp.broadcast_to(jnp.eye(2), (2, 2, 2))
        modes = modes_of(center, jnp.ones((2, 2)), axes, jnp.log(jnp.ones(2) / 2))
        return float(clc._noise(Options(**options), jnp.asarray(1.0), modes))

    assert chosen(1.0) == pytest.approx(1.5)
    assert chosen(4.0) == pytest.approx(2.0)
    assert chosen(40.0) == pytest.approx(0.45 * 24**0.5)
    assert chosen(40.0, noise=1.7) == pytest.approx(1.7)


@pytest.mark.slow
def test_jump_shrinks_the_law_and_the_draw_does_not():
    target = Target(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(3))
    options = {"num_warmup": 0, "num_samples": 1500, "num_starts": 8, "spec": SPEC}
    path = {"num_looks": 8, "noise": 1.5, "num_look_steps": 6}
    jumped, info, params = sample(target, final="jump", **path, **options)
    drawn, _, _ = sample(target, final="draw", **path, **options)
    # Var E[X | ybar] = 1 / (1 + noise^2 / observations), and eight are too few
    num_looks = 25
    shrunk = 1 / (1 + 1.5**2 / num_looks)
    # one standard error of a variance over three coordinates is 2 %
    assert abs(jumped.position.var() / shrunk - 1) < 0.09
    assert abs(drawn.position.var() - 1) < 0.09
    # one estimate of D more than the observations, and the evaluation of its end
    told = SPEC.gradients(Options(final="jump", **path), params, target)
    assert (info.num_grad_evals == told).all()
    assert (info.num_grad_evals == (num_looks * 6 + 1) + 1).all()
    assert np.isnan(info.acceptance_rate).all()


@pytest.mark.slow
def test_density_with_holes_never_yields_a_draw_in_one():
    def holed(x):
        density = -0.5 * jnp.sum(x**2)
        return jnp.where(jnp.abs(x[0]) < 0.3, jnp.nan, density)

    target = Target(holed, jnp.ones(2))
    states, _, _ = sample(target, spec=SPEC, num_warmup=20, num_samples=300)
    assert np.isfinite(states.logdensity).all()
    assert (np.abs(states.position[:, 0]) >= 0.3).all()


def test_jump_to_a_mean_is_raised_or_refused_by_the_width_of_the_modes():
    """noise / sqrt(M) <= .3 widths, or no draw at all."""

    def chosen(width, final="jump"):
        modes = modes_of(
            jnp.zeros((2, 3)),
            jnp.full((2, 3), width),
            jnp.broadcast_to(jnp.eye(3), (2, 3, 3)),
            jnp.asarray([0.0, -jnp.inf]),
        )
        number, refused = clc._num_looks(Options(final=final), jnp.asarray(1.0), modes)
        return int(number), bool(refused)

    assert chosen(2.0) == (24, False)
    number, refused = chosen(0.25)
    assert not refused
    assert 1.5 / number**0.5 <= 0.3 * 0.25 < 1.5 / (number - 1) ** 0.5
    assert chosen(0.1) == (24, True)
    assert chosen(0.1, "draw") == (24, False)


@pytest.mark.slow
def test_a_refused_jump_is_divergent_and_moves_nowhere():
    """The widths are a 26th of the posterior's."""
    target = two_gaussians(64.0)
    states, info, _ = sample(
        target, spec=SPEC, num_warmup=2, num_samples=20, final="jump"
    )
    assert np.all(info.is_divergent)
    assert len(np.unique(states.position[:, 0])) == 1
