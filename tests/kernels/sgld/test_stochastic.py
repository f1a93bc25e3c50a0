"""The law of each stochastic-gradient dynamics with each estimator, on a Gaussian.

Rows have linear gradients of different slopes, so that a batch's noise depends on where
the chain is; the discretised chain is then a linear recursion with random maps, and its
mean and covariance are known exactly.
"""

from functools import partial
from importlib import import_module
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree import registry
from nutfree.minibatch.gradients import control_at
from nutfree.minibatch.sampling import row_shares
from nutfree.target import Minibatch, Target
from tests.recursions import Recursion, stationary

# gradient of row i: a_i - b_i x; the prior's: -x
A = np.array([2.0, -1.0, 0.5, 3.0, 0.0, 1.0])
B = np.array([0.3, 0.8, 1.0, 1.4, 0.5, 2.0])
N = len(A)
PRECISION = 1 + B.sum()
SCALE = PRECISION**-0.5
MEAN = A.sum() / PRECISION
FRICTION = 1.5


def rows_of_slopes() -> Target:
    a, b = jnp.asarray(A), jnp.asarray(B)

    def terms(x, indices):
        slope, curve = a[indices].astype(x.dtype), b[indices].astype(x.dtype)
        return -0.5 * jnp.sum(x**2), slope * x[0] - 0.5 * curve * x[0] ** 2

    minibatch = Minibatch(N, terms)
    return Target(lambda x: minibatch.logdensity(x, jnp.arange(N)), minibatch=minibatch)


@pytest.fixture(scope="module")
def target():
    return rows_of_slopes()


def langevin(at_zero, slope, h):
    """u' = u + (h/2) g + N(0, h), where g is the gradient at_zero - slope u."""
    return [[1 - 0.5 * h * slope]], [0.5 * h * at_zero], [[h]]


def euler(at_zero, slope, h):
    kept = 1 - FRICTION * h
    maps = [[1 - h * h * slope, h * kept], [-h * slope, kept]]
    noise = 2 * FRICTION * h * np.array([[h * h, h], [h, 1]])
    return maps, [h * h * at_zero, h * at_zero], noise


def baoab(at_zero, slope, h):
    kept = np.exp(-FRICTION * h)
    kick, fresh = np.array([0.5 * h * (1 + kept), kept]), np.array([0.5 * h, 1])
    maps = np.array([[1, kick[0]], [0, kept]])
    maps[:, 0] -= h * slope * kick
    return maps, h * at_zero * kick, (1 - kept**2) * np.outer(fresh, fresh)


DYNAMICS = {
    "sgld": (langevin, {}, 0.4),
    "psgld": (langevin, {"smoothing": 1.0}, 0.4),
    "sghmc": (euler, {"friction": FRICTION}, 0.3),
    "sgbaoab": (baoab, {"friction": FRICTION}, 0.5),
}


def recursion(dynamics, h, at_zero, slopes, chances=None):
    """Over batches of one row, with gradients at_zero[k] - slopes[k] u."""
    steps = [dynamics(s, t, h) for s, t in zip(at_zero, slopes)]
    maps, offsets, noise = (np.array(part, float) for part in zip(*steps))
    return Recursion(maps, offsets, noise[0], chances)


def law(draws):
    draws = np.asarray(draws, float)
    return draws.mean(0), np.cov(draws.T).reshape(draws.shape[1], -1)


def check(u, expected):
    """Position's mean and variance within four and a half Monte-Carlo errors or so."""
    mean, covariance = expected
    u = np.asarray(u, float).ravel()
    error = np.sqrt(covariance[0, 0] / u.size)
    # 1e-5 false alarms each; the noise's kurtosis leaves variances 2 % of error
    assert abs(u.mean() - mean[0]) < 4.5 * error
    np.testing.assert_allclose(u.var(), covariance[0, 0], rtol=0.06)


@partial(jax.jit, static_argnames=("target", "name", "static", "num_transitions"))
def _ends(keys, params, target, name, static, num_transitions):
    spec = registry.get(name)
    options = spec.options(**dict(static))
    kernel = spec.build_kernel(options)

    def one(key):
        state = spec.init(jnp.asarray([MEAN]), target, key, options)

        def body(state, key):
            return kernel(
                key, state, target, inverse_mass_matrix=1 / PRECISION, **params
            )

        keys = jax.random.split(key, num_transitions)
        state, info = jax.lax.scan(body, state, keys)
        return state.ahead, info.is_divergent.any()

    return jax.vmap(one)(keys)


def whitened_ends(target, name, params, *, num_transitions=4, chains=20_000, **static):
    """Where many chains' next gradient would be taken, in units of posterior sd."""
    keys = jax.random.split(jax.random.key(0), chains)
    static = tuple({"batch_size": 1, **static}.items())
    ahead, divergent = _ends(keys, params, target, name, static, num_transitions)
    assert not divergent.any()
    return ahead / SCALE


def test_an_autoregression_has_its_textbook_variance():
    one = Recursion(np.full((1, 1, 1), 0.5), np.full((1, 1), 1.0), np.eye(1))
    mean, covariance = stationary([one])
    np.testing.assert_allclose(mean, 2.0)
    np.testing.assert_allclose(covariance, 1 / 0.75)


def dynamics_of(*quick):
    """The estimators know nothing of the dynamics: the quick suite looks at some."""
    names = [
        n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in DYNAMICS
    ]
    return pytest.mark.parametrize("name", names)


@pytest.mark.slow
@pytest.mark.parametrize("name", DYNAMICS)
def test_plain_gradients_have_the_law_of_the_random_recursion(name, target):
    dynamics, settings, h = DYNAMICS[name]
    u = whitened_ends(
        target, name, settings | {"step_size": h, "num_steps": 6}, gradient="plain"
    )
    steps = recursion(dynamics, h, SCALE * N * A, SCALE**2 * (1 + N * B))
    check(u, stationary([steps]))


@dynamics_of("sgld", "sgbaoab")
def test_control_variates_have_the_law_of_the_random_recursion(name, target):
    dynamics, settings, h = DYNAMICS[name]
    centre = MEAN + SCALE
    control, _ = control_at(target.minibatch, jnp.asarray([centre]), 0.0)
    u = whitened_ends(
        target, name, settings | {"step_size": h, "num_steps": 6, "control": control}
    )
    full = A.sum() - B.sum() * centre
    at_zero, slopes = SCALE * (full + N * B * centre), SCALE**2 * (1 + N * B)
    steps = recursion(dynamics, h, at_zero, slopes)
    check(u, stationary([steps]))


def with_snapshot(dynamics, h):
    """In coordinates (u, ..., w), where the snapshot w enters the gradient with slopes
    of its own: the recursion between refreshes, and a refresh."""
    inner = recursion(dynamics, h, SCALE * A.sum() + 0 * B, SCALE**2 * (1 + N * B))
    push = recursion(dynamics, h, SCALE**2 * (N * B - B.sum()), 0 * B).offsets
    size = inner.maps.shape[1]
    maps = np.zeros((N, size + 1, size + 1))
    maps[:, :size, :size], maps[:, :size, size], maps[:, size, size] = (
        inner.maps,
        push,
        1,
    )
    widened = Recursion(
        maps, np.pad(inner.offsets, ((0, 0), (0, 1))), np.pad(inner.noise, (0, 1))
    )
    take = np.eye(size + 1)
    take[size] = np.eye(size + 1)[0]
    refresh = Recursion(take[None], np.zeros((1, size + 1)), np.zeros_like(take))
    return widened, refresh


def with_table(dynamics, h):
    """In coordinates (u, ..., T_1, ..., T_N), where row k's gradient was T_k when it
    was last drawn, all gradients in units of the posterior."""
    # what a step does without a gradient, and how a gradient of one pushes it
    still, _, noise = (np.array(part, float) for part in dynamics(0.0, 0.0, h))
    push = np.array(dynamics(1.0, 0.0, h)[1], float)
    size = len(push)
    maps, offsets = np.zeros((N, size + N, size + N)), np.zeros((N, size + N))
    for k in range(N):
        at_row = np.zeros(size + N)
        at_row[0] = -(SCALE**2) * B[k]
        gradient = np.zeros(size + N)
        gradient[0], gradient[size:] = -(SCALE**2), 1
        gradient += N * at_row
        gradient[size + k] -= N
        maps[k] = np.eye(size + N)
        maps[k, :size, :size] = still
        maps[k, :size] += np.outer(push, gradient)
        maps[k, size + k] = at_row
        offsets[k, :size] = push * N * SCALE * A[k]
        offsets[k, size + k] = SCALE * A[k]
    return Recursion(maps, offsets, np.pad(noise, (0, N)))


@dynamics_of("sgbaoab")
def test_svrg_has_the_law_of_the_recursion_with_its_snapshot(name, target):
    dynamics, settings, h = DYNAMICS[name]
    period = 5
    u = whitened_ends(
        target,
        name,
        settings | {"step_size": h, "num_steps": period},
        gradient="svrg",
        refresh_every=period,
    )
    widened, refresh = with_snapshot(dynamics, h)
    check(u, stationary([refresh, *[widened] * period]))


@dynamics_of("sgld")
def test_saga_has_the_law_of_the_recursion_with_its_table(name, target):
    dynamics, settings, h = DYNAMICS[name]
    u = whitened_ends(
        target, name, settings | {"step_size": h, "num_steps": 8}, gradient="saga"
    )
    check(u, stationary([with_table(dynamics, h)]))


@pytest.mark.slow
def test_importance_sampling_has_the_law_of_its_own_batches(target):
    h, importance = 0.4, np.array([1.0, 2.0, 1.0, 4.0, 1.0, 3.0])
    shares = row_shares(jnp.asarray(importance))
    u = whitened_ends(
        target,
        "sgld",
        {"step_size": h, "num_steps": 6, "shares": shares},
        gradient="plain",
        sampling="importance",
    )
    chances = np.asarray(shares.entries) / len(shares.table)
    # one row of probability p has weight 1/p
    steps = recursion(langevin, h, SCALE * A / chances, SCALE**2 * (1 + B / chances))
    check(u, stationary([steps._replace(chances=chances)]))


def test_batches_without_replacement_have_less_noise_by_what_theory_says(target):
    h, n = 0.4, 3
    u = whitened_ends(
        target,
        "sgld",
        {"step_size": h, "num_steps": 6},
        gradient="plain",
        replacement=False,
        batch_size=n,
    )
    batches = [list(c) for c in combinations(range(N), n)]
    at_zero = np.array([SCALE * N / n * A[c].sum() for c in batches])
    slopes = np.array([SCALE**2 * (1 + N / n * B[c].sum()) for c in batches])
    check(u, stationary([recursion(langevin, h, at_zero, slopes)]))


@pytest.mark.parametrize("name", ["sgld", "sghmc", "sgbaoab"])
@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_predicted_inflation_is_that_of_the_recursion(name, noise):
    dynamics, settings, h = DYNAMICS[name]
    spread = np.sqrt(noise) * np.array([-1.0, 1.0])
    _, covariance = stationary([recursion(dynamics, h, spread, np.ones(2))])
    predicted = _dynamics(name).inflation(jnp.asarray(h), noise, 1.0, 1, **settings)
    np.testing.assert_allclose(predicted, covariance[0, 0] - 1, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["sgld", "sghmc", "sgbaoab"])
@pytest.mark.parametrize("noise", [50.0, 1000.0])
def test_a_small_step_is_tuned_in_single_precision(name, noise):
    dynamics = _dynamics(name)
    found = dynamics.tune(0.05, jnp.asarray(noise), 1.0, dynamics.settings)
    # at friction 2, h V / 4 for small steps, as without a momentum
    np.testing.assert_allclose(found["step_size"], 4 * 0.05 / noise, rtol=0.05)


@pytest.mark.parametrize(
    ("name", "noise", "order"),
    [("sgld", 0, 1), ("sghmc", 0, 2), ("sghmc", 5, 1), ("sgbaoab", 5, 1)],
)
def test_inflation_on_a_gaussian_falls_at_its_stated_order(name, noise, order):
    _, settings, _ = DYNAMICS[name]
    large, small = (
        float(_dynamics(name).inflation(jnp.asarray(h), noise, 1.0, 1, **settings))
        for h in (0.04, 0.02)
    )
    assert large / small == pytest.approx(2**order, rel=0.1)


def _dynamics(name):
    return import_module(f"nutfree.kernels.sgld.{name}").DYNAMICS


def test_baoab_positions_have_no_bias_on_a_gaussian_with_exact_gradients():
    inflation = _dynamics("sgbaoab").inflation
    for h in (0.5, 1.0, 1.9):
        error = inflation(jnp.asarray(h), 0.0, 1.0, 1, friction=1.0)
        assert abs(float(error)) < 1e-4
    assert inflation(jnp.asarray(2.1), 0.0, 1.0, 1, friction=1.0) == jnp.inf


def one_dimensional(potential):
    """Minus the potential of x, from two rows alike."""
    minibatch = Minibatch(
        2, lambda x, indices: (0.0 * x[0], -0.5 * potential(x[0]) + 0.0 * indices)
    )
    return Target(lambda x: -potential(x[0]), minibatch=minibatch)


@pytest.mark.slow
def test_baoab_bias_falls_with_the_square_of_the_step_away_from_gaussians():
    def potential(x):
        return 0.5 * x**2 + jnp.cos(2 * x)

    target = one_dimensional(potential)
    x = np.linspace(-9, 9, 20_001)
    exact = np.average(x**2, weights=np.exp(-np.asarray(potential(x), float)))
    spec = registry.get("sgbaoab")
    kernel = spec.build_kernel(spec.options(batch_size=2, gradient="plain"))

    def mean_square(step_size, key):
        state = spec.init(jnp.zeros(1), target, key)

        def body(carry, key):
            state, total = carry
            state, _ = kernel(key, state, target, step_size, num_steps=4, friction=1.0)
            return (state, total + state.position[0] ** 2), None

        burnt, _ = jax.lax.scan(body, (state, 0.0), jax.random.split(key, 40))
        keys = jax.random.split(jax.random.fold_in(key, 1), 2000)
        (_, total), _ = jax.lax.scan(body, (burnt[0], 0.0), keys)
        return total / 2000

    keys = jax.random.split(jax.random.key(0), 20_000)
    run = jax.jit(jax.vmap(mean_square, (None, 0)))
    large, small = (float(run(h, keys).mean()) - exact for h in (0.4, 0.2))
    # Monte-Carlo errors of 2e-4; the larger bias is 6e-3
    assert abs(large) > 3e-3
    assert 2.5 < large / small < 6.5


@pytest.mark.slow
def test_without_memory_psgld_has_the_law_that_leaving_out_gamma_gives():
    # |g| = 1 + |x|, so that pi/G is (1 + |x|) exp(-|x| - x^2/2)
    target = one_dimensional(lambda x: jnp.abs(x) + 0.5 * x**2)
    spec = registry.get("psgld")
    kernel = spec.build_kernel(spec.options(batch_size=2, gradient="plain"))

    def one(key, smoothing):
        state = spec.init(jnp.zeros(1), target, key)
        params = {"step_size": 0.02, "num_steps": 400, "smoothing": smoothing}
        return kernel(key, state, target, **params)[0].position[0]

    keys = jax.random.split(jax.random.key(0), 6000)
    run = jax.jit(jax.vmap(one, (0, None)))
    x = np.linspace(-8, 8, 4001)
    density = np.exp(-np.abs(x) - x**2 / 2)
    for smoothing, weight in ((0.0, 1 + np.abs(x)), (0.99999, 1.0)):
        expected = np.average(x**2, weights=density * weight)
        # four Monte-Carlo errors of 2.5 %; the two laws' variances differ by 41 %
        got = float(jnp.var(run(keys, smoothing)))
        assert got == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("friction", [0.2, 2.0, 10.0])
def test_the_step_has_the_inflation_asked_for_at_each_friction(friction):
    dynamics, settings = _dynamics("sghmc"), {"friction": friction}
    step_size = dynamics.tune(0.05, jnp.asarray(3.0), 1.0, settings)["step_size"]
    predicted = dynamics.inflation(step_size, 3.0, 1.0, 1, **settings)
    assert float(predicted) == pytest.approx(0.05, rel=0.02)


@pytest.mark.slow
def test_the_step_is_tuned_at_the_friction_that_the_user_fixed(target):
    options = {"gradient": "plain", "sampling": "uniform", "friction": 0.2}
    spec = registry.get("sghmc")
    init = spec.warmup(spec.options(batch_size=2, **options)).init
    run = jax.jit(lambda key: init(key, jnp.zeros(1), target, 0).params)
    found = run(jax.random.key(0))
    noise, curvature = jnp.max(found["gradient_noise"]), found["curvature"]
    inflation = _dynamics("sghmc").inflation
    predicted = inflation(found["step_size"], noise, curvature, 1, friction=0.2)
    assert float(predicted) == pytest.approx(0.05, rel=0.02)
