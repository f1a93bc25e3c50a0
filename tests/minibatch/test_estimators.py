"""Gradient estimators: unbiased whatever they remember, at the cost they state."""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

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


MINIBATCH = logistic(SIZE, 3)[0]
X, PAST = jnp.array([0.1, -0.4, 0.9]), jnp.array([0.3, 0.0, 0.5])


class Behaviour(NamedTuple):
    """What an estimator does after it was used at a past position.

    every_row
        Its estimates from each row alone, `(SIZE, 3)`.
    importance, distinct
        Estimates from rows drawn by importance and without replacement, `(n, 3)`.
    near
        Estimates near the past position, `(n, 3)`.
    """

    every_row: jax.Array
    importance: jax.Array
    distinct: jax.Array
    near: jax.Array


@cache
def behaviour(name):
    one = estimator(name, refresh_every=100)
    shares = row_shares(jnp.linspace(0.1, 2.0, SIZE))

    @jax.jit
    def run():
        control, _ = control_at(MINIBATCH, PAST, 0.0)
        rows = draw_rows(jax.random.key(3), SIZE, 5)
        memory = one.start(MINIBATCH, PAST)
        _, memory, _ = one.gradient(MINIBATCH, rows, PAST, control, memory, 0.0)

        def estimates(x, draw, keys):
            def estimate(key):
                return one.gradient(MINIBATCH, draw(key), x, control, memory, 0.0)[0]

            return jax.vmap(estimate)(keys)

        keys = jax.random.split(jax.random.key(0), 20_000)
        return Behaviour(
            estimates(
                X,
                lambda i: Rows(i[None], jnp.full(1, float(SIZE))),
                jnp.arange(SIZE),
            ),
            estimates(X, lambda key: draw_by_shares(key, shares, 6), keys),
            estimates(X, lambda key: draw_rows(key, SIZE, 6, replacement=False), keys),
            estimates(PAST + 0.01, lambda key: draw_rows(key, SIZE, 6), keys[:500]),
        )

    return run()


@pytest.fixture(scope="module")
def full_gradient():
    return jax.jit(jax.grad(MINIBATCH.logdensity))(X, jnp.arange(SIZE))


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_mean_over_all_batches_is_the_full_gradient(name, full_gradient):
    # to rounding: batches of one row each
    mean = np.mean(behaviour(name).every_row, axis=0)
    np.testing.assert_allclose(mean, full_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("how", ["importance", "distinct"])
def test_other_ways_to_draw_rows_are_unbiased_too(name, how, full_gradient):
    draws = np.asarray(getattr(behaviour(name), how), float)
    # three coordinates: 2e-4 false alarms at four errors
    error = draws.std(0) / 20_000**0.5
    assert np.all(np.abs(draws.mean(0) - full_gradient) < 4 * error + 1e-4)


@pytest.mark.parametrize("name", WANDERING)
def test_near_the_remembered_position_there_is_hardly_any_noise(name):
    noise, usual = (np.var(behaviour(n).near, axis=0) for n in (name, "plain"))
    assert np.all(noise < 1e-3 * usual)


def jitted(one, minibatch):
    return jax.jit(
        lambda rows, x, memory, count: one.gradient(
            minibatch, rows, x, (), memory, count
        )
    )


def test_svrg_takes_its_centre_every_so_many_steps_and_counts_it():
    one = estimator("svrg", refresh_every=3)
    memory, count = one.start(MINIBATCH, jnp.zeros(3)), jnp.asarray(0.0)
    step = jitted(one, MINIBATCH)
    counts, centres = [], []
    for i in range(7):
        rows = draw_rows(jax.random.key(i), SIZE, 6)
        _, memory, count = step(rows, jnp.full(3, 0.1 * i), memory, count)
        counts.append(float(count))
        centres.append(float(memory.control.centre[0]))
    spent = np.diff([0.0, *counts])
    np.testing.assert_allclose(spent, [1.2, 0.2, 0.2] * 2 + [1.2], rtol=1e-5)
    assert one.cost(6, SIZE) == pytest.approx(np.mean(spent[:6]), rel=1e-5)
    np.testing.assert_allclose(centres, [0, 0, 0, 0.3, 0.3, 0.3, 0.6], rtol=1e-6)


def test_saga_keeps_the_sum_of_its_table():
    one = estimator("saga")
    memory, count = one.start(MINIBATCH, jnp.zeros(3)), jnp.asarray(0.0)
    step = jitted(one, MINIBATCH)
    for i in range(20):
        # repeated rows among them
        rows = draw_rows(jax.random.key(i), SIZE, 30)
        _, memory, count = step(rows, jnp.sin(jnp.arange(3.0) + i), memory, count)
    total = np.asarray(memory.gradients, float).sum(0)
    np.testing.assert_allclose(memory.total + memory.lost, total, atol=1e-4)
    # one pass to fill the table, then 30 rows and one for the prior
    assert one.cost(30, SIZE) == pytest.approx(31 / 60)
    np.testing.assert_allclose(count, 1 + 20 * 31 / 60, rtol=1e-5)


def test_saga_fills_tables_that_are_not_whole_blocks(monkeypatch):
    monkeypatch.setattr("nutfree.minibatch.estimators.TABLE_BLOCK", 7)
    minibatch, *_ = logistic(25, 2)
    one, x = estimator("saga"), jnp.array([0.2, -0.1])
    rows = draw_rows(jax.random.key(0), 25, 4)
    gradient, memory, _ = jitted(one, minibatch)(
        rows, x, one.start(minibatch, x), jnp.asarray(0.0)
    )
    expected = jax.jit(jax.grad(minibatch.logdensity))(x, jnp.arange(25))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(memory.gradients.sum(0), memory.total, rtol=1e-5)


def test_a_table_that_would_not_fit_is_refused_with_what_to_write_instead():
    minibatch = Minibatch(10**7, lambda x, i: (0.0 * x[0], x[0] * i))
    target = Target(lambda x: x[0], position=jnp.zeros(5), minibatch=minibatch)
    kernel = nf.kernel("sgld", target, gradient="saga")
    with pytest.raises(nf.InvalidOption, match="svrg"):
        kernel.spec.init(jnp.zeros(5), target, options=kernel.algorithm.options)


def test_rows_that_change_their_numbers_cannot_be_remembered():
    moving = replace(MINIBATCH, in_order=InOrder(20, MINIBATCH.terms))
    with pytest.raises(nf.MissingCapability, match="svrg"):
        estimator("saga").start(moving, jnp.zeros(3))
