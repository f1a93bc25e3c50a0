"""The Föllmer kernel: laws, mode weights, honest failure, black-box densities.

Estimates are means over whole ensembles, which are independent given the reference;
tolerances are four standard errors of those means plus the bias of order 1/N, so that
a false alarm is rarer than one in ten thousand at another seed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree import errors
from nutfree.kernels.ensemble import follmer
from nutfree.kernels.ensemble.drift import (
    draw_nodes,
    ensemble_weights,
    follmer_step,
    jump,
)
from nutfree.target import Prior, Target

N = 128


def sample(logdensity, position, num_ensembles=16, seed=0, prior=None, **options):
    """Draws of shape `(num_ensembles, N, d)`, and the infos."""
    target, options = Target(logdensity, prior=prior), follmer.Options(**options)
    n = options.num_particles
    kernel, warm = follmer.build_kernel(options), follmer.warmup(options)

    @jax.jit
    def run(key):
        pilot_key, chain_key = jax.random.split(key)
        adapt = warm.init(pilot_key, position, target, 0)
        state = follmer.init(adapt.position, target, options=options)

        def step(carry, key):
            state, adapt = carry
            state, info = kernel(key, state, target, **adapt.params)
            return (state, warm.update(adapt, state, info)), (state.position, info)

        keys = jax.random.split(chain_key, num_ensembles * n)
        _, out = jax.lax.scan(step, (state, adapt), keys)
        return *out, adapt.num_density_evals

    draws, info, pilot = run(jax.random.key(seed))
    flat = jnp.concatenate(
        [leaf.reshape(num_ensembles, n, -1) for leaf in jax.tree.leaves(draws)], axis=2
    )
    return np.asarray(flat), info, pilot


def check(values: np.ndarray, truth: float, bias: float) -> None:
    """`values` has one estimate an ensemble."""
    error = values.std(ddof=1) / len(values) ** 0.5
    assert abs(values.mean() - truth) < 4 * error + bias


@pytest.mark.parametrize(
    "d",
    [
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.optimised),
        pytest.param(10, marks=pytest.mark.slow),
    ],
)
def test_gaussian_mean_and_covariance(d):
    root = np.random.default_rng(d).normal(size=(d, d))
    covariance = root @ root.T / d + 0.1 * np.eye(d)
    mean = np.arange(d, dtype=float)
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)

    def logdensity(x):
        return -0.5 * (x - mean) @ precision @ (x - mean)

    draws, info, _ = sample(logdensity, jnp.zeros(d))
    sd = np.sqrt(np.diag(covariance))
    standard = (draws - mean) / sd
    for i in (0, d - 1):
        check(standard[..., i].mean(axis=1), 0.0, 0.02)
        check((standard[..., i] ** 2).mean(axis=1), 1.0, 0.05)
    cross = covariance[0, -1] / (sd[0] * sd[-1])
    check((standard[..., 0] * standard[..., -1]).mean(axis=1), cross, 0.05)
    assert not np.any(info.is_divergent)


@pytest.mark.slow
def test_bias_of_the_path_alone_falls_as_stated():
    """E x0^2 of a standard normal: 150 chains of 6 ensembles each, path alone.

    Measured 0.085, 0.044 and -0.004 at 16, 32 and 64 particles, standard errors 0.014,
    0.009 and 0.006. The bound fails at 4 standard errors.
    """
    errors, bounds = [], []
    for n in (16, 64):
        options = follmer.Options(num_particles=n, num_refresh=0)
        kernel, warm = follmer.build_kernel(options), follmer.warmup(options)
        target = Target(lambda x: -0.5 * jnp.sum(x**2))

        def chain(key, kernel=kernel, warm=warm, options=options, n=n, target=target):
            pilot_key, key = jax.random.split(key)
            adapt = warm.init(pilot_key, jnp.zeros(2), target, 0)

            def step(state, key):
                state, _ = kernel(key, state, target, **adapt.params)
                return state, state.position[0] ** 2

            state = follmer.init(adapt.position, target, options=options)
            return jax.lax.scan(step, state, jax.random.split(key, 6 * n))[1].mean()

        means = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 150))
        errors.append(float(means.mean()) - 1)
        bounds.append(4 * float(means.std()) / 150**0.5)
    order = follmer.SPEC.bias_order["num_particles"]
    assert abs(errors[1]) < 4.0**order * (abs(errors[0]) + bounds[0]) + bounds[1]


@pytest.mark.slow
def test_weights_of_unequal_modes_of_unequal_width():
    def logdensity(x):
        wide = jnp.log(0.3) - 0.5 * jnp.sum((x + 4) ** 2)
        narrow = jnp.log(0.7) - 2 * jnp.sum((x - 4) ** 2) + jnp.log(4)
        return jnp.logaddexp(wide, narrow)

    for num_refresh in (0, 64):
        draws, info, _ = sample(logdensity, jnp.zeros(2), num_refresh=num_refresh)
        right = draws[..., 0] > 0
        check(right.mean(axis=1), 0.7, 0.03)
        check((right * (draws[..., 0] - 4) ** 2).mean(axis=1), 0.7 / 4, 0.02)
        assert not np.any(info.is_divergent)


@pytest.mark.slow
def test_metropolis_steps_bring_a_banana_nearer():
    """E x0^2 is 4; the path alone loses a third of it in the tails."""

    def logdensity(x):
        return -(x[0] ** 2) / 8 - 2 * (x[1] - x[0] ** 2 / 2) ** 2

    error = []
    for num_refresh in (0, 64):
        draws, _, _ = sample(logdensity, jnp.zeros(2), num_refresh=num_refresh)
        error.append(4 - (draws[..., 0] ** 2).mean())
    # measured 1.3 and 0.5, each with a standard error of 0.1
    assert error[1] < 0.7 * error[0]
    assert abs(error[1]) < 1.0


@pytest.mark.slow
def test_eight_schools_agrees_with_nuts():
    """Against 20,000 NUTS draws, whose own errors are below a tenth of the bounds."""
    y = jnp.array([28, 8, -3, 7, -1, 1, 18, 12.0])
    sigma = jnp.array([15, 10, 16, 11, 9, 11, 10, 18.0])

    def logdensity(p):
        mu, log_tau, effect = p["mu"], p["log_tau"], p["effect"]
        tau = jnp.exp(log_tau)
        prior = -(mu**2) / 50 + log_tau - jnp.log1p(tau**2 / 25)
        rows = -0.5 * ((y - mu - tau * effect) / sigma) ** 2 - 0.5 * effect**2
        return prior + jnp.sum(rows)

    start = {"mu": jnp.zeros(()), "log_tau": jnp.zeros(()), "effect": jnp.zeros(8)}
    draws, info, _ = sample(logdensity, start)
    # leaves in the order of their names: effect, log_tau, mu
    for column, mean, square in ((9, 4.404, 30.25), (8, 0.800, 2.019)):
        sd = (square - mean**2) ** 0.5
        check(draws[..., column].mean(axis=1), mean, 0.05 * sd)
        check((draws[..., column] ** 2).mean(axis=1), square, 0.1 * square)
    assert not np.any(info.is_divergent)


@pytest.mark.slow
def test_a_collapse_in_high_dimension_is_said():
    d = 50
    root = np.random.default_rng(d).normal(size=(d, d))
    precision = jnp.asarray(np.linalg.inv(root @ root.T / d + 0.1 * np.eye(d)))
    _, info, _ = sample(lambda x: -0.5 * x @ precision @ x, jnp.zeros(d), 1)
    assert np.all(info.is_divergent)
    assert np.all(info.weight_ess < 0.02)


@pytest.mark.slow
def test_black_box_density_through_pure_callback():
    calls = {"evaluations": 0}

    def black_box(x):
        calls["evaluations"] += int(np.prod(x.shape[:-1]))
        return np.asarray(-0.5 * np.sum(x**2, axis=-1), x.dtype)

    def logdensity(x):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(black_box, shape, x, vmap_method="expand_dims")

    n = 16
    draws, info, pilot = sample(logdensity, jnp.zeros(2), 4, num_particles=n)
    assert np.all(np.isfinite(draws))
    assert np.sum(info.num_density_evals) == 4 * n * n
    assert calls["evaluations"] == int(pilot) + 4 * n * n


@pytest.mark.slow
def test_reference_comes_from_the_prior_where_there_is_one():
    prior = Prior(
        lambda key: 30 + 10 * jax.random.normal(key, (2,)),
        lambda x: -0.5 * jnp.sum((x - 30) ** 2) / 100,
    )
    draws, info, _ = sample(
        lambda x: -0.5 * jnp.sum((x - 40) ** 2), jnp.zeros(2), 4, prior=prior
    )
    assert abs(draws.mean() - 40) < 0.3
    # the evidence of two coordinates, from draws of the reference
    weights = np.exp(np.asarray(info.proposal_log_importance, float))
    error = weights.std() / len(weights) ** 0.5
    assert abs(weights.mean() - 2 * np.pi) < 4 * error
    assert error < 0.5
    assert not np.any(info.is_divergent)


def test_no_more_metropolis_steps_than_an_ensemble_has():
    with pytest.raises(errors.InvalidOption, match="num_refresh"):
        follmer.build_kernel(follmer.Options(num_particles=16, num_refresh=15))


def test_drift_is_the_denoisers_on_a_gaussian():
    """For pi = N(0, v), E[Y_1 | Y_t = y] = y v / (t v + 1 - t)."""
    v, t, n = 0.5, 0.4, 2000
    spread = jnp.sqrt(t * (t * v + 1 - t))
    key, node_key = jax.random.split(jax.random.key(0))
    y = spread * jax.random.normal(key, (n, 1))
    nodes = draw_nodes(node_key, y, t)
    log_ratio = -0.5 * jnp.sum(nodes**2, axis=1) * (1 / v - 1)
    weights = ensemble_weights(y, nodes, log_ratio, t)
    mean = weights.values @ nodes
    exact = y * v / (t * v + 1 - t)
    # about 1,000 nodes carry each weight: standard error 0.014
    assert float(jnp.sqrt(jnp.mean((mean - exact) ** 2))) < 0.05
    chosen = nodes[jump(key, weights)]
    assert abs(float(jnp.var(chosen)) - v) < 0.08


def test_time_step_bias_halves_with_the_step():
    """Euler on N(0, v) with the exact mean: the variance at time 0.8 is known."""
    v, end = 0.25, 0.8

    def variance(num_steps):
        """The recursion that the step's law implies, read off the code's own step."""
        h, value = end / num_steps, 0.0
        for k in range(num_steps):
            t = k * h
            one = jnp.ones((1, 1))
            mean = one * v / (t * v + 1 - t)
            shared = jax.random.key(k)
            slope = follmer_step(shared, one, mean, t, h) - follmer_step(
                shared, 0 * one, 0 * one, t, h
            )
            value = float(slope[0, 0]) ** 2 * value + h
        return value

    exact = end * (end * v + 1 - end)
    errors_ = [abs(variance(n) - exact) for n in (10, 20, 40)]
    ratios = np.array(errors_[:-1]) / np.array(errors_[1:])
    assert np.all((ratios > 1.6) & (ratios < 2.4)), errors_


@pytest.mark.slow
def test_the_exact_drift_gives_exact_draws_of_a_mixture():
    """.3 N(-1.5, .25 I) + .7 N(1, .5 I) in the plane, 20,000 paths of 400 steps to
    t = .9, where Y_1 is drawn given Y_t. Four standard errors, five comparisons: false
    alarms below 1e-3. The steps' own bias is below a standard error.
    """
    weights, centers = jnp.array([0.3, 0.7]), jnp.array([-1.5, 1.0])
    variances = jnp.array([0.25, 0.5])

    def given(y, t):
        """Log weights, means and variances of Y_1 given Y_t = y, by component."""
        precision = 1 / variances + 1 / (1 - t) - 1
        mean = centers / variances + y[:, None] / (1 - t)
        mean = mean / precision
        square = jnp.sum(mean**2 * precision - centers**2 / variances, axis=0)
        log_det = jnp.log(variances * precision)
        # two coordinates, each with half of the log determinant
        return jnp.log(weights) - log_det + 0.5 * square, mean, 1 / precision

    num_steps, end = 400, 0.9
    h = end / num_steps

    def path(key):
        def step(i, y):
            log_weight, mean, _ = given(y, i * h)
            expected = mean @ jax.nn.softmax(log_weight)
            return follmer_step(jax.random.fold_in(key, i), y, expected, i * h, h)

        y = jax.lax.fori_loop(0, num_steps, step, jnp.zeros(2))
        log_weight, mean, variance = given(y, end)
        keys = jax.random.split(jax.random.fold_in(key, num_steps))
        k = jax.random.categorical(keys[0], log_weight)
        return mean[:, k] + jnp.sqrt(variance[k]) * jax.random.normal(keys[1], (2,))

    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    x = np.asarray(jax.jit(jax.vmap(path))(keys), float)
    # the first coordinate and the second are in the same component
    left = (x.sum(1) + 0.5 < 0).mean()
    rng = np.random.default_rng(0)
    k = rng.choice(2, size=10**6, p=[0.3, 0.7])
    exact = np.array([-1.5, 1.0])[k, None]
    exact = exact + np.sqrt([0.25, 0.5])[k, None] * rng.standard_normal((10**6, 2))
    share = (exact.sum(1) + 0.5 < 0).mean()
    assert abs(left - share) < 4 * (share * (1 - share) / n) ** 0.5
    for i in range(2):
        for power in (1, 2):
            of = exact[:, i] ** power
            assert abs((x[:, i] ** power).mean() - of.mean()) < 4 * of.std() / n**0.5
