"""Tuning by Stein discrepancy: what it measures, what it chooses, what it spends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nutfree as nf
from nutfree.kernels.sgld import sgld
from nutfree.kernels.sgld.bandit import (
    BATCHES,
    FACTORS,
    KEPT,
    stein_squared,
)
from tests.kernels.sgld.test_sgld import (
    chains,
    gaussian_location,
    sample,
    target_of,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_the_discrepancy_is_that_of_its_kernel():
    u, dim = normal(0, 6, 3), 3
    s = normal(1, 6, 3)

    def k(x, y):
        return (1 + jnp.sum((x - y) ** 2) / (2 * dim)) ** -0.5

    def stein(x, y, sx, sy):
        trace = jnp.trace(jax.jacfwd(jax.grad(k, 1), 0)(x, y))
        return (
            sx @ sy * k(x, y) + sx @ jax.grad(k, 1)(x, y) + sy @ jax.grad(k)(x, y)
        ) + trace

    pairs = [stein(u[i], u[j], s[i], s[j]) for i in range(6) for j in range(6) if i - j]
    # of vectors that are (2d)^(1/2) times shorter
    np.testing.assert_allclose(
        stein_squared(u, s), 2 * dim * np.mean(pairs), rtol=1e-4, atol=1e-4
    )


def test_noise_of_the_scores_does_not_enter_the_discrepancy():
    u = 1.5 * normal(0, 150, 2)
    exact = float(stein_squared(u, -u))
    noise = normal(1, 400, 150, 2)
    found = jax.vmap(lambda e: stein_squared(u, e - u))(noise)
    # four standard errors of the mean, one of them a tenth of the value
    error = float(found.std()) / 20
    assert abs(float(found.mean()) - exact) < 4 * error < 0.5 * exact


@pytest.mark.parametrize("num_batches", [1, 4])
def test_the_mean_of_several_batches_has_their_law(num_batches):
    # (1 + h V/(4 m))/(1 - h/4) of the posterior's variance, V near 10
    target, y, mean, precision = gaussian_location()
    params = {
        "step_size": 0.4,
        "inverse_mass_matrix": 1 / precision,
        "num_batches": jnp.asarray(num_batches),
    }
    draws, info = chains(
        target,
        params,
        num_chains=4000,
        num_transitions=4,
        start=jnp.asarray(mean),
        batch_size=20,
        gradient="plain",
    )
    noise = 200**2 / 20 / num_batches * y.var(0) / precision
    # four relative Monte-Carlo errors of 0.022
    expected = (1 + 0.1 * noise) / 0.9
    np.testing.assert_allclose(np.var(draws, 0) * precision, expected, rtol=0.09)
    steps = float(info.num_steps[0])
    assert float(info.num_grad_evals[0]) == pytest.approx(0.1 * num_batches * steps)


BUDGET = 4096


@pytest.fixture(scope="module")
def tuned():
    """A run with its pilot, where the posterior is Gaussian whatever the batch."""
    target, _, _, precision = gaussian_location(num_data=2000)
    target = target_of(target.minibatch, jnp.zeros(2))
    options = {"tuning": "stein", "tuning_budget": BUDGET, "max_inflation": 0.2}
    return target, precision, *sample(target, num_samples=2000, **options)


def test_tuning_takes_no_arm_that_is_unstable_or_that_the_pilot_sees_to_be_wrong(tuned):
    _, precision, adapt, (draws, info) = tuned
    # the step in the middle is 0.67, and eight times that unstable
    assert 0.05 < float(adapt.params["step_size"]) < 2
    assert int(adapt.params["num_batches"]) in BATCHES
    # a Gaussian's law is what is predicted: 1,500 effective draws, 4 errors of 0.037
    ratio = np.var(np.asarray(draws), 0) * precision
    np.testing.assert_allclose(ratio, 1 + float(info.predicted_inflation[0]), rtol=0.15)


def test_tuning_spends_its_budget_and_counts_it(tuned):
    target, _, adapt, _ = tuned
    init = sgld.warmup().init
    before = jax.jit(lambda key: init(key, target.position, target, 0).num_grad_evals)
    rounds, arms = 4, len(FACTORS) * len(BATCHES)
    assert arms == 2**rounds
    # batches of 100 of 2,000 rows, each at two places
    key = jax.random.split(jax.random.key(0))[0]
    batches = (float(adapt.num_grad_evals) - float(before(key))) / 0.1
    scores = KEPT * sum(arms >> i for i in range(rounds))
    assert batches == pytest.approx(BUDGET + scores, rel=1e-3)


@pytest.mark.slow
def test_noisy_gradients_get_more_batches_or_smaller_steps():
    # one row of 2,000: V is 2,000, and and a step of 0.002 would do
    target, *_ = gaussian_location(num_data=2000)
    target = target_of(target.minibatch, jnp.zeros(2))
    adapt, _ = sample(
        target,
        num_samples=1,
        tuning="stein",
        gradient="plain",
        batch_size=1,
        max_inflation=1.0,
    )
    noise = float(jnp.max(adapt.params["gradient_noise"]))
    # of the sixteen arms, four would have variances of more than five times too much
    assert float(adapt.params["step_size"]) * noise / 4 < 5
    assert noise * int(adapt.params["num_batches"]) == pytest.approx(2000, rel=0.5)


def test_estimators_with_a_memory_are_refused():
    with pytest.raises(nf.InvalidOption, match="svrg"):
        nf.kernel("sgld", lambda: None, gradient="svrg", tuning="stein")
