"""SGLD: its law on Gaussians, its warm-up, and rows by the million."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

import nutfree as nf
from nutfree import registry
from nutfree.kernels.sgld.stochastic import StochasticInfo
from nutfree.minibatch.gradients import Control, control_at
from nutfree.target import Minibatch, Target

sgld = registry.get("sgld")
Options = sgld.options


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


LOCATION = gaussian_location()


@partial(jax.jit, static_argnames=("target", "num_chains", "num_transitions", "static"))
def _ends(keys, target, params, start, num_chains, num_transitions, static):
    options = Options(**dict(static))
    kernel = sgld.build_kernel(options)

    def one(key):
        def body(state, key):
            return kernel(key, state, target, **params)

        state = sgld.init(start, target, options=options)
        state, info = jax.lax.scan(body, state, jax.random.split(key, num_transitions))
        return state.position, jax.tree.map(lambda a: a[-1], info)

    return jax.vmap(one)(jax.random.split(keys, num_chains))


def chains(target, params, *, num_chains, num_transitions, start, **static):
    """Last positions of many chains, and the Info of the last transition."""
    params = jax.tree.map(jnp.asarray, params)
    return _ends(
        jax.random.key(0),
        target,
        params,
        jnp.asarray(start),
        num_chains,
        num_transitions,
        tuple(static.items()),
    )


@pytest.mark.parametrize("step_size", [0.1, 0.4])
def test_plain_gradients_have_the_law_of_the_noisy_discretised_chain(step_size):
    # theory: variance (1 + hV/4)/(1 - h/4) in units of the posterior's, with
    # V = (N^2/n) var(rows) / precision and n = 20 of N = 200 rows: V is near 10
    target, y, mean, precision = LOCATION
    params = {"step_size": step_size, "inverse_mass_matrix": 1 / precision}
    draws, info = chains(
        target,
        params,
        num_chains=4000,
        num_transitions=4,
        start=mean,
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


def with_control_variates(step_size, matrix):
    """Draws around the mean in units of the posterior's sd, and the last Info."""
    target, _, mean, precision = LOCATION
    # a centre that is not the mode: the estimate is exact all the same
    control, _ = control_at(target.minibatch, jnp.asarray(mean) + 0.3, 0.0)
    params = {
        "step_size": step_size,
        "inverse_mass_matrix": matrix / precision,
        "control": control,
    }
    draws, info = chains(
        target,
        params,
        num_chains=10_000,
        num_transitions=4,
        start=mean,
        batch_size=20,
    )
    return (draws - mean) * precision**0.5, info


@pytest.mark.parametrize("matrix", [jnp.ones(2), jnp.eye(2)])
def test_control_variates_leave_only_the_discretisation_on_a_gaussian(matrix):
    u, info = with_control_variates(0.4, matrix)
    # four relative Monte-Carlo errors of 0.014: 1e-4 false alarms
    np.testing.assert_allclose(jnp.var(u, axis=0), 1 / 0.9, rtol=0.06)
    assert jnp.all(jnp.abs(jnp.mean(u, 0)) < 4 * jnp.sqrt(jnp.var(u, 0) / 10_000))
    np.testing.assert_allclose(info.predicted_inflation, 1 / 0.9 - 1, rtol=1e-4)


def test_bias_halves_with_step_size():
    # the excess h/4 / (1 - h/4) at h = 1.0 and 0.5: 1/3 and 1/7, ratio 2.33
    excess = [
        float(jnp.mean(with_control_variates(h, jnp.ones(2))[0] ** 2)) - 1
        for h in (1.0, 0.5)
    ]
    # Monte-Carlo error of each excess 0.012, of the ratio 0.2: 4 of them
    assert 1.6 < excess[0] / excess[1] < 3.2


NUM_ROWS, BATCH = 4000, 40


def logistic_target(data):
    """A logistic regression in two dimensions, its positions a dict."""
    features, labels = data

    def terms(x, indices):
        logits = features[indices] @ jnp.stack([x["intercept"], x["slope"]])
        prior = -(x["intercept"] ** 2 + x["slope"] ** 2) / 8
        return prior, labels[indices] * logits - jax.nn.softplus(logits)

    position = {"intercept": jnp.asarray(0.0), "slope": jnp.asarray(0.0)}
    return target_of(Minibatch(NUM_ROWS, terms), position)


def flat(position):
    return np.stack([position["intercept"], position["slope"]], -1)


def skewed_rows():
    """Rows of which few have the label, and the moments by quadrature."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(NUM_ROWS, 2))
    X[:, 0] = 1.0
    y = rng.uniform(size=NUM_ROWS) < 1 / (1 + np.exp(-X @ np.array([-3.5, 1.0])))
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
    return (X, y), mean, np.sqrt(weight @ (points - mean) ** 2)


def rows_of_a_rare_column(num_rare=8):
    """Rows of which a few know all that is known of the slope."""
    rng = np.random.default_rng(1)
    X = np.stack([np.ones(NUM_ROWS), np.arange(NUM_ROWS) < num_rare], axis=1)
    return X, rng.uniform(size=NUM_ROWS) < 0.4


@partial(jax.jit, static_argnames=("options",))
def pilot(key, data, options):
    """What warm-up finds; one program for each of the options, whatever the rows."""
    target = logistic_target(data)
    return sgld.warmup(options).init(key, target.position, target, 0)


def found(data, seed=0, **options):
    data = tuple(jnp.asarray(a, jnp.float32) for a in data)
    return pilot(jax.random.key(seed), data, Options(batch_size=BATCH, **options))


@partial(jax.jit, static_argnames=("options", "num_samples"))
def run(key, data, adapt, options, num_samples):
    target = logistic_target(data)
    kernel = sgld.build_kernel(options)

    def body(state, key):
        state, info = kernel(key, state, target, **adapt.params)
        return state, (state.position, info)

    state = sgld.init(adapt.position, target, options=options)
    return jax.lax.scan(body, state, jax.random.split(key, num_samples))[1]


def sample(data, adapt, **options):
    data = tuple(jnp.asarray(a, jnp.float32) for a in data)
    options = Options(batch_size=BATCH, **options)
    return run(jax.random.key(1), data, adapt, options, 4000)


@pytest.fixture(scope="module")
def skewed():
    return skewed_rows()


@pytest.fixture(scope="module")
def tuned(skewed):
    """What the pilot with default options finds."""
    return found(skewed[0])


@pytest.fixture(scope="module")
def target(skewed):
    return logistic_target(tuple(jnp.asarray(a, jnp.float32) for a in skewed[0]))


@pytest.mark.slow
def test_the_pilot_alone_gives_a_kernel_that_is_within_its_stated_bias(skewed, tuned):
    data, mean, sd = skewed
    draws, info = sample(data, tuned)
    assert jax.tree.structure(draws) == jax.tree.structure(tuned.position)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(draws))
    # about half as many independent draws: Monte-Carlo error 0.022 sd, and 0.016
    # relative for sds, of which the stated bias is 0.025
    assert np.all(np.abs(flat(draws).mean(0) - mean) / sd < 0.1)
    np.testing.assert_allclose(flat(draws).std(0) / sd, 1.025, atol=0.07)
    np.testing.assert_allclose(info.predicted_inflation, 0.05, rtol=1e-3)
    assert not np.any(info.is_divergent)
    # a batch of 40 rows of 4,000, at the position and at the centre
    np.testing.assert_allclose(info.num_grad_evals, 0.02 * info.num_steps, rtol=1e-4)
    assert tuned.num_grad_evals < 100


@pytest.mark.slow
def test_plain_gradients_inflate_by_what_is_predicted(skewed, tuned):
    data, _, sd = skewed
    options = {"gradient": "plain", "sampling": "uniform"}
    adapt = found(data, **options)
    # V is N/n = 100 in units of the posterior, within its sampling error, and the
    # control variate's is so small that its step is far larger
    np.testing.assert_allclose(adapt.params["gradient_noise"], 100, rtol=0.6)
    assert tuned.params["step_size"] > 15 * adapt.params["step_size"]
    params = adapt.params | {"step_size": jnp.asarray(0.2)}
    draws, info = sample(data, adapt._replace(params=params), **options)
    ratio = (flat(draws).std(0) / sd) ** 2
    # V near 100 and h = 0.2: six times the variance
    np.testing.assert_allclose(ratio, 1 + info.predicted_inflation[0], rtol=0.4)
    assert ratio.min() > 3


@pytest.mark.slow
def test_vmapped_and_sequential_chains_agree(target, tuned):
    kernel = sgld.build_kernel(Options(batch_size=BATCH))

    def one(key):
        state = sgld.init(tuned.position, target)
        return kernel(key, state, target, **tuned.params)[0].position["slope"]

    keys = jax.random.split(jax.random.key(3), 3)
    together = jax.jit(jax.vmap(one))(keys)
    apart = jnp.stack([jax.jit(one)(key) for key in keys])
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)


def test_nothing_is_compiled_again_when_a_parameter_changes(target, tuned):
    traces = []
    kernel = sgld.build_kernel(Options(batch_size=BATCH))

    @jax.jit
    def step(key, state, params):
        traces.append(1)
        return kernel(key, state, target, **params)

    state = sgld.init(tuned.position, target)
    for step_size in (0.1, 0.5):
        params = tuned.params | {"step_size": jnp.asarray(step_size)}
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


def test_warmup_halves_the_step_after_a_divergence(tuned):
    update = sgld.warmup().update
    calm = update(tuned, None, StochasticInfo(jnp.asarray(False), 0, 0, 0, 0))
    after = update(tuned, None, StochasticInfo(jnp.asarray(True), 0, 0, 0, 0))
    assert calm.params["step_size"] == tuned.params["step_size"]
    np.testing.assert_allclose(after.params["step_size"], tuned.params["step_size"] / 2)
    assert jax.tree.structure(after) == jax.tree.structure(tuned)


def test_chains_start_apart(skewed):
    data, _, sd = skewed
    starts = np.stack([flat(found(data, seed).position) for seed in range(4)])
    assert 0.1 * sd[1] < starts[:, 1].std() < 5 * sd[1]


@pytest.mark.slow
def test_a_numpyro_model_is_sampled_in_batches():
    rng = np.random.default_rng(0)
    y = rng.normal(2.0, 1.5, size=3000)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        sigma = numpyro.sample("sigma", dist.HalfNormal(5))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(mu, sigma), obs=numpyro.subsample(y, 0))

    mcmc = MCMC(
        nf.kernel("sgld", model, plate="data"),
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

    target = target_of(Minibatch(num_data, terms), jnp.zeros(dim))

    @jax.jit
    def run(key):
        adapt = sgld.warmup().init(key, target.position, target, 0)

        def body(state, key):
            state, info = sgld.build_kernel()(key, state, target, **adapt.params)
            return state, (state.position, info)

        keys = jax.random.split(jax.random.fold_in(key, 1), 8000)
        return jax.lax.scan(body, sgld.init(adapt.position, target), keys)[1]

    draws, info = run(jax.random.key(0))
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


@pytest.mark.slow
def test_rows_that_matter_more_are_drawn_more_often_where_batches_are_noisy():
    data, num_rare = rows_of_a_rare_column(), 8
    even, auto = found(data, sampling="uniform"), found(data)
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


def test_rows_are_drawn_evenly_where_batches_are_not_noisy(skewed, tuned):
    even = found(skewed[0], sampling="uniform")
    assert jnp.max(even.params["gradient_noise"]) < 1
    entries = np.asarray(tuned.params["shares"].entries)
    assert np.all(entries == entries[0])
    for name in ("gradient_noise", "step_size"):
        # from other batches
        np.testing.assert_allclose(tuned.params[name], even.params[name], rtol=0.3)
    np.testing.assert_allclose(tuned.num_grad_evals, even.num_grad_evals, rtol=1e-6)


def test_importance_without_its_shares_says_where_they_come_from():
    target, *_ = gaussian_location()
    algorithm = nf.sgld(
        target, step_size=0.1, sampling="importance", control=(), gradient="plain"
    )
    with pytest.raises(nf.InvalidOption, match="warmup"):
        algorithm.step(jax.random.key(0), algorithm.init(jnp.zeros(2)))


def test_a_plate_is_refused_where_there_is_no_model():
    target, *_ = LOCATION
    for call in (
        lambda: nf.kernel("sgld", target, plate="data"),
        lambda: nf.sgld(target, step_size=0.1, plate="data"),
        lambda: nf.sgld.warmup(target, jax.random.key(0), jnp.zeros(2), plate="data"),
    ):
        with pytest.raises(nf.InvalidOption, match="about a NumPyro model"):
            call()


def test_a_kernel_that_never_refreshes_has_no_such_option():
    with pytest.raises(nf.InvalidOption, match="no option 'refresh_every'"):
        nf.kernel("ssgmcmc", LOCATION[0], refresh_every=5)
