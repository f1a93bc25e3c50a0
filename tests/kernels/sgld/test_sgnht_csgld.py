"""The thermostat and the cycles, where their laws are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree import registry
from nutfree.kernels.sgld.csgld import DYNAMICS as CYCLE
from nutfree.kernels.sgld.sgbaoab import DYNAMICS as BAOAB
from nutfree.minibatch.gradients import control_at
from nutfree.target import Minibatch, Target
from tests.kernels.sgld.test_stochastic import (
    MEAN,
    SCALE,
    A,
    B,
    N,
    check,
    langevin,
    one_dimensional,
    recursion,
    rows_of_slopes,
    whitened_ends,
    with_snapshot,
    with_table,
)
from tests.recursions import Recursion, stationary

sgld, csgld, sgnht = map(registry.get, ("sgld", "csgld", "sgnht"))


def location(num_data, dim, seed=0):
    """Rows N(x, 1) with a flat prior: target, posterior mean, and noise of one row."""
    y = np.random.default_rng(seed).normal(size=(num_data, dim))
    rows = jnp.asarray(y)

    def terms(x, indices):
        return 0.0 * x[0], -0.5 * jnp.sum((rows[indices] - x) ** 2, axis=1)

    minibatch = Minibatch(num_data, terms)
    target = Target(
        lambda x: minibatch.logdensity(x, jnp.arange(num_data)), minibatch=minibatch
    )
    return target, y.mean(0), num_data * y.var(0)


def run(spec, target, mean, num_data, keys, num_transitions, static, params):
    """The last states of many chains, in units of the posterior's sd."""
    options = spec.options(**{"gradient": "plain", **static})
    kernel = spec.build_kernel(options)

    def one(key):
        start = jnp.asarray(mean)
        state = spec.init(start, target, key, options)

        def body(state, key):
            return kernel(
                key, state, target, inverse_mass_matrix=1 / num_data, **params
            )

        keys = jax.random.split(key, num_transitions)
        state, info = jax.lax.scan(body, state, keys)
        return state, jax.tree.map(lambda a: a[-1], info)

    state, info = jax.jit(jax.vmap(one))(keys)
    return (np.asarray(state.position) - mean) * num_data**0.5, state, info


@pytest.mark.slow
def test_the_thermostat_takes_up_noise_that_is_alike_in_every_coordinate():
    # V = 10 in units of the posterior: BAOAB at friction 2 and h = 0.2 has variances of
    # 1.5; the thermostat's friction is A + hV/2 = 3
    num_data, dim = 100, 60
    target, mean, noise = location(num_data, dim)
    keys = jax.random.split(jax.random.key(0), 200)
    static, params = {"batch_size": 10}, {"step_size": 0.2, "num_steps": 200}
    u, state, _ = run(sgnht, target, mean, num_data, keys, 2, static, params)
    # of 12,000 draws: Monte-Carlo error 0.013, and order h^2 of bias
    assert np.mean(u**2) == pytest.approx(1.0, abs=0.05)
    v = np.mean(noise) / 10
    assert BAOAB.inflation(jnp.asarray(0.2), v, 1.0, 1, **BAOAB.settings) > 0.4
    friction = 2 + 0.5 * 0.2 * np.mean(noise) / 10
    assert jnp.mean(state.auxiliary.xi) == pytest.approx(friction, rel=0.08)


each_estimator = pytest.mark.parametrize(
    "gradient",
    [
        "control_variate",
        pytest.param("svrg", marks=pytest.mark.slow),
        pytest.param("saga", marks=pytest.mark.slow),
    ],
)


@pytest.mark.slow
@each_estimator
def test_estimators_with_a_memory_leave_the_thermostat_nothing_to_take_up(gradient):
    # rows whose gradients differ by constants: the estimate is exact
    num_data, dim = 100, 60
    target, mean, _ = location(num_data, dim)
    keys = jax.random.split(jax.random.key(5), 200)
    static = {"batch_size": 10, "gradient": gradient}
    params = {"step_size": 0.2, "num_steps": 200}
    if gradient == "control_variate":
        centre = jnp.asarray(mean) + 0.1
        params["control"], _ = control_at(target.minibatch, centre, 0.0)
    u, state, _ = run(sgnht, target, mean, num_data, keys, 2, static, params)
    assert np.mean(u**2) == pytest.approx(1.0, abs=0.05)
    # friction A itself, where noise of plain gradients makes it 3
    assert jnp.mean(state.auxiliary.xi) == pytest.approx(2.0, rel=0.08)


@each_estimator
def test_a_cycle_has_the_law_of_its_recursion_with_each_estimator(gradient):
    target, step_size, num_steps = rows_of_slopes(), 0.4, 30
    params = {"step_size": step_size, "num_steps": num_steps}
    static, transitions = {"gradient": gradient}, 4 if gradient == "saga" else 2
    if gradient == "svrg":
        static["refresh_every"] = num_steps
    # a centre one sd from the mode
    centre = MEAN + SCALE
    if gradient == "control_variate":
        control, _ = control_at(target.minibatch, jnp.asarray([centre]), 0.0)
        params["control"] = control
    u = whitened_ends(target, "csgld", params, num_transitions=transitions, **static)
    full = A.sum() - B.sum() * centre
    at_zero, slopes = SCALE * (full + N * B * centre), SCALE**2 * (1 + N * B)
    cycle = []
    for k in range(num_steps):
        h = 0.5 * step_size * (np.cos(np.pi * k / num_steps) + 1)
        if gradient == "svrg":
            steps, refresh = with_snapshot(langevin, h)
            cycle += [refresh] * (k == 0)
        elif gradient == "saga":
            steps = with_table(langevin, h)
        else:
            steps = recursion(langevin, h, at_zero, slopes)
        cycle.append(steps._replace(noise=steps.noise * (k >= num_steps / 2)))
    check(u, stationary(cycle))


@pytest.mark.slow
def test_thermostat_bias_without_noise_falls_with_the_square_of_the_step():
    # so small that it is not seen: zero within 4 errors of 0.007 at h = 0.25 and d = 60
    num_data, dim = 50, 60
    target, mean, _ = location(num_data, dim)
    keys = jax.random.split(jax.random.key(1), 700)
    params = {"step_size": 0.25, "num_steps": 100}
    static = {"batch_size": num_data}
    u, *_ = run(sgnht, target, mean, num_data, keys, 1, static, params)
    assert np.mean(u**2) == pytest.approx(1.0, abs=0.028)


def test_a_thermostat_in_one_dimension_stays_bounded():
    target, mean, _ = location(20, 1)
    keys = jax.random.split(jax.random.key(2), 500)
    params = {"step_size": 0.25, "num_steps": 2000}
    u, *_ = run(sgnht, target, mean, 20, keys, 1, {"batch_size": 20}, params)
    assert np.mean(u**2) == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("batch_size", [100, pytest.param(20, marks=pytest.mark.slow)])
def test_a_cycle_ends_in_the_law_of_its_recursion(batch_size):
    num_data, step_size, num_steps = 100, 0.8, 40
    target, mean, one_row = location(num_data, 1)
    noise = 0.0 if batch_size == num_data else one_row[0] / batch_size
    params = {
        "step_size": step_size,
        "num_steps": num_steps,
        "gradient_noise": noise,
    }
    keys = jax.random.split(jax.random.key(3), 20_000)
    static = {"batch_size": batch_size}
    # the position lags one step behind, of a size that is nearly zero
    u, _, info = run(csgld, target, mean, num_data, keys, 1, static, params)
    spread = np.sqrt(noise) * np.array([[-1.0], [1.0]])
    cycle = []
    for k in range(num_steps):
        h = 0.5 * step_size * (np.cos(np.pi * k / num_steps) + 1)
        heat = h if k >= num_steps / 2 else 0.0
        maps = np.full((2, 1, 1), 1 - 0.5 * h)
        cycle.append(Recursion(maps, 0.5 * h * spread, np.full((1, 1), heat)))
    expected = stationary(cycle)[1][0, 0]
    # four Monte-Carlo errors of 0.01
    assert np.var(u) == pytest.approx(expected, rel=0.04)
    np.testing.assert_allclose(info.predicted_inflation[0], expected - 1, atol=1e-3)


def test_longer_cycles_have_less_bias():
    settings = CYCLE.settings
    errors = [
        abs(float(CYCLE.inflation(jnp.asarray(1.0), 0.5, 1.0, k, **settings)))
        for k in (128, 512, 2048)
    ]
    # the heat of the last unit of time: as K^(-2/3), by 2.5 each
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_hot_cycles_visit_modes_that_constant_steps_do_not():
    # modes at -2 and 2 of sd 1/4, with a barrier of 8 between them
    target = one_dimensional(lambda x: 0.5 * (x**2 - 4) ** 2)
    keys = jax.random.split(jax.random.key(4), 400)

    def ends(spec, **params):
        kernel = spec.build_kernel(spec.options(batch_size=2, gradient="plain"))

        def one(key):
            state = spec.init(jnp.full(1, 2.0), target, key)
            state, _ = kernel(key, state, target, inverse_mass_matrix=1 / 16, **params)
            return state.position[0]

        return np.asarray(jax.jit(jax.vmap(one))(keys))

    cycles = ends(csgld, step_size=0.2, num_steps=800, temperature=10.0)
    constant = ends(sgld, step_size=0.2, num_steps=400)
    assert np.mean(constant < 0) < 0.02
    # binomial error 0.025
    assert np.mean(cycles < 0) == pytest.approx(0.5, abs=0.1)
    # and ends inside of one, within four of its sds
    assert np.mean(np.abs(np.abs(cycles) - 2) < 1) > 0.98
