from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from nutfree.errors import InvalidData
from nutfree.kernels.federated import dsgld, fsgld
from nutfree.kernels.federated.federation import (
    Chain,
    Setting,
    Surrogate,
    Visit,
    expand,
    local_gradient,
    pool,
    surrogate_from,
    surrogate_gradient,
    visit,
)
from nutfree.kernels.federated.owners import Owners, owner
from nutfree.kernels.federated.rounds import estimator
from nutfree.numerics.langevin import predicted_inflation
from nutfree.target import Target
from tests.kernels.federated.owners import gaussian_owners, logistic_owners

#: The owners of these tests have few rows.
EXACT = {"share_exact": True}


def identity(x):
    return x


@pytest.fixture(scope="module")
def gaussian():
    return gaussian_owners()


@pytest.fixture(scope="module")
def logistic():
    return logistic_owners()


@cache
def pilot(target, **options):
    """What warm-up finds, once for a target and options."""
    warm = fsgld.SPEC.warmup(fsgld.Options(**EXACT, **options))
    return jax.jit(lambda key: warm.init(key, target.position, target, 0))(
        jax.random.key(0)
    )


@partial(
    jax.jit, static_argnames=("target", "num_transitions", "build_kernel", "options")
)
def _chains(keys, params, start, target, num_transitions, build_kernel, options):
    kernel = build_kernel(options)

    def one(key):
        def body(state, key):
            return kernel(key, state, target, **params)

        keys = jax.random.split(key, num_transitions)
        state, info = jax.lax.scan(body, fsgld.SPEC.init(start, target), keys)
        return state.position, info

    return jax.vmap(one)(keys)


def chains(target, params, *, num_chains, num_transitions, start, of=fsgld, **static):
    """Last positions of many chains, and the Info of all transitions."""
    keys = jax.random.split(jax.random.key(0), num_chains)
    params = jax.tree.map(jnp.asarray, params)
    options = of.Options(**static)
    build, start = of.SPEC.build_kernel, jnp.asarray(start)
    return _chains(keys, params, start, target, num_transitions, build, options)


@pytest.mark.parametrize(
    "visits", ["size", pytest.param("uniform", marks=pytest.mark.slow)]
)
def test_gaussian_owners_have_the_law_of_the_full_data_chain(gaussian, visits):
    # with exact surrogates visits add no noise: variance 1/(1 - h/4), whatever the
    # owners, the delay K and the probabilities of a visit
    target, mean, covariance = gaussian
    params = pilot(target).params | {"step_size": 0.4}
    np.testing.assert_allclose(params["gradient_noise"], 0, atol=1e-3)
    draws, info = chains(
        target,
        params | {"num_rounds": 1},
        num_chains=8000,
        num_transitions=3,
        start=jnp.asarray(mean),
        visits=visits,
    )
    whitened = np.linalg.solve(
        np.linalg.cholesky(covariance), (np.asarray(draws) - mean).T
    )
    # four Monte-Carlo errors of 0.012, and of sqrt(2/8000) = 0.016: 3e-4
    np.testing.assert_allclose(whitened.mean(axis=1), 0, atol=0.047)
    np.testing.assert_allclose(np.cov(whitened), np.eye(2) / 0.9, atol=0.07)
    expected = predicted_inflation(0.4, 0.0, 1.0)
    np.testing.assert_allclose(info.predicted_inflation, expected, atol=1e-3)


@pytest.mark.slow
def test_without_conducive_gradients_heterogeneous_owners_are_visibly_off(gaussian):
    target, mean, covariance = gaussian
    params = pilot(target).params | {"step_size": 0.4}
    draws, _ = chains(
        target,
        params,
        num_chains=1000,
        num_transitions=3,
        start=jnp.asarray(mean),
        of=dsgld,
    )
    ratio = np.var(draws, axis=0) / np.diag(covariance)
    assert np.all(ratio > 10)


@pytest.mark.slow
def test_warmup_predicts_what_owners_noise_does_without_conducive_gradients(gaussian):
    # small steps, so that the first-order prediction with its delay of K = 4 holds
    target, mean, covariance = gaussian
    warm = dsgld.SPEC.warmup(dsgld.Options(num_local_steps=4, **EXACT))
    params = jax.jit(lambda key: warm.init(key, target.position, target, 0))(
        jax.random.key(0)
    ).params
    step_size = 2.0 / float(params["gradient_noise"])
    num_rounds = int(1.0 / (4 * step_size))
    draws, info = chains(
        target,
        params | {"step_size": step_size, "num_rounds": num_rounds},
        num_chains=500,
        num_transitions=2,
        start=jnp.asarray(mean),
        of=dsgld,
        num_local_steps=4,
    )
    worst = np.max(np.var(draws, axis=0) / np.diag(covariance))
    forgotten = 1 - np.exp(-2 * 4 * num_rounds * step_size)
    expected = 1 + info.predicted_inflation[0, 0]
    np.testing.assert_allclose(expected, 1.5, rtol=0.02)
    # relative Monte-Carlo error 0.063 here, and a tenth in the warm-up's estimate
    np.testing.assert_allclose(worst, expected * forgotten, rtol=0.3)


@pytest.mark.slow
def test_bias_halves_with_step_size(gaussian):
    # the excess h/4 / (1 - h/4) at h = 1.0 and 0.5: 1/3 and 1/7, ratio 2.33
    target, mean, covariance = gaussian
    tuned, excess = pilot(target).params, []
    for step_size in (1.0, 0.5):
        draws, _ = chains(
            target,
            tuned | {"step_size": step_size, "num_rounds": 1},
            num_chains=8_000,
            num_transitions=3,
            start=jnp.asarray(mean),
        )
        ratio = np.var(draws, axis=0) / np.diag(covariance)
        excess.append(ratio.mean() - 1)
    # Monte-Carlo error of each excess 0.01, of the ratio 0.2: four of them
    assert 1.5 < excess[0] / excess[1] < 3.3


@pytest.mark.slow
def test_owners_logistic_regression_is_within_its_stated_bias(logistic):
    target, mean, sd = logistic
    adapt = pilot(target)
    kernel = fsgld.SPEC.build_kernel()

    @jax.jit
    def run(key):
        def body(state, key):
            state, info = kernel(key, state, target, **adapt.params)
            return state, (state.position, info)

        state = fsgld.SPEC.init(adapt.position, target)
        return jax.lax.scan(body, state, jax.random.split(key, 4000))[1]

    draws, info = run(jax.random.key(1))
    # about half as many independent draws: Monte-Carlo error 0.022 sd, and 0.016
    # relative for sds, of which the stated bias is 0.025
    assert np.all(np.abs(draws.mean(axis=0) - mean) / sd < 0.1)
    np.testing.assert_allclose(draws.std(axis=0) / sd, 1.025, atol=0.08)
    np.testing.assert_allclose(info.predicted_inflation, 0.05, rtol=1e-3)
    assert not np.any(info.is_divergent)


@pytest.mark.slow
def test_owners_may_use_minibatches(logistic):
    target, mean, sd = logistic
    adapt = pilot(target, batch_size=20)
    full = pilot(target).params
    # noise of a minibatch: (N_s/n), 5 and more in units of the posterior, where
    # batches are not taken relative to the surrogate's centre
    excess = adapt.params["gradient_noise"] - full["gradient_noise"]
    assert 0 < excess < 2.5
    draws, info = chains(
        target,
        adapt.params,
        num_chains=400,
        num_transitions=2,
        start=jnp.asarray(mean),
        batch_size=20,
    )
    # four Monte-Carlo errors of 0.05 sd, and of 0.07 for the variance
    assert np.all(np.abs(draws.mean(axis=0) - mean) / sd < 0.2)
    np.testing.assert_allclose(np.var(draws, axis=0) / sd**2, 1.05, atol=0.28)
    # a batch of 20 of 750 rows in all, at two points, whoever owns them
    np.testing.assert_allclose(
        info.num_grad_evals, info.num_steps * 40 / 750, rtol=1e-4
    )


def test_batches_are_taken_relative_to_the_gradient_at_the_surrogates_centre(logistic):
    target, mean, sd = logistic
    own = owner(target.shards[0], identity)
    scheme = fsgld.scheme_of(
        fsgld.Options(batch_size=20), Owners(target.shards, identity), True
    )
    centre, x = jnp.asarray(mean + 0.5 * sd), jnp.asarray(mean - 0.5 * sd)
    expansion, _ = expand(own, jax.random.key(0), centre, 0.0, 1.0)
    surrogate = surrogate_from(expansion, centre)
    flat = jax.tree.map(jnp.zeros_like, surrogate)

    @jax.jit
    def gradients(surrogate):
        setting = Setting(jnp.eye(2), surrogate, surrogate)
        keys = jax.random.split(jax.random.key(1), 20_000)
        estimate = estimator(scheme, 1.0)
        return jax.lax.map(lambda key: estimate(own, setting, key, x, 0.0), keys)

    known, spent = gradients(surrogate)
    plain, _ = gradients(flat)  # of an owner that has sent none
    whole = own.value_and_grad(x)[1]
    for found in (known, plain):
        error = found.std(axis=0) / np.sqrt(len(found))
        assert np.all(np.abs(found.mean(axis=0) - whole) < 4 * error)  # 3e-4
    assert np.all(known.std(axis=0) < 0.3 * plain.std(axis=0))
    np.testing.assert_allclose(spent, 2 * 20 / 400, rtol=1e-5)


def test_a_visit_counts_the_visited_owners_share(gaussian):
    target, mean, _ = gaussian
    params = pilot(target).params | {"step_size": 1.0, "num_rounds": 1}
    _, info = chains(
        target, params, num_chains=8_000, num_transitions=3, start=jnp.asarray(mean)
    )
    counts = np.asarray(info.num_grad_evals).ravel()
    # ten steps of 30, 10 or 60 rows of 100
    assert set(counts.round(4).tolist()) == {3.0, 1.0, 6.0}
    # of 24,000 visits, sd 1.8: four and a half errors
    stated = fsgld.SPEC.gradients(fsgld.Options(), params, target)
    assert float(stated) == pytest.approx(counts.mean(), abs=0.053)


def test_conducive_gradients_have_mean_zero_over_owners(logistic):
    target, mean, _ = logistic
    surrogates = pilot(target).params["surrogates"]
    x = jnp.asarray(mean) + jnp.array([0.3, -0.8])
    f = Owners(target.shards, identity).shares
    gradients = [jax.grad(shard)(x) for shard in target.shards]
    total = 0
    for s, gradient in enumerate(gradients):
        own = jax.tree.map(lambda a, s=s: a[s], surrogates)
        setting = Setting(jnp.asarray(1.0), own, pool(surrogates))
        total += f[s] * local_gradient(gradient, x, 1 / f[s], setting)
    np.testing.assert_allclose(total, jax.grad(target)(x), rtol=1e-3, atol=1e-2)


def test_surrogate_of_a_gaussian_is_exact_wherever_it_is_expanded(gaussian):
    target, _, _ = gaussian
    shard = target.shards[1]
    centre = jnp.array([5.0, -5.0])
    expansion, count = jax.jit(
        lambda centre: expand(owner(shard, identity), jax.random.key(0), centre, 0.0, 1)
    )(centre)
    surrogate = surrogate_from(expansion, centre)
    x = jnp.array([1.0, 2.0])
    expected = jax.jit(jax.grad(shard))(x)
    np.testing.assert_allclose(surrogate_gradient(surrogate, x), expected, rtol=1e-4)
    assert count == 1 + 2 * 2


def expansion_of(logdensity):
    x, someone = jnp.zeros(2), owner(Target(logdensity), identity)
    return surrogate_from(expand(someone, jax.random.key(0), x, 0.0, 1)[0], x)


def test_a_surrogate_that_is_not_finite_is_flat():
    surrogate = expansion_of(lambda x: jnp.sum(x) * jnp.nan)
    np.testing.assert_array_equal(surrogate_gradient(surrogate, jnp.ones(2)), 0)


def test_a_surrogate_never_curves_upwards():
    surrogate = expansion_of(lambda x: x[0] ** 2 - x[1] ** 2)
    assert jnp.all(jnp.linalg.eigvalsh(surrogate.precision) > 0)


def test_an_owner_that_answers_with_nan_does_not_corrupt_the_chain(gaussian):
    target, mean, _ = gaussian
    params = pilot(target).params
    broken = Target(
        lambda x: jnp.sum(x) * jnp.nan, minibatch=target.shards[0].minibatch
    )
    target = replace(target, shards=(broken, *target.shards[1:]))
    draws, info = chains(
        target, params, num_chains=50, num_transitions=5, start=jnp.asarray(mean)
    )
    assert jnp.all(jnp.isfinite(draws))
    # the chain goes back once, and then leaves that owner out
    assert jnp.any(info.num_left_out[..., 0] > 0)
    assert not jnp.all(info.is_divergent)
    assert jnp.all(info.num_left_out[..., 1:] == 0)


def test_messages_have_no_room_for_rows(gaussian):
    # what crosses the wire has a position's shape, or a curvature's, and no other
    target, _, _ = gaussian
    key, x = jax.random.key(0), jnp.zeros(2)
    someone = owner(target.shards[2], identity)
    expansion, _ = jax.eval_shape(lambda: expand(someone, key, x, 0.0, 1))
    assert [a.shape for a in expansion] == [(), (2,), (2, 2)]
    scheme = fsgld.scheme(fsgld.Options(), Owners(target.shards, identity))
    one = jnp.asarray(1.0)
    asked = Visit(Chain(x, x), key, key, one, one, one)
    setting, estimate = Setting(one, None, None), estimator(scheme, 1.0)
    answer, _ = jax.eval_shape(
        lambda: visit(someone, asked, setting, estimate, 3, 1.0, 0.0)
    )
    assert [a.shape for a in answer] == [(2,), ()]


def test_visits_follow_the_rows_where_all_are_known(gaussian):
    target, _, _ = gaussian
    owners = Owners(target.shards, identity)
    scheme = fsgld.scheme(fsgld.Options(), owners)
    np.testing.assert_allclose(scheme.weights, (0.3, 0.1, 0.6))
    scheme = fsgld.scheme(fsgld.Options(visits="uniform"), owners)
    np.testing.assert_allclose(scheme.weights, 1 / 3)
    unknown = (replace(target.shards[0], minibatch=None), *target.shards[1:])
    np.testing.assert_allclose(Owners(unknown, identity).shares, 1 / 3)


def test_owners_with_few_rows_send_nothing_exact_unless_told(gaussian):
    target, _, _ = gaussian
    warm = fsgld.SPEC.warmup(fsgld.Options())
    found = jax.jit(lambda key: warm.init(key, target.position, target, 0))(
        jax.random.key(0)
    ).params["surrogates"]
    # 30, 10 and 60 rows, and 20 are enough for two coordinates
    sent = np.abs(np.asarray(found.precision)).sum(axis=(1, 2)) > 0
    np.testing.assert_array_equal(sent, [True, False, True])
    few = replace(target, shards=target.shards[1:2])
    with pytest.raises(InvalidData, match="share_exact=True"):
        warm.init(jax.random.key(0), target.position, few, 0)


def test_diagonal_surrogates_pool_as_matrices_do():
    stacked = Surrogate(jnp.zeros((3, 2)), jnp.ones((3, 2)), jnp.ones((3, 2)))
    np.testing.assert_allclose(
        surrogate_gradient(pool(stacked), jnp.array([1.0, 2.0])), [0.0, -3.0]
    )


def test_vmapped_and_sequential_chains_agree(gaussian):
    target, mean, _ = gaussian
    params = pilot(target).params
    kernel = fsgld.SPEC.build_kernel()

    def one(key):
        state = fsgld.SPEC.init(jnp.asarray(mean), target)
        return kernel(key, state, target, **params)[0].position

    keys = jax.random.split(jax.random.key(3), 4)
    together = jax.jit(jax.vmap(one))(keys)
    apart = jnp.stack([jax.jit(one)(key) for key in keys])
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_numpyro_model_of_several_owners_is_sampled():
    from numpyro.infer import MCMC

    from nutfree.frontends.federated import federated
    from nutfree.hosts.kernel import kernel

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1), obs=numpyro.subsample(y, 0))

    rng = np.random.default_rng(0)
    owners = [(jnp.asarray(rng.normal(m, 1, n)),) for m, n in ((-2, 40), (5, 10))]
    y = np.concatenate([owner[0] for owner in owners])
    mcmc = MCMC(
        kernel("federated", federated(model), share_exact=True),
        num_warmup=10,
        num_samples=2000,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), owners)
    draws = np.asarray(mcmc.get_samples()["mu"])
    precision = 50 + 0.01
    # 1,000 independent draws: four Monte-Carlo errors of 0.032 sd
    assert abs(draws.mean() - y.sum() / precision) < 0.13 * precision**-0.5
    np.testing.assert_allclose(draws.std() * precision**0.5, 1.025, rtol=0.12)
    told = mcmc.get_extra_fields()
    assert np.all(told["info.num_rounds"] >= 1)
    assert np.all(told["info.predicted_inflation"] <= 0.06)
