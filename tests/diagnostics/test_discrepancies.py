"""What each discrepancy sees, and how often it cries wolf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats

from nutfree.diagnostics.discrepancies import (
    entropic_w2,
    find_modes,
    kernel_stein_discrepancy,
    mode_weights,
    score_moments,
    total_variation,
)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def gaussian(x):
    return -0.5 * jnp.sum(x**2)


@pytest.mark.slow
def test_exact_draws_stay_below_the_floor_nineteen_times_in_twenty():
    # 100 repeats at 5 %: more than 12 exceedances has probability 0.1 %
    ratios = [
        kernel_stein_discrepancy(x, -x, num_bootstrap=200, seed=seed).ratio
        for seed in range(100)
        for x in [normal(seed, 200, 3)]
    ]
    assert sum(ratio > 1 for ratio in ratios) <= 12


@pytest.mark.parametrize("dim", [1, 5, 20])
@pytest.mark.parametrize(
    "spoil", [lambda x: x + 0.3, lambda x: 1.25 * x, lambda x: 0.8 * x]
)
def test_shifted_inflated_and_shrunken_draws_rise_above_the_floor(dim, spoil):
    assert kernel_stein_discrepancy(spoil(normal(1, 1000, dim)), gaussian).ratio > 1.1


def test_score_moments_of_exact_draws_are_within_their_errors():
    # 200 repeats of 40 moments at |z| > 5: t tails of 200 draws give 1 % in all
    worst = [
        score_moments(x, -x).worst for s in range(200) for x in [normal(s, 200, 20)]
    ]
    assert max(worst) < 5


@pytest.mark.parametrize("dim", [1, 20, 200])
@pytest.mark.parametrize(
    "spoil", [lambda x: x + 0.3, lambda x: 1.25 * x, lambda x: 0.8 * x]
)
def test_score_moments_see_location_and_scale_in_any_dimension(dim, spoil):
    x = normal(2, 1000, dim)
    x[:, 0] = spoil(x[:, 0])
    found = score_moments(x, -x)
    assert max(abs(found.location[0]), abs(found.scale[0])) > 5
    others = np.abs(np.concatenate([found.location[1:], found.scale[1:]]))
    assert others.max(initial=0) < 5


def test_score_moments_know_correlated_coordinates_and_units():
    root = np.tril(normal(0, 5, 5)) * np.logspace(-3, 3, 5)[:, None]
    z = normal(3, 1000, 5)
    x, s = z @ root.T, -z @ np.linalg.inv(root)
    assert score_moments(x, s).worst < 5 < score_moments(1.25 * x, 1.25 * s).worst


def test_units_do_not_matter():
    x = normal(0, 300, 2) + 0.2
    scale = np.array([1e-3, 1e4])
    ours = kernel_stein_discrepancy(x, -x)
    theirs = kernel_stein_discrepancy(x * scale, -x / scale)
    assert theirs.ksd == pytest.approx(ours.ksd, rel=1e-8)


def test_scores_from_a_density_equal_scores_given():
    x = normal(0, 150, 3).astype(np.float32)
    ours = kernel_stein_discrepancy(x, gaussian)
    assert ours.ksd == pytest.approx(kernel_stein_discrepancy(x, -x).ksd, rel=1e-5)


def test_blocks_do_not_change_the_result():
    x = normal(0, 300, 2)
    whole = kernel_stein_discrepancy(x, -x, block=1000)
    parts = kernel_stein_discrepancy(x, -x, block=7)
    assert parts == pytest.approx(whole)


def test_draws_that_are_not_finite_are_left_out_and_counted():
    x = normal(0, 200, 2)
    x[:3] = np.inf
    found = kernel_stein_discrepancy(x, -x)
    assert (found.num_draws, found.num_dropped) == (197, 3)
    assert np.isfinite(found.ksd)
    assert np.isnan(kernel_stein_discrepancy(x[:4], -x[:4]).ksd)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="differ in shape"):
        kernel_stein_discrepancy(np.zeros((5, 2)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        kernel_stein_discrepancy(np.zeros(5), np.zeros(5))


@pytest.mark.parametrize("dim", [2, 10, 50])
def test_one_gaussian_is_one_mode(dim):
    assert find_modes(normal(dim, 2000, dim)).max() == 0


@pytest.mark.parametrize("dim", [2, 10, 50])
def test_two_gaussians_are_two_modes_whatever_the_units(dim):
    x = normal(dim, 2000, dim)
    x[:600, 0] += 8.0
    labels = find_modes(x * np.logspace(-3, 3, dim))
    assert np.bincount(labels).tolist() == pytest.approx([1400, 600], abs=3)


def test_forty_modes_of_a_mixture_in_ten_dimensions():
    rng = np.random.default_rng(0)
    which = rng.integers(40, size=4000)
    draws = rng.uniform(-40, 40, size=(40, 10))[which] + rng.normal(size=(4000, 10))
    labels = find_modes(draws)
    assert len(np.unique(labels)) == 40
    assert len(set(zip(which.tolist(), labels.tolist()))) == 40


def test_a_funnel_is_one_mode():
    x = normal(1, 3000, 10)
    x[:, 1:] *= np.exp(1.5 * x[:, :1])
    assert find_modes(x).max() == 0


def modes_by_chain(shares, num=500, dim=2):
    rng = np.random.default_rng(3)
    draws = rng.normal(size=(len(shares), num, dim))
    for chain, share in enumerate(shares):
        draws[chain, :, 0] += 10.0 * (rng.uniform(size=num) < share)
    return draws


def test_exact_chains_agree_on_the_weights():
    found = mode_weights(modes_by_chain([0.3] * 4))
    assert found.weights.shape == (4, 2)
    assert found.agree


def test_stuck_chains_are_flagged_though_each_looks_perfect_alone():
    draws = modes_by_chain([0.0, 1.0, 1.0, 0.0])
    found = mode_weights(draws)
    assert found.tv == pytest.approx(1.0)
    assert not found.agree
    for chain in draws:
        assert array_stats.rhat(chain[:, 0].reshape(2, -1)) < 1.02


def test_unequal_weights_are_flagged_before_rhat_is():
    draws = modes_by_chain([0.4, 0.5, 0.4, 0.4], num=2000)
    assert array_stats.rhat(draws[..., 0]) < 1.01
    assert not mode_weights(draws).agree


def test_rare_switches_widen_the_floor():
    # every chain switches ten times: 500 draws are worth about ten labels
    rng = np.random.default_rng(0)
    side = np.repeat(rng.integers(2, size=(4, 10)), 50, axis=1)
    draws = normal(0, 4, 500, 1) + 10.0 * side[..., None]
    assert mode_weights(draws).effective_sizes.max() < 60
    assert mode_weights(draws).floor > 0.2


def test_one_chain_agrees_with_itself():
    found = mode_weights(modes_by_chain([0.5]))
    assert (found.tv, found.floor) == (0.0, 0.0)


@pytest.mark.slow
def test_total_variation_and_transport():
    assert total_variation([1, 0], [0, 1]) == 1.0
    x = normal(0, 200, 2)
    assert entropic_w2(x, x) == pytest.approx(0.0, abs=1e-3)
    assert entropic_w2(x, x + 1.0) == pytest.approx(np.sqrt(2.0), rel=1e-3)


def test_scores_are_those_of_a_pytree_density():
    from nutfree.diagnostics.discrepancies import scores

    draws = {"a": normal(0, 5), "b": normal(1, 5, 2)}
    found = scores(draws, lambda z: -0.5 * (z["a"] ** 2 + jnp.sum(z["b"] ** 2)))
    np.testing.assert_allclose(found[:, 0], -draws["a"], rtol=1e-5)
    assert found.shape == (5, 3)
    assert jax.numpy.isfinite(found).all()


@pytest.mark.slow
def test_tails_and_bent_modes_make_no_modes_of_their_own():
    for seed in range(5):
        two = normal(seed, 1600, 1)
        two[:900] += 16.0
        assert find_modes(two).max() == 1
        bent = normal(seed, 4000, 2)
        bent[:, 1] = 0.1 * bent[:, 1] + bent[:, 0] ** 2
        # a far tail may come loose; it holds next to nothing
        assert np.bincount(find_modes(bent))[0] > 0.97 * len(bent)
