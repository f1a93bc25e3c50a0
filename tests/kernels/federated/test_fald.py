"""Federated averaging: laws that are known, at any K and participation."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree

import nutfree as nf
from nutfree.hosts import chain
from nutfree.kernels.federated.federation import (
    ARRIVED,
    BROKEN,
    WENT_BACK,
    Answer,
    Chain,
    Visit,
    add_answer,
    no_answers,
    server_step,
)
from nutfree.kernels.federated.owners import Owners
from nutfree.kernels.federated.rounds import participants, scheme_of
from nutfree.registry import specs
from nutfree.target import Target
from tests.kernels.federated.owners import (
    gaussian_owners,
    label_split_owners,
    logistic_owners,
)


@cache
def gaussian():
    return gaussian_owners()


def draws_of(
    name, target, *, num_chains, num_draws, settling=10, fixed=None, **options
):
    """Draws of many chains after one pilot, `(chains, draws, d)`, and infos."""
    algorithm = chain.algorithm(specs()[name], {"share_exact": True} | options)

    def run(key):
        pilot_key, init_key, chains_key = jax.random.split(key, 3)
        begun = chain.begin(algorithm, target, pilot_key, init_key, target.position, 0)
        params = begun.adapt_state.params | (fixed or {})

        def one(key):
            def step(state, key):
                state, info = algorithm.kernel(key, state, target, **params)
                return state, (state.position, info)

            keys = jax.random.split(key, settling + num_draws)
            return jax.lax.scan(step, begun.kernel_state, keys)[1]

        return jax.vmap(one)(jax.random.split(chains_key, num_chains))

    draws, info = jax.jit(run)(jax.random.key(0))
    return np.asarray(draws)[:, settling:], info


@pytest.mark.slow
def test_gaussian_owners_leave_the_law_of_the_full_data_chain():
    """At K = 10, with part of the owners, and with noise of their own: 1/(1 - h/4).

    Four Monte-Carlo errors of 3,000 chains, of 0.018 and 0.026: 5e-4 false alarms.
    """
    target, mean, covariance = gaussian()
    draws, info = draws_of(
        "fald",
        target,
        num_chains=3_000,
        num_draws=1,
        settling=3,
        participation=0.67,
        shared_noise=0.5,
        fixed={"step_size": jnp.asarray(0.4), "num_rounds": jnp.asarray(1)},
    )
    root = np.linalg.cholesky(covariance)
    whitened = np.linalg.solve(root, (draws[:, 0] - mean).T)
    np.testing.assert_allclose(whitened.mean(axis=1), 0, atol=0.073)
    np.testing.assert_allclose(np.cov(whitened), np.eye(2) / 0.9, atol=0.12)
    # two owners of two coordinates in 12,000 rounds: an error of .01
    np.testing.assert_allclose(np.mean(info.surrogate_misfit), 1, atol=0.05)
    assert np.all(info.num_messages == 4)
    assert not np.any(info.num_left_out)


@pytest.mark.slow
@pytest.mark.parametrize("shared_noise", [1.0, 0.0])
@pytest.mark.parametrize("participation", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("num_local_steps", [1, 10, 100])
def test_gaussian_owners_at_any_k_and_participation(
    num_local_steps, participation, shared_noise
):
    """10,000 nearly independent draws, four errors of .01 and .007: 2e-3 in all 18."""
    target, mean, covariance = gaussian()
    draws, info = draws_of(
        "fald",
        target,
        num_chains=200,
        num_draws=100,
        num_local_steps=num_local_steps,
        participation=participation,
        shared_noise=shared_noise,
    )
    sd = np.sqrt(np.diag(covariance))
    flat = draws.reshape(-1, 2)
    assert np.all(np.abs(flat.mean(axis=0) - mean) / sd < 0.05)
    stated = np.sqrt(1 + info.predicted_inflation[0, 0])
    np.testing.assert_allclose(flat.std(axis=0) / sd, stated, atol=0.035)


@pytest.mark.slow
@pytest.mark.parametrize("draws", ["without replacement", "with replacement"])
@pytest.mark.parametrize("participation", [1.0, 0.5, 0.1])
def test_owners_of_one_label_each_have_the_pooled_posterior(participation, draws):
    target, mean, sd = label_split_owners()
    found, _ = draws_of(
        "fald",
        target,
        num_chains=50,
        num_draws=60,
        participation=participation,
        draws=draws,
    )
    flat = found.reshape(-1, 2)
    assert np.all(np.abs(flat.mean(axis=0) - mean) / sd < 0.1)
    np.testing.assert_allclose(flat.std(axis=0) / sd, 1.025, atol=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fald", "fsgld"])
def test_a_hierarchy_in_which_each_owner_has_an_effect_of_its_own(name):
    """A level and five effects, an exact Gaussian: four errors of .022 and .016 sd."""
    rng = np.random.default_rng(3)
    sizes, tau = (80, 150, 70, 200, 100), 0.5

    def model(number, y):
        level = numpyro.sample("level", dist.Normal(0, 2))
        effects = numpyro.sample("effects", dist.Normal(0, 1).expand([5]).to_event(1))
        with numpyro.plate("data", len(y)):
            y = numpyro.subsample(y, event_dim=0)
            numpyro.sample("y", dist.Normal(level + tau * effects[number], 1), obs=y)

    owners = [
        {"number": s, "y": rng.normal(s - 2.0, 1, n).astype(np.float32)}
        for s, n in enumerate(sizes)
    ]
    target = nf.model_target(nf.federated(model), (owners,))
    # coordinates in the order of their names: effects, level
    precision, shift = np.diag([1.0] * 5 + [0.25]), np.zeros(6)
    for owner in owners:
        row = np.append(tau * np.eye(5)[owner["number"]], 1.0)
        precision += len(owner["y"]) * np.outer(row, row)
        shift += row * owner["y"].sum(dtype=float)
    covariance = np.linalg.inv(precision)
    mean, sd = covariance @ shift, np.sqrt(np.diag(covariance))
    algorithm = chain.algorithm(specs()[name], {})

    def run(key):
        begun = chain.begin(algorithm, target, key, key, target.position, 0)

        def one(key):
            def step(state, key):
                state, _ = algorithm.kernel(
                    key, state, target, **begun.adapt_state.params
                )
                return state, ravel_pytree(state.position)[0]

            keys = jax.random.split(key, 60)
            return jax.lax.scan(step, begun.kernel_state, keys)[1]

        return jax.vmap(one)(jax.random.split(key, 100))

    draws = np.asarray(jax.jit(run)(jax.random.key(0)))[:, 10:]
    flat = draws.reshape(-1, 6)
    assert np.all(np.abs(flat.mean(axis=0) - mean) / sd < 0.09)
    np.testing.assert_allclose(flat.std(axis=0) / sd, 1.025, atol=0.07)


@pytest.mark.slow
def test_plain_averaging_is_off_where_owners_differ():
    target, mean, sd = label_split_owners()
    found, _ = draws_of("plain_fald", target, num_chains=20, num_draws=40)
    flat = found.reshape(-1, 2)
    assert np.max(np.abs(flat.mean(axis=0) - mean) / sd) > 1


@pytest.mark.parametrize("draws", ["without replacement", "with replacement"])
def test_participants_are_unbiased(draws):
    """Four errors of 4,000 rounds: 1e-3 false alarms."""
    target, _, _ = logistic_owners()
    owners = Owners(target.shards, lambda x: x)
    options = specs()["fald"].checked({"participation": 0.67, "draws": draws})
    scheme = scheme_of(owners, options, True)
    keys = jax.random.split(jax.random.key(0), 4_000)
    chosen, a, gain = jax.vmap(lambda key: participants(scheme, key, jnp.float32))(keys)
    np.testing.assert_allclose(a.sum(axis=1), 1, rtol=1e-5)
    excess = jnp.asarray([1.0, -2.0, 0.5])
    sums = np.sum(a * gain * excess[chosen], axis=1)
    assert abs(sums.mean() - excess.sum()) < 4 * sums.std() / np.sqrt(4_000)


def asked_of(weight, x):
    key, one = jax.random.key(0), jnp.asarray(1.0)
    return Visit(Chain(x, x + 1), key, key, one, one, jnp.asarray(weight))


def test_an_answer_that_makes_no_sense_is_left_out():
    x, true = jnp.zeros(2), jnp.asarray(True)
    asked, factor = asked_of(0.5, x), jnp.asarray(1.0)
    for arrived, status in (
        (jnp.asarray([jnp.nan, 1.0]), ARRIVED),
        (jnp.asarray([1e20, 1.0]), ARRIVED),
        (x + 2, BROKEN),
    ):
        answer = Answer(arrived, jnp.asarray(status))
        made, left_out = add_answer(no_answers(x), asked, answer, true, factor)
        assert left_out
        assert made.mass == 0
    made, left_out = add_answer(
        no_answers(x), asked, Answer(x + 3, jnp.asarray(ARRIVED)), true, factor
    )
    assert not left_out
    np.testing.assert_allclose(made.moved, 1.0)
    moved, divergent = server_step(asked.chain, made, 1.0, 0.5)
    # the owner that is missing is not waited for
    np.testing.assert_allclose(moved.ahead, 3.0)
    assert not divergent
    back, _ = add_answer(
        made, asked, Answer(x + 3, jnp.asarray(WENT_BACK)), true, factor
    )
    moved, divergent = server_step(asked.chain, back, 1.0, 0.5)
    np.testing.assert_allclose(moved.ahead, 0.0)
    assert divergent


@pytest.mark.slow
def test_owners_that_are_missing_do_not_change_the_law_of_those_with_own_noise():
    """An owner that never answers leaves what its surrogate says of its rows."""
    target, mean, covariance = gaussian()
    broken = Target(
        lambda x: jnp.sum(x) * jnp.nan, minibatch=target.shards[2].minibatch
    )
    algorithm = chain.algorithm(
        specs()["fald"], {"share_exact": True, "shared_noise": 0.0}
    )
    key = jax.random.key(0)
    begun = chain.begin(algorithm, target, key, key, target.position, 0)
    lost = replace(target, shards=(*target.shards[:2], broken))
    params = begun.adapt_state.params

    @jax.jit
    @jax.vmap
    def run(key):
        def step(state, key):
            state, info = algorithm.kernel(key, state, lost, **params)
            return state, (state.position, info.num_left_out)

        return jax.lax.scan(step, begun.kernel_state, jax.random.split(key, 60))[1]

    draws, left_out = run(jax.random.split(key, 200))
    flat, sd = np.asarray(draws)[:, 20:].reshape(-1, 2), np.sqrt(np.diag(covariance))
    # 8,000 draws, correlated: four errors of 0.02 and 0.015
    assert np.all(np.abs(flat.mean(axis=0) - mean) / sd < 0.08)
    np.testing.assert_allclose(flat.std(axis=0) / sd, 1.025, atol=0.06)
    assert np.all(left_out[:, 5:, 2] > 0)
    assert not np.any(left_out[..., :2])


def test_an_owner_with_a_huge_covariate_is_left_out_and_named():
    target, _, _ = gaussian()

    def huge(x):
        return target.shards[1](x) - 0.5 * jnp.sum((1e18 * x) ** 2)

    one = Target(huge, minibatch=target.shards[1].minibatch)
    spoilt = replace(target, shards=(target.shards[0], one, target.shards[2]))
    algorithm = chain.algorithm(specs()["fald"], {"share_exact": True})

    def begin(key):
        return chain.begin(algorithm, spoilt, key, key, target.position, 0)

    begun = jax.jit(begin)(jax.random.key(0))
    params = begun.adapt_state.params
    np.testing.assert_array_equal(params["active"], [True, False, True])
    (said,) = specs()["fald"].concerns(params)
    assert "Owners left out: 1" in said
