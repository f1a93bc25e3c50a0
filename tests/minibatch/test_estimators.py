from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nutfree as nf
from nutfree.minibatch.estimators import GRADIENTS, WANDERING, estimator
from nutfree.minibatch.gradients import control_at
from nutfree.minibatch.sampling import (
    Rows,
    draw_by_shares,
    draw_rows,
    row_shares,
)
from nutfree.target import InOrder, Minibatch, Target
from tests.minibatch.test_gradients import logistic

SIZE = 60


@pytest.fixture(scope="module")
def rows_of_logistic():
    return logistic(SIZE, 3)[0]


def remembered(name, minibatch, past, control, **options):
    """An estimator and its memory after it was used at a past position."""
    one = estimator(name, **options)
    memory = one.start(minibatch, past)
    rows = draw_rows(jax.random.key(3), SIZE, 5)
    _, memory, _ = one.gradient(minibatch, rows, past, control, memory, 0.0)
    return one, memory


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_mean_over_all_batches_is_the_full_gradient(name, rows_of_logistic):
    # to rounding: batches of one row each
    minibatch = rows_of_logistic
    x, past = jnp.array([0.1, -0.4, 0.9]), jnp.array([0.3, 0.0, 0.5])
    control, _ = control_at(minibatch, past, 0.0)
    one, memory = remembered(name, minibatch, past, control, refresh_every=100)

    def estimate(i):
        rows = Rows(i[None], jnp.full(1, float(SIZE)))
        return one.gradient(minibatch, rows, x, control, memory, 0.0)[0]

    mean = jnp.mean(jax.vmap(estimate)(jnp.arange(SIZE)), axis=0)
    expected = jax.grad(minibatch.logdensity)(x, jnp.arange(SIZE))
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("how", ["importance", "without replacement"])
def test_other_ways_to_draw_rows_are_unbiased_too(name, how, rows_of_logistic):
    minibatch = rows_of_logistic
    x, past = jnp.array([0.1, -0.4, 0.9]), jnp.array([0.3, 0.0, 0.5])
    control, _ = control_at(minibatch, past, 0.0)
    one, memory = remembered(name, minibatch, past, control, refresh_every=100)
    shares = row_shares(jnp.linspace(0.1, 2.0, SIZE))

    def estimate(key):
        if how == "importance":
            rows = draw_by_shares(key, shares, 6)
        else:
            rows = draw_rows(key, SIZE, 6, replacement=False)
        return one.gradient(minibatch, rows, x, control, memory, 0.0)[0]

    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = np.asarray(jax.jit(jax.vmap(estimate))(keys), float)
    expected = jax.grad(minibatch.logdensity)(x, jnp.arange(SIZE))
    # three coordinates: 2e-4 false alarms at four errors
    error = draws.std(0) / 20_000**0.5
    assert np.all(np.abs(draws.mean(0) - expected) < 4 * error + 1e-4)


@pytest.mark.parametrize("name", WANDERING)
def test_near_the_remembered_position_there_is_hardly_any_noise(name, rows_of_logistic):
    minibatch = rows_of_logistic
    past = jnp.array([0.3, 0.0, 0.5])
    one, memory = remembered(name, minibatch, past, (), refresh_every=100)
    x = past + 0.01

    def noise(one, memory):
        def estimate(key):
            rows = draw_rows(key, SIZE, 6)
            return one.gradient(minibatch, rows, x, (), memory, 0.0)[0]

        return jnp.var(jax.vmap(estimate)(jax.random.split(jax.random.key(0), 500)), 0)

    assert jnp.all(noise(one, memory) < 1e-3 * noise(estimator("plain"), ()))


def test_svrg_takes_its_centre_every_so_many_steps_and_counts_it(rows_of_logistic):
    one = estimator("svrg", refresh_every=3)
    memory, count = one.start(rows_of_logistic, jnp.zeros(3)), 0.0
    counts, centres = [], []
    for i in range(7):
        rows = draw_rows(jax.random.key(i), SIZE, 6)
        x = jnp.full(3, 0.1 * i)
        _, memory, count = one.gradient(rows_of_logistic, rows, x, (), memory, count)
        counts.append(float(count))
        centres.append(float(memory.control.centre[0]))
    np.testing.assert_allclose(
        np.diff([0.0, *counts]), [1.2, 0.2, 0.2] * 2 + [1.2], rtol=1e-5
    )
    np.testing.assert_allclose(centres, [0, 0, 0, 0.3, 0.3, 0.3, 0.6], rtol=1e-6)


def test_saga_keeps_the_sum_of_its_table(rows_of_logistic):
    one = estimator("saga")
    memory, count = one.start(rows_of_logistic, jnp.zeros(3)), 0.0
    for i in range(20):
        # repeated rows among them
        rows = draw_rows(jax.random.key(i), SIZE, 30)
        x = jnp.sin(jnp.arange(3.0) + i)
        _, memory, count = one.gradient(rows_of_logistic, rows, x, (), memory, count)
    total = np.asarray(memory.gradients, float).sum(0)
    np.testing.assert_allclose(memory.total + memory.lost, total, atol=1e-4)
    # one pass to fill the table, then 30 rows and one for the prior
    np.testing.assert_allclose(count, 1 + 20 * 31 / 60, rtol=1e-5)


def test_saga_fills_tables_that_are_not_whole_blocks(monkeypatch):
    monkeypatch.setattr("nutfree.minibatch.estimators.TABLE_BLOCK", 7)
    minibatch, *_ = logistic(25, 2)
    one, x = estimator("saga"), jnp.array([0.2, -0.1])
    rows = draw_rows(jax.random.key(0), 25, 4)
    gradient, memory, _ = one.gradient(
        minibatch, rows, x, (), one.start(minibatch, x), 0.0
    )
    expected = jax.grad(minibatch.logdensity)(x, jnp.arange(25))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(memory.gradients.sum(0), memory.total, rtol=1e-5)


def test_a_table_that_would_not_fit_is_refused_with_what_to_write_instead():
    minibatch = Minibatch(10**7, lambda x, i: (0.0 * x[0], x[0] * i))
    target = Target(lambda x: x[0], position=jnp.zeros(5), minibatch=minibatch)
    kernel = nf.kernel("sgld", target, gradient="saga")
    with pytest.raises(nf.InvalidOption, match="svrg"):
        kernel.spec.init(jnp.zeros(5), target, options=kernel.algorithm.options)


def test_rows_that_change_their_numbers_cannot_be_remembered(rows_of_logistic):
    ordered = InOrder(20, rows_of_logistic.terms)
    moving = replace(rows_of_logistic, in_order=ordered)
    with pytest.raises(nf.MissingCapability, match="svrg"):
        estimator("saga").start(moving, jnp.zeros(3))
