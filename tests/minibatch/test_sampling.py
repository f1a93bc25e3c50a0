import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nutfree as nf
from nutfree.minibatch.sampling import (
    distinct_rows,
    draw_by_shares,
    draw_rows,
    even_shares,
    is_first,
    row_shares,
)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("batch_size", [10, 100, 200])
def test_rows_are_drawn_from_all_of_them(batch_size, replacement):
    rows = draw_rows(jax.random.key(0), 100, batch_size, replacement)
    assert rows.indices.shape == rows.weights.shape == (min(batch_size, 100),)
    assert int(rows.indices.min()) >= 0
    assert int(rows.indices.max()) < 100
    np.testing.assert_allclose(rows.weights.sum(), 100, rtol=1e-5)
    if batch_size >= 100 or not replacement:
        assert len(set(rows.indices.tolist())) == min(batch_size, 100)


@pytest.mark.parametrize(("num_data", "batch_size"), [(12, 5), (5000, 600), (2**20, 9)])
def test_distinct_rows_are_distinct_and_within_the_data(num_data, batch_size):
    draw = jax.jit(jax.vmap(lambda key: distinct_rows(key, num_data, batch_size)))
    for indices in np.asarray(draw(jax.random.split(jax.random.key(0), 20))):
        assert len(set(indices.tolist())) == batch_size
        assert 0 <= indices.min() < indices.max() < num_data


def test_distinct_rows_have_the_variance_of_draws_without_replacement():
    # beyond the permuted sizes: f(i) = i in units of its sd, N = 5000, n = 1000
    num_data, batch_size, draws = 5000, 1000, 2000
    f = np.arange(num_data) - (num_data - 1) / 2
    f /= f.std()
    values = jnp.asarray(f)

    def total(key):
        rows = draw_rows(key, num_data, batch_size, replacement=False)
        return jnp.sum(rows.weights * values[rows.indices])

    totals = jax.jit(jax.vmap(total))(jax.random.split(jax.random.key(1), draws))
    expected = num_data**2 / batch_size * (num_data - batch_size) / (num_data - 1)
    # four Monte-Carlo errors, sqrt(2/2000) = 0.032 relative: 1e-4 false alarms; with
    # replacement the variance would be 25 % more
    np.testing.assert_allclose(np.var(totals), expected, rtol=0.126)
    assert abs(np.mean(totals)) < 4 * (expected / draws) ** 0.5


@pytest.mark.parametrize("num_data", [1, 7, 1000])
def test_importance_weights_are_the_inverse_of_the_probabilities(num_data):
    importance = np.random.default_rng(0).gamma(0.5, size=num_data)
    shares = jax.jit(row_shares)(jnp.asarray(importance))
    probabilities = np.asarray(shares.entries) / len(shares.table)
    # as asked for, to within an entry of the table or two
    asked = 0.9 * importance / importance.sum() + 0.1 / num_data
    assert (
        np.max(np.abs(probabilities - asked)) < 3 / len(shares.table) + 2e-3 / num_data
    )
    draw = jax.jit(draw_by_shares, static_argnums=2)
    rows = draw(jax.random.key(0), shares, 200_000)
    assert 0 <= int(rows.indices.min()) <= int(rows.indices.max()) < num_data
    expected = 1 / (200_000 * probabilities[np.asarray(rows.indices)])
    np.testing.assert_allclose(rows.weights, expected, rtol=1e-6)
    # binomial counts of 1,000 rows within five standard errors: 6e-4 false alarms
    counts = np.bincount(rows.indices, minlength=num_data)
    sd = np.sqrt(200_000 * probabilities * (1 - probabilities)) + 1e-9
    assert np.max(np.abs(counts - 200_000 * probabilities) / sd) < 5


def test_a_million_probabilities_are_those_of_the_table():
    importance = jnp.asarray(np.random.default_rng(0).gamma(1.0, size=10**6))
    shares = jax.jit(row_shares)(importance)
    assert np.asarray(shares.entries).sum() == len(shares.table)
    held = np.bincount(shares.table, minlength=10**6)
    np.testing.assert_array_equal(held, shares.entries)
    assert int(shares.entries.min()) >= 1
    share = np.asarray(importance, float) / np.asarray(importance, float).sum()
    correlation = np.corrcoef(share, shares.entries)[0, 1]
    assert correlation > 0.98


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("num_data", [1, 7, 1000, 5000])
def test_even_and_uneven_tables_can_take_each_others_place(num_data, x64):
    with jax.enable_x64(x64):
        uneven = jax.eval_shape(row_shares, jnp.arange(1.0, num_data + 1))
        even = jax.eval_shape(lambda: even_shares(num_data))
        for one, other in zip(uneven, even, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_importance_that_is_not_finite_falls_back_to_even_draws():
    shares = jax.jit(row_shares)(jnp.full(50, jnp.nan))
    rows = draw_by_shares(jax.random.key(0), shares, 10)
    np.testing.assert_allclose(rows.weights, 5.0, rtol=1e-6)


def test_repeated_rows_are_known():
    indices = jnp.asarray([3, 1, 3, 0, 1, 1])
    assert is_first(indices).tolist() == [True, True, False, True, False, False]


def test_importance_without_replacement_is_refused():
    target = nf.Target(lambda x: x, minibatch=nf.target.Minibatch(3, lambda x, i: x))
    with pytest.raises(nf.InvalidOption, match="replacement"):
        nf.kernel("sgld", target, sampling="importance", replacement=False)
