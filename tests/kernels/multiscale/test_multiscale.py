"""Multiscale from its own warm-up. Tolerances are four standard errors or more.

With fixed seeds, false alarms are below 1e-3 for the file.
"""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size
from scipy.stats import chisquare

import nutfree as nf
from nutfree.diagnostics.evidence import pareto_k, pooled_bridge
from nutfree.kernels.multiscale.multiscale import SPEC, Options, build_kernel, init
from nutfree.kernels.multiscale.proposal import mixture_of
from nutfree.kernels.multiscale.shifts import shifts_between
from nutfree.modes.mixture import modes_of
from nutfree.target import Target
from tests.chains import run_chain, sample

WEIGHTS = np.array([0.1, 0.2, 0.7])
MEANS = np.array([[-8.0, 0.0, 3.0], [6.0, 6.0, -2.0], [5.0, -7.0, 0.0]])
ROOTS = np.stack([np.diag([0.4, 1.0, 2.0]), np.eye(3), 0.7 * np.eye(3)])
ROOTS[2, 1, 0] = 1.2
LOG_DET = np.log(np.abs(np.linalg.det(ROOTS)))
INVERSE = np.linalg.inv(ROOTS)


def three(x):
    """A normalised mixture with unequal weights, scales and correlations."""
    z = jnp.einsum("kij,kj->ki", INVERSE, x["x"] - MEANS)
    squares = jnp.sum(z**2, axis=-1) + 3 * jnp.log(2 * jnp.pi)
    return jax.nn.logsumexp(jnp.log(WEIGHTS) - LOG_DET - 0.5 * squares)


THREE = Target(three, position={"x": jnp.zeros(3)})


def three_in_eight(x):
    """`three` in the first coordinates, standard normal in the others."""
    others = x["x"][3:]
    return three({"x": x["x"][:3]}) - 0.5 * jnp.sum(others**2 + jnp.log(2 * jnp.pi))


def wells(x):
    """2^8 combinations of two wells."""
    return jnp.sum(-(x["x"] ** 4) + 6 * x["x"] ** 2 + 0.2 * x["x"])


@jax.jit
def eight_dimensions(which, key):
    def logdensity(x):
        return jax.lax.switch(which, (three_in_eight, wells), x)

    target = Target(logdensity, position={"x": jnp.zeros(8)})
    settings = {"num_warmup": 300, "num_samples": 6000}
    options = {"num_starts": 256, "num_modes": 16}
    return run_chain(target, key, spec=SPEC, **settings, **options)


@pytest.fixture(scope="module")
def run():
    return eight_dimensions(0, jax.random.key(0))


@pytest.fixture(scope="module")
def crowded():
    """Of the modes of `wells` 16 are kept."""
    return eight_dimensions(1, jax.random.key(0))


def test_modes_have_their_weights_means_and_covariances(run):
    states, _, _ = run
    x = np.asarray(states.position["x"])[:, :3]
    mode = np.linalg.norm(x[:, None] - MEANS, axis=-1).argmin(1)
    for k in range(3):
        inside = (mode == k).astype(float)
        error = np.sqrt(WEIGHTS[k] * (1 - WEIGHTS[k]))
        error /= np.sqrt(effective_sample_size(inside[None]))
        assert abs(inside.mean() - WEIGHTS[k]) < 4.5 * error
        z = (x[mode == k] - MEANS[k]) @ INVERSE[k].T
        squares = z[:, :, None] * z[:, None]
        for moment, expected in ((z, np.zeros(3)), (squares, np.eye(3))):
            size = effective_sample_size(moment[None])
            error = moment.std(0) / np.sqrt(size)
            assert (abs(moment.mean(0) - expected) < 4.5 * error).all()


def test_most_moves_between_modes_are_accepted(run):
    _, info, params = run
    assert info.global_rate.mean() > 0.5
    assert info.jump_rate.mean() > 0.5
    assert abs(info.acceptance_rate.mean() - 0.8) < 0.15
    assert np.isfinite(params["mixture"].modes.width).all()


def test_evidence_of_a_normalised_density_is_one(run):
    _, info, _ = run
    found = pooled_bridge(
        np.asarray(info.log_importance)[None],
        np.asarray(info.proposal_log_importance)[None],
    )
    assert found.log_evidence_se < 0.03
    assert abs(found.log_evidence) < 4 * found.log_evidence_se
    assert pareto_k(np.asarray(info.proposal_log_importance)[None]) < 0.7


def test_cost_is_what_the_spec_says(run):
    _, info, params = run
    assert SPEC.gradients(Options(), params, THREE) == 2 * (5 + 2)
    assert (info.num_grad_evals == 2 * (5 + 2)).all()


def test_shifts_reach_modes_that_are_too_many_to_be_known(crowded):
    grid = np.linspace(-4.0, 4.0, 4001)
    well = -(grid**4) + 6 * grid**2 + 0.2 * grid
    density = np.exp(well - well.max())
    right = density[grid > 0].sum() / density.sum()
    states, _, _ = crowded
    inside = (np.asarray(states.position["x"]) > 0).astype(float)
    size = effective_sample_size(inside[None])
    assert size.min() > 200
    error = np.sqrt(right * (1 - right) / size)
    assert (abs(inside.mean(0) - right) < 4 * error).all()
    assert len(np.unique(inside, axis=0)) > 200


def test_mode_that_the_pilot_missed_is_met_by_the_wide_component():
    """Of two modes q knows the left one."""

    def density(x):
        narrow = -0.5 * jnp.sum((x / 0.5) ** 2, axis=-1)
        far = -0.5 * jnp.sum(((x - 2.5) / 0.2) ** 2, axis=-1)
        return jnp.logaddexp(narrow, far + jnp.log(3.0))

    one = jnp.ones((1, 1))
    modes = modes_of(jnp.zeros((1, 1)), one, one[None], jnp.zeros(1))
    params = {
        "step_size": jnp.asarray(1.0),
        "center": jnp.zeros(1),
        "scale": jnp.full(1, 0.5),
        "mixture": mixture_of(modes),
        "shifts": shifts_between(modes),
        "shift_share": jnp.asarray(0.5),
    }
    kernel = build_kernel()

    def step(state, key):
        state, info = kernel(key, state, density, **params)
        return state, (state.position, info.proposal_log_importance)

    start = init(jnp.zeros(1), density)
    keys = jax.random.split(jax.random.key(0), 2000)
    _, (x, importance) = jax.jit(lambda: jax.lax.scan(step, start, keys))()
    assert x.max() > 2.0
    assert pareto_k(np.asarray(importance)[None]) > 0.7


def test_pilot_with_no_room_for_all_modes_concerns_the_user(run, crowded):
    assert not SPEC.concerns(run[2])
    (concern,) = SPEC.concerns(crowded[2])
    assert "num_modes=64" in concern


@pytest.mark.slow
def test_room_for_a_single_mode():
    options = {"num_starts": 16, "num_modes": 1}
    _, info, _ = sample(THREE, spec=SPEC, num_warmup=20, num_samples=20, **options)
    assert (info.num_grad_evals == 2 * (5 + 2)).all()


@pytest.mark.slow
def test_host_warns_of_a_pilot_with_no_room():
    with pytest.warns(UserWarning, match="num_modes=8"):
        nf.kernel("multiscale", THREE, num_modes=2).init(jax.random.key(0), 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nf.kernel("multiscale", THREE, num_modes=16).init(jax.random.key(0), 10)


@pytest.mark.slow
def test_modes_that_the_pilot_found_are_in_the_report():
    kernel = nf.kernel("multiscale", THREE, num_starts=64, num_modes=16)
    settings = {"num_warmup": 2, "num_samples": 8, "num_chains": 1}
    tree = nf.sample(kernel, progress_bar=False, **settings)
    assert json.loads(tree.sample_stats.attrs["tuned"])["num_modes"] == [3]


@pytest.mark.slow
def test_heavy_tail_shows_in_the_importance_ratios():
    # q covers a Cauchy in a few coordinates, and not in ten
    target = Target(lambda x: -jnp.sum(jnp.log1p(x**2)), position=jnp.zeros(10))
    _, info, _ = sample(
        target, spec=SPEC, num_warmup=100, num_samples=3000, num_starts=64, num_modes=8
    )
    assert pareto_k(np.asarray(info.proposal_log_importance)[None]) > 0.7


@pytest.mark.slow
def test_density_with_holes_never_yields_a_draw_in_one():
    def holed(x):
        density = -0.5 * jnp.sum(x**2)
        return jnp.where(jnp.abs(x[0]) < 0.3, jnp.nan, density)

    states, _, _ = sample(
        Target(holed, jnp.ones(2)),
        spec=SPEC,
        num_warmup=20,
        num_samples=300,
        num_starts=64,
        num_modes=8,
    )
    assert np.isfinite(states.logdensity).all()
    assert (np.abs(states.position[:, 0]) >= 0.3).all()


NUM_RANKS = 15


@pytest.mark.slow
def test_ranks_of_the_truth_are_uniform_where_the_posterior_has_two_modes():
    """Data on |x| alone leave its sign open, but for the prior. Chi-square at 1e-3.

    The crease at x = 0 is as blunt as the noise is large, so that draws eight
    transitions apart are independent: correlated ones crowd the first and last ranks.
    """

    def rank(key):
        truth_key, noise_key, chain_key = jax.random.split(key, 3)
        mean, sd = jnp.array([0.5, 0.0]), jnp.array([2.0, 1.0])
        truth = mean + sd * jax.random.normal(truth_key, (2,))
        y = jnp.abs(truth[0]) + truth[1]
        y = y + jax.random.normal(noise_key, (4,))

        def density(x):
            prior = -0.5 * jnp.sum(((x - mean) / sd) ** 2)
            residual = y - jnp.abs(x[0]) - x[1]
            return prior - 0.5 * jnp.sum(residual**2)

        target = Target(density, position=jnp.array([0.1, 0.0]))
        kernel = SPEC.build_kernel()
        options = Options(num_starts=16, num_descent_steps=20, num_modes=4)
        warmup = SPEC.warmup(options)
        pilot_key, warmup_key, draw_key = jax.random.split(chain_key, 3)
        adapt = warmup.init(pilot_key, target.position, target, 100)
        state = SPEC.init(adapt.position, target)

        def tune(carry, key):
            adapt, state = carry
            state, info = kernel(key, state, target, **adapt.params)
            return (warmup.update(adapt, state, info), state), None

        keys = jax.random.split(warmup_key, 100)
        (adapt, state), _ = jax.lax.scan(tune, (adapt, state), keys)
        params = warmup.final(adapt)

        def thinned(state, key):
            def step(i, state):
                return kernel(jax.random.fold_in(key, i), state, target, **params)[0]

            state = jax.lax.fori_loop(0, 8, step, state)
            return state, state.position

        keys = jax.random.split(draw_key, NUM_RANKS)
        draws = jax.lax.scan(thinned, state, keys)[1]
        return jnp.sum(draws < truth, axis=0)

    ranks = jax.jit(jax.vmap(rank))(jax.random.split(jax.random.key(5), 1600))
    for values in np.asarray(ranks).T:
        counts = np.bincount(values, minlength=NUM_RANKS + 1)
        assert chisquare(counts).pvalue > 1e-3, counts
