from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import nutfree as nf
from nutfree.kernels.sgld import sgld
from nutfree.minibatch.gradients import Control, control_at
from nutfree.target import Minibatch, Target


def target_of(minibatch, position=None):
    def logdensity(x):
        return minibatch.logdensity(x, jnp.arange(minibatch.num_data))

    return Target(logdensity, position=position, minibatch=minibatch)


def gaussian_location(num_data=200, dim=2, seed=0):
    """Rows N(x, 1) with a N(0, 10^2) prior, and the exact posterior."""
    rng = np.random.default_rng(seed)
    y = rng.normal(1.0, 1.0, size=(num_data, dim)) * np.array([1.0, 0.3])[:dim]
    rows = jnp.asarray(y)

    def terms(x, indices):
        residual = rows[indices] - x
        return -jnp.sum(x**2) / 200, -0.5 * jnp.sum(residual**2, axis=1)

    precision = num_data + 0.01
    return target_of(Minibatch(num_data, terms)), y, y.sum(0) / precision, precision


def chains(target, params, *, num_chains, num_transitions, start, **static):
    """Last positions of many chains, and the Info of the last transition."""
    kernel = sgld.build_kernel(**static)

    def one(key):
        def body(state, key):
            return kernel(key, state, target, **params)

        keys = jax.random.split(key, num_transitions)
        state, info = jax.lax.scan(body, sgld.init(start, target), keys)
        return state.position, jax.tree.map(lambda a: a[-1], info)

    keys = jax.random.split(jax.random.key(0), num_chains)
    return jax.jit(jax.vmap(one))(keys)


@pytest.mark.parametrize("step_size", [0.1, 0.4])
def test_plain_gradients_have_the_law_of_the_noisy_discretised_chain(step_size):
    # theory: variance (1 + hV/4)/(1 - h/4) in units of the posterior's, with
    # V = (N^2/n) var(rows) / precision and n = 20 of N = 200 rows: V is near 10
    target, y, mean, precision = gaussian_location()
    params = {"step_size": step_size, "inverse_mass_matrix": 1 / precision}
    draws, info = chains(
        target,
        params,
        num_chains=4000,
        num_transitions=4,
        start=jnp.asarray(mean),
        batch_size=20,
        gradient="plain",
    )
    noise = 200**2 / 20 * np.cov(y.T, bias=True) / precision
    expected = (np.eye(2) + step_size * noise / 4) / (1 - step_size / 4)
    expected *= 1 - (1 - step_size / 2) ** (2 * 4 * int(info.num_steps[0]))
    # relative Monte-Carlo error of a variance sqrt(2/4000) = 0.022, of a covariance
    # less; four of them: 2e-4 false alarms
    covariance = np.cov(draws.T) * precision
    np.testing.assert_allclose(covariance, expected, atol=0.09 * expected.max())
    np.testing.assert_allclose(np.diag(covariance), np.diag(expected), rtol=0.09)
    error = jnp.abs(jnp.mean(draws, axis=0) - mean) / jnp.sqrt(jnp.var(draws, 0) / 4000)
    assert jnp.all(error < 4)


def test_control_variates_leave_only_the_discretisation_on_a_gaussian():
    target, _, mean, precision = gaussian_location()
    step_size = 0.4
    # a centre that is not the mode: the estimate is exact all the same
    control, _ = control_at(target.minibatch, jnp.asarray(mean) + 0.3, 0.0)
    params = {
        "step_size": step_size,
        "inverse_mass_matrix": 1 / precision,
        "control": control,
    }
    draws, info = chains(
        target,
        params,
        num_chains=4000,
        num_transitions=4,
        start=jnp.asarray(mean),
        batch_size=20,
    )
    # four relative Monte-Carlo errors of 0.022: 1e-4 false alarms
    ratio = jnp.var(draws, axis=0) * precision
    np.testing.assert_allclose(ratio, 1 / (1 - step_size / 4), rtol=0.09)
    error = jnp.abs(jnp.mean(draws, 0) - mean) / jnp.sqrt(jnp.var(draws, 0) / 4000)
    assert jnp.all(error < 4)
    np.testing.assert_allclose(info.predicted_inflation, 1 / 0.9 - 1, rtol=1e-4)


def test_bias_halves_with_step_size():
    # the excess h/4 / (1 - h/4) at h = 1.0 and 0.5: 1/3 and 1/7, ratio 2.33
    target, _, mean, precision = gaussian_location(num_data=50, dim=1)
    excess = []
    for step_size in (1.0, 0.5):
        params = {"step_size": step_size, "inverse_mass_matrix": 1 / precision}
        draws, _ = chains(
            target,
            params,
            num_chains=20_000,
            num_transitions=8,
            start=jnp.asarray(mean),
            batch_size=50,
            gradient="plain",
        )
        excess.append(float(jnp.var(draws) * precision) - 1)
    # Monte-Carlo error of each excess 0.012, of the ratio 0.2: 4 of them
    assert 1.6 < excess[0] / excess[1] < 3.2


def test_dense_and_diagonal_preconditioners_have_the_same_law():
    target, _, mean, precision = gaussian_location()
    for matrix in (jnp.full(2, 1 / precision), jnp.eye(2) / precision):
        params = {"step_size": 0.4, "inverse_mass_matrix": matrix}
        draws, _ = chains(
            target,
            params,
            num_chains=2000,
            num_transitions=4,
            start=jnp.asarray(mean),
            batch_size=200,
            gradient="plain",
        )
        # four relative Monte-Carlo errors of 0.032
        ratio = jnp.var(draws, axis=0) * precision
        np.testing.assert_allclose(ratio, 1 / 0.9, rtol=0.13)


def skewed_logistic(num_data=20_000):
    """A logistic regression in two dimensions, and its moments by quadrature."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(num_data, 2))
    X[:, 0] = 1.0
    y = rng.uniform(size=num_data) < 1 / (1 + np.exp(-X @ np.array([-3.5, 1.0])))
    features, labels = jnp.asarray(X), jnp.asarray(y)

    def terms(x, indices):
        x = jnp.stack([x["intercept"], x["slope"]])
        logits = features[indices] @ x
        return -jnp.sum(x**2) / 8, labels[indices] * logits - jax.nn.softplus(logits)

    mode = np.array([-3.5, 1.0])
    for _ in range(30):
        p = 1 / (1 + np.exp(-X @ mode))
        hessian = (X * (p * (1 - p))[:, None]).T @ X + np.eye(2) / 4
        mode = mode + np.linalg.solve(hessian, X.T @ (y - p) - mode / 4)
    factor = np.linalg.cholesky(np.linalg.inv(hessian))
    axis = np.linspace(-5, 5, 41)
    points = mode + np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2) @ factor.T
    logits = points @ X.T
    value = -np.sum(points**2, 1) / 8 + logits @ y - np.logaddexp(0, logits).sum(1)
    weight = np.exp(value - value.max())
    weight /= weight.sum()
    mean = weight @ points
    sd = np.sqrt(weight @ (points - mean) ** 2)
    position = {"intercept": jnp.asarray(0.0), "slope": jnp.asarray(0.0)}
    return target_of(Minibatch(num_data, terms), position), mean, sd


@pytest.fixture(scope="module")
def logistic():
    return skewed_logistic()


@pytest.fixture(scope="module")
def tuned(logistic):
    """One run of the pilot with default options, and one transition."""
    adapt, (draws, info) = sample(logistic[0], num_samples=2)
    return adapt, draws, jax.tree.map(lambda a: a[0], info)


def sample(target, *, num_samples, seed=0, num_warmup=0, fixed=None, **static):
    names = {"batch_size", "gradient"}
    kernel = sgld.build_kernel(**{k: v for k, v in static.items() if k in names})
    warm = sgld.warmup(**static)

    @jax.jit
    def run(key):
        pilot_key, run_key = jax.random.split(key)
        adapt = warm.init(pilot_key, target.position, target, num_warmup)
        params = warm.final(adapt) | (fixed or {})

        def body(state, key):
            state, info = kernel(key, state, target, **params)
            return state, (state.position, info)

        keys = jax.random.split(run_key, num_samples)
        state = sgld.init(adapt.position, target)
        return adapt, jax.lax.scan(body, state, keys)[1]

    return run(jax.random.key(seed))


def test_the_pilot_alone_gives_a_kernel_that_is_within_its_stated_bias(logistic):
    target, mean, sd = logistic
    adapt, (draws, info) = sample(target, num_samples=4000)
    draws = np.stack([draws["intercept"], draws["slope"]], -1)
    # about half as many independent draws: Monte-Carlo error 0.022 sd, and 0.016
    # relative for sds, of which the stated bias is 0.025
    assert np.all(np.abs(draws.mean(0) - mean) / sd < 0.1)
    np.testing.assert_allclose(draws.std(0) / sd, 1.025, atol=0.07)
    np.testing.assert_allclose(info.predicted_inflation, 0.05, rtol=1e-3)
    assert not np.any(info.is_divergent)
    # a batch of 200 rows of 20,000, at the position and at the centre
    np.testing.assert_allclose(info.num_grad_evals, 0.02 * info.num_steps, rtol=1e-4)
    assert adapt.num_grad_evals < 100


def test_plain_gradients_inflate_by_what_is_predicted(logistic, tuned):
    target, _, sd = logistic
    adapt, (draws, info) = sample(
        target,
        num_samples=4000,
        gradient="plain",
        sampling="uniform",
        fixed={"step_size": 0.2},
    )
    # V is N/n = 100 in units of the posterior, within its sampling error, and the
    # control variate's is so small that its step is far larger
    np.testing.assert_allclose(adapt.params["gradient_noise"], 100, rtol=0.6)
    assert tuned[0].params["step_size"] > 20 * adapt.params["step_size"]
    draws = np.stack([draws["intercept"], draws["slope"]], -1)
    ratio = (draws.std(0) / sd) ** 2
    # V near 100 and h = 0.2: six times the variance
    np.testing.assert_allclose(ratio, 1 + info.predicted_inflation[0], rtol=0.4)
    assert ratio.min() > 3


def test_positions_keep_their_structure_and_dtype(logistic, tuned):
    target, (adapt, draws, _) = logistic[0], tuned
    assert jax.tree.structure(adapt.position) == jax.tree.structure(target.position)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(draws))


def test_vmapped_and_sequential_chains_agree(logistic, tuned):
    target, adapt = logistic[0], tuned[0]
    kernel, params = sgld.build_kernel(), adapt.params

    def one(key):
        state = sgld.init(adapt.position, target)
        return kernel(key, state, target, **params)[0].position["slope"]

    keys = jax.random.split(jax.random.key(3), 3)
    together = jax.jit(jax.vmap(one))(keys)
    apart = jnp.stack([jax.jit(one)(key) for key in keys])
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)


def test_nothing_is_compiled_again_when_a_parameter_changes(logistic, tuned):
    target, adapt = logistic[0], tuned[0]
    traces = []
    kernel = sgld.build_kernel()

    @jax.jit
    def step(key, state, params):
        traces.append(1)
        return kernel(key, state, target, **params)

    state = sgld.init(adapt.position, target)
    for step_size in (0.1, 0.5):
        params = adapt.params | {"step_size": jnp.asarray(step_size)}
        _, info = step(jax.random.key(0), state, params)
    assert len(traces) == 1
    assert int(info.num_steps) == 4


def test_a_gradient_that_is_not_finite_is_divergent_and_never_stored():
    # a wall at 1, at one posterior sd from the mode, behind which everything is NaN
    def terms(x, indices):
        wall = jnp.where(x > 1.0, jnp.nan, 0.0)
        return jnp.sum(wall * x), -0.5 * jnp.sum(x**2) / 10 + 0.0 * indices

    target = target_of(Minibatch(10, terms))
    params = {
        "step_size": 0.5,
        "control": Control(jnp.zeros(1), jnp.zeros(1)),
    }
    draws, info = chains(
        target,
        params,
        num_chains=200,
        num_transitions=20,
        start=jnp.zeros(1),
        batch_size=5,
    )
    assert jnp.all(draws <= 1.0)
    assert jnp.any(info.is_divergent)
    # the wall is met again and again, and never stops a chain
    assert jnp.mean(draws < 0) > 0.4


def test_warmup_halves_the_step_after_a_divergence(logistic, tuned):
    target, (adapt, _, info) = logistic[0], tuned
    warm = sgld.warmup()
    state = sgld.init(adapt.position, target)
    calm = warm.update(adapt, state, info)
    after = warm.update(adapt, state, info._replace(is_divergent=jnp.asarray(True)))
    assert calm.params["step_size"] == adapt.params["step_size"]
    np.testing.assert_allclose(after.params["step_size"], adapt.params["step_size"] / 2)
    assert jax.tree.structure(after) == jax.tree.structure(adapt)


def test_chains_start_apart(logistic):
    target, _, sd = logistic
    warm = sgld.warmup()
    starts = jax.jit(
        jax.vmap(lambda key: warm.init(key, target.position, target, 0).position)
    )(jax.random.split(jax.random.key(0), 4))
    assert 0.1 * sd[1] < starts["slope"].std() < 5 * sd[1]


def test_a_numpyro_model_is_sampled_in_batches():
    from numpyro.infer import MCMC

    from nutfree.hosts.numpyro import kernel

    rng = np.random.default_rng(0)
    y = rng.normal(2.0, 1.5, size=3000)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        sigma = numpyro.sample("sigma", dist.HalfNormal(5))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(mu, sigma), obs=numpyro.subsample(y, 0))

    mcmc = MCMC(
        kernel("sgld", model, plate="data"),
        num_warmup=10,
        num_samples=2000,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), jnp.asarray(y))
    draws = mcmc.get_samples()
    # 1,000 independent draws: four Monte-Carlo errors of 0.032 sd
    assert abs(draws["mu"].mean() - y.mean()) < 0.13 * y.std() / 3000**0.5
    assert abs(draws["sigma"].mean() - y.std()) < 0.2 * y.std() / 6000**0.5
    np.testing.assert_allclose(draws["mu"].std(), y.std() / 3000**0.5, rtol=0.12)


@pytest.mark.slow
def test_a_million_rows_are_sampled_without_bias_from_single_precision():
    rng = np.random.default_rng(0)
    num_data, dim = 1_000_000, 20
    X = rng.normal(size=(num_data, dim)).astype(np.float32)
    truth = 0.5 * rng.normal(size=dim)
    y = (rng.uniform(size=num_data) < 1 / (1 + np.exp(-X @ truth))).astype(np.float32)
    features, labels = jnp.asarray(X), jnp.asarray(y)

    def terms(x, indices):
        logits = features[indices] @ x
        return -jnp.sum(x**2) / 8, labels[indices] * logits - jax.nn.softplus(logits)

    target = replace(target_of(Minibatch(num_data, terms)), position=jnp.zeros(dim))
    _, (draws, info) = sample(target, num_samples=8000)
    mode, wide = truth.copy(), X.astype(np.float64)
    for _ in range(10):
        p = 1 / (1 + np.exp(-wide @ mode))
        hessian = (wide * (p * (1 - p))[:, None]).T @ wide + np.eye(dim) / 4
        mode = mode + np.linalg.solve(hessian, wide.T @ (y - p) - mode / 4)
    sd = np.sqrt(np.diag(np.linalg.inv(hessian)))
    # 4,000 independent draws: 0.016 sd each, the largest of 20 below 0.07
    assert np.max(np.abs(draws.mean(0) - mode) / sd) < 0.07
    np.testing.assert_allclose(draws.std(0) / sd, 1.025, atol=0.06)
    assert float(info.num_grad_evals.sum()) < 200


def with_a_rare_column(num_data=4000, num_rare=8):
    """Logistic rows, of which a few know all that is known of one coefficient."""
    rng = np.random.default_rng(1)
    X = np.stack(
        [np.ones(num_data), rng.normal(size=num_data), np.arange(num_data) < num_rare],
        axis=1,
    )
    y = jnp.asarray(rng.uniform(size=num_data) < 0.4, float)
    X = jnp.asarray(X)

    def terms(beta, indices):
        logits = X[indices] @ beta
        rows = y[indices] * logits - jax.nn.softplus(logits)
        return -0.5 * jnp.sum(beta**2) / 4, rows

    return target_of(Minibatch(num_data, terms))


def found_with(target, sampling, dim):
    pilot = sgld.warmup(batch_size=40, sampling=sampling).init
    return jax.jit(lambda key: pilot(key, jnp.zeros(dim), target, 0))(jax.random.key(0))


def test_rows_that_matter_more_are_drawn_more_often_where_batches_are_noisy():
    target, num_rare = with_a_rare_column(), 8
    even = found_with(target, "uniform", 3)
    auto = found_with(target, "auto", 3)
    assert even.params["shares"] == ()
    assert jnp.max(even.params["gradient_noise"]) > 1
    entries = np.asarray(auto.params["shares"].entries)
    assert entries[:num_rare].min() > 10 * np.median(entries)
    assert jnp.max(auto.params["gradient_noise"]) < 0.3 * jnp.max(
        even.params["gradient_noise"]
    )
    assert auto.params["step_size"] > 1.5 * even.params["step_size"]
    # four positions and the centre, each with a gradient of every row
    assert 8 <= auto.num_grad_evals - even.num_grad_evals < 11


def test_rows_are_drawn_evenly_where_batches_are_not_noisy():
    target, *_ = gaussian_location()
    even = found_with(target, "uniform", 2)
    auto = found_with(target, "auto", 2)
    entries = np.asarray(auto.params["shares"].entries)
    assert np.all(entries == entries[0])
    np.testing.assert_allclose(
        auto.params["gradient_noise"], even.params["gradient_noise"], atol=1e-6
    )
    np.testing.assert_allclose(auto.num_grad_evals, even.num_grad_evals, rtol=1e-6)


def test_importance_without_its_shares_says_where_they_come_from():
    target, *_ = gaussian_location()
    algorithm = nf.sgld(
        target, step_size=0.1, sampling="importance", control=(), gradient="plain"
    )
    with pytest.raises(nf.InvalidOption, match="warmup"):
        algorithm.step(jax.random.key(0), algorithm.init(jnp.zeros(2)))
