"""Benchmarks import, and what they share is right. No test here looks at a clock."""

from importlib import import_module

import jax
import numpy as np
import pytest

from benchmarks import common, modes, rows
from benchmarks.multimodal import effective_draws
from benchmarks.overhead import synthetic
from benchmarks.run import NAMES
from benchmarks.tempering import ladder, parallel_tempering
from nutfree import Target, model_target
from nutfree.diagnostics.discrepancies import score_moments, scores
from nutfree.report import total_variation


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_imports_and_has_a_run(name):
    module = import_module(f"benchmarks.{name}")
    assert callable(module.run)
    assert module.__doc__.splitlines()[0].endswith(".")


def test_slope_of_a_power_law_is_its_exponent():
    sizes = np.array([1, 2, 4, 8])
    assert common.slope(sizes, 3 * sizes**1.5) == pytest.approx(1.5)


def test_fastest_takes_the_least_time_of_each_run(monkeypatch):
    times = iter([3.0, 5.0, 2.0, 7.0])
    monkeypatch.setattr(common, "seconds_of", lambda run: next(times))
    assert common.fastest({"a": None, "b": None}, 2) == {"a": 2.0, "b": 5.0}


def test_exact_mode_weights_exceed_their_floor_one_time_in_twenty():
    weights = np.array([0.5, 0.3, 0.2])
    rng = np.random.default_rng(1)
    for reference in (None, 400):
        floor = common.tv_floor(weights, 500, reference)
        sample = rng.multinomial(500, weights, size=4000) / 500
        other = weights
        if reference is not None:
            other = rng.multinomial(reference, weights, size=4000) / reference
        above = (0.5 * np.abs(sample - other).sum(1) > floor).mean()
        # both sides are simulated: the rate's sd is 0.006
        assert 0.02 < above < 0.08


def test_exact_moments_exceed_their_floor_one_time_in_twenty():
    rng, dim, size = np.random.default_rng(2), 5, 300
    floors = common.moment_floor(size, np.inf, dim)
    errors = np.array(
        [
            common.moment_errors(
                rng.normal(3, 2, size=(size, dim)), np.full(dim, 3.0), np.full(dim, 2.0)
            )
            for _ in range(2000)
        ]
    )
    above = (errors > floors).mean(0)
    # the rate's sd is 0.005; that of the sd is exact only in the limit
    assert np.all((above > 0.02) & (above < 0.09))


def test_a_chain_settles_where_its_error_stays_small():
    wave = np.tile([1.0, -1.0], 1000)[:, None]
    zero, one = np.zeros(1), np.ones(1)
    late = np.concatenate([np.full((100, 1), 3.0), wave])
    first = common.settled(late, zero, one, 0.2)
    assert common.settled(wave, zero, one, 0.2) <= 15
    # the mean is 3 / 20 at n = 2,000, but its sd is that of the mixture
    assert first is None or first > 1000
    assert common.settled(wave + 1, zero, one, 0.2) is None


def test_importance_sampling_at_the_mode_finds_a_gaussians_moments():
    mean, sd = np.array([1.0, -2.0]), np.array([0.5, 3.0])

    def logdensity(z):
        return -0.5 * (((z["x"] - mean) / sd) ** 2).sum()

    target = Target(logdensity, position={"x": np.zeros(2, np.float32)})
    found_mean, found_sd, ess = common.laplace_reference(target, 20_000)
    assert ess > 10_000
    # five standard errors of 10,000 draws
    np.testing.assert_allclose((found_mean - mean) / sd, 0, atol=0.05)
    np.testing.assert_allclose(found_sd / sd, 1, atol=0.05)


def test_labellings_are_told_apart_by_the_order_of_their_means():
    mu = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 1.0, 3.0]])
    weights = modes.galaxies(3).assign({"mu": mu}).mean(0)
    assert sorted(weights) == [0, 0, 0, 0.25, 0.25, 0.5]


KNOWN = {
    "mixture": lambda: modes.mixture(3, unequal=True),
    "eight": modes.eight_gaussians,
    "student": modes.student_mixture,
    "rings": modes.rings,
    "funnel": modes.funnel,
    "many wells": modes.many_well,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_exact_draws_fit_the_density_and_the_weights(name):
    """Up to 64 moments at |z| > 5; a total variation above twice its 95 % quantile."""
    known = KNOWN[name]()
    draws = known.exact(np.random.default_rng(0), 4000)
    target = model_target(known.model, kwargs=known.data)
    positions = {"x": draws["x"].astype(np.float32)}
    assert score_moments(draws["x"], scores(positions, target)).worst < 5
    shares = known.assign(draws)
    assert shares.sum() == pytest.approx(4000 * known.weights.sum())
    assert total_variation(shares.mean(0), known.weights) < 2 * known.tv_floor(4000)


@pytest.mark.parametrize("name", ["eight", "rings"])
def test_evidence_in_the_plane_is_that_of_a_grid(name):
    known = KNOWN[name]()
    target = model_target(known.model, kwargs=known.data)
    axis = np.arange(-14, 14, 0.02) + 0.01
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = jax.jit(jax.vmap(lambda x: target({"x": x})))(grid.astype(np.float32))
    total = np.exp(np.asarray(density, float)).sum() * 0.02**2
    assert np.log(total) == pytest.approx(known.log_evidence, abs=1e-3)


@pytest.mark.slow
def test_parallel_tempering_weighs_two_modes():
    """Five standard errors of an effective sample of a tenth of the draws."""
    known = modes.eight_gaussians()
    target = model_target(known.model, kwargs=known.data)
    found = parallel_tempering(
        target, ladder(known.spread, 2), num_warmup=500, num_samples=2000, num_chains=2
    )
    assert found.draws["x"].shape == (2, 2000, 2)
    assert np.all(found.swap_rates > 0.2)
    share = known.assign({"x": found.draws["x"].reshape(-1, 2)}).mean(0)
    assert np.abs(share - 1 / 8).max() < 5 * np.sqrt(1 / 8 * 7 / 8 / 400)


def test_a_mode_that_is_never_visited_leaves_no_effective_draws():
    rng = np.random.default_rng(0)
    parts = np.eye(3)[rng.integers(0, 2, size=(4, 500))]
    assert effective_draws(parts, np.full(3, 1 / 3)) == 0
    assert effective_draws(parts, np.array([0.5, 0.5, 0.0])) > 1000


def test_synthetic_rows_are_the_same_for_the_same_seed():
    a, b = synthetic(100, 3), synthetic(100, 3)
    np.testing.assert_array_equal(a["X"], b["X"])
    assert set(a["y"]) == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["counts", "network"])
def test_posteriors_over_many_rows_are_drawn_in_batches_and_seen_alike(name):
    data = rows.synthetic_counts(200)
    if name == "network":
        data = {"X": data["X"], "y": data["group"] % 2}
    target = model_target(getattr(rows, name), kwargs=data)
    assert target.minibatch.num_data == 200
    look = rows.unconstrained(target)
    if name == "network":
        look = rows.log_odds(data["X"][:7])
    # two draws of the model's own values become two vectors
    values = target.constrain(target.position)
    seen = np.asarray(look(jax.tree.map(lambda x: np.stack([x, x]), values)))
    assert seen.shape == (2, 7 if name == "network" else 27)
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-5)
