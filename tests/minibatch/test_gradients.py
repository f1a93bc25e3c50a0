import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.minibatch.gradients import (
    Control,
    control_at,
    control_variate,
    default_batch_size,
    full_logdensity,
    plain,
    sum_rows,
    whitened_noise,
)
from nutfree.minibatch.sampling import Rows, draw_rows
from nutfree.numerics.programs import full_precision
from nutfree.target import Minibatch

ESTIMATORS = {"plain": plain, "control_variate": control_variate}


def logistic(num_data, dim, seed=0):
    """Rows of a logistic regression with a N(0, 4) prior, and its arrays."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_data, dim)).astype(np.float32)
    X[:, 0] = 1
    truth = 0.5 * rng.normal(size=dim)
    y = (rng.uniform(size=num_data) < 1 / (1 + np.exp(-X @ truth))).astype(np.float32)
    features, labels = jnp.asarray(X), jnp.asarray(y)

    def terms(x, indices):
        logits = features[indices] @ x
        return -jnp.sum(x**2) / 8, labels[indices] * logits - jax.nn.softplus(logits)

    return Minibatch(num_data, terms), X, y, truth


def alike(indices, num_data):
    return Rows(indices, jnp.full(indices.shape, num_data / indices.shape[0]))


def exact_rows_gradient(X, y, x):
    X = X.astype(np.float64)
    return X.T @ (y - 1 / (1 + np.exp(-X @ np.asarray(x, np.float64))))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_are_unbiased(name):
    # the mean over all batches of one row is the expectation, to rounding
    minibatch, *_ = logistic(300, 4)
    x, centre = jnp.array([0.1, -0.4, 0.9, 0.3]), jnp.array([0.3, 0.0, 0.5, 0.5])
    control, _ = control_at(minibatch, centre, 0.0)

    def estimate(i):
        return ESTIMATORS[name](minibatch, alike(i[None], 300), x, control, 0.0)[0]

    mean = jnp.mean(jax.jit(jax.vmap(estimate))(jnp.arange(300)), axis=0)
    expected = jax.jit(jax.grad(minibatch.logdensity))(x, jnp.arange(300))
    np.testing.assert_allclose(mean, expected, rtol=1e-3, atol=1e-2)


def test_control_variate_is_exact_at_its_centre():
    minibatch, *_ = logistic(300, 4)
    centre = jnp.array([0.3, 0.0, 0.5, 0.5])
    control, _ = control_at(minibatch, centre, 0.0)
    full = jax.jit(jax.grad(minibatch.logdensity))(centre, jnp.arange(300))
    at_centre = jax.jit(
        lambda rows: control_variate(minibatch, rows, centre, control, 0.0)
    )
    for indices in (jnp.array([5]), jnp.array([1, 1, 200])):
        rows = alike(indices, 300)
        got, _ = at_centre(rows)
        np.testing.assert_allclose(got, full, rtol=1e-3, atol=1e-3)


def test_control_variate_has_less_noise_near_its_centre():
    minibatch, *_ = logistic(2000, 3)
    centre = jnp.array([0.1, 0.2, 0.3])
    control, _ = control_at(minibatch, centre, 0.0)
    variance = {}
    for name, estimator in ESTIMATORS.items():

        def estimate(key, x, count, estimator=estimator):
            indices = draw_rows(key, 2000, 50)
            return estimator(minibatch, indices, x, control, count)

        places = centre + 0.02 * jax.random.normal(jax.random.key(1), (64, 3))
        variance[name], _, _ = whitened_noise(
            jax.random.key(0), estimate, places, lambda g: g, 0.0
        )
    assert jnp.all(variance["control_variate"] < 0.01 * variance["plain"])


@pytest.mark.parametrize(("name", "cost"), [("plain", 0.1), ("control_variate", 0.2)])
def test_a_batch_counts_the_rows_it_evaluates(name, cost):
    minibatch, *_ = logistic(300, 2)
    control = Control(jnp.zeros(2), jnp.zeros(2))
    rows = alike(jnp.arange(30), 300)
    _, count = ESTIMATORS[name](minibatch, rows, jnp.ones(2), control, 1.0)
    np.testing.assert_allclose(count, 1 + cost, rtol=1e-6)


def test_whitened_noise_is_the_variance_of_the_batches():
    # rows with gradients a_i: one batch has variance (N^2/n) var(a)
    a = jnp.asarray(np.random.default_rng(0).normal(size=400))
    minibatch = Minibatch(400, lambda x, i: (jnp.sum(x) * 0.0, a[i] * x[0]))

    def estimate(key, x, count):
        return plain(minibatch, draw_rows(key, 400, 20), x, (), count)

    places = jax.random.normal(jax.random.key(2), (2000, 1))
    noise, _, count = whitened_noise(
        jax.random.key(1), estimate, places, lambda g: g / 3, 0.0
    )
    expected = 400**2 / 20 * jnp.var(a) / 9
    # relative Monte-Carlo error sqrt(2/2000) = 0.03; four of them: 6e-5 false alarms
    np.testing.assert_allclose(noise[0], expected, rtol=0.13)
    np.testing.assert_allclose(count, 2 * 2000 * 20 / 400, rtol=1e-4)


def test_size_of_the_gradient_is_the_dimension_on_a_gaussian_whatever_the_noise():
    a = jnp.asarray(np.random.default_rng(0).normal(size=(400, 3)))
    a -= a.mean(0)
    minibatch = Minibatch(400, lambda x, i: (-0.5 * x @ x, a[i] @ x))

    def estimate(key, x, count):
        return plain(minibatch, draw_rows(key, 400, 20), x, (), count)

    places = jax.random.normal(jax.random.key(2), (5000, 3))
    noise, size, _ = whitened_noise(
        jax.random.key(1), estimate, places, lambda g: g, 0.0
    )
    # sd of a product of gradients about |V|, and of the mean 1/70 of that
    error = jnp.linalg.norm(noise) / 5000**0.5
    assert jnp.max(noise) > 3000
    assert abs(size - 3.0) < 4 * error


def test_nothing_is_measured_that_is_not_due():
    def estimate(key, x, count):
        return x, count + 1.0

    for due in (True, False):
        found = jax.jit(
            lambda due: whitened_noise(
                jax.random.key(0), estimate, jnp.ones((5, 2)), lambda g: g, 0.0, due
            )
        )(due)
        np.testing.assert_allclose(found[1], 2.0 * due)
        np.testing.assert_allclose(found[2], 10.0 * due)


@pytest.mark.parametrize("block_size", [7, 100, 1000, 5000])
def test_blocks_cover_every_row_once(block_size):
    minibatch, X, y, _ = logistic(1000, 3)
    x = jnp.array([0.5, -0.5, 0.1])
    (value, gradient), (value_low, gradient_low) = sum_rows(minibatch, x, block_size)
    rows = minibatch.terms(x, jnp.arange(1000))[1]
    np.testing.assert_allclose(value + value_low, jnp.sum(rows), rtol=1e-5)
    expected = exact_rows_gradient(X, y, x)
    np.testing.assert_allclose(gradient + gradient_low, expected, rtol=1e-4, atol=1e-4)


def test_sums_over_blocks_keep_their_rounding_errors():
    # the running sum climbs to 10^7 and comes back: float32 alone forgets the rest
    size = 20_000
    small = np.random.default_rng(0).normal(size=size).astype(np.float32)
    large = np.where(np.arange(size) < size // 2, 1e3, -1e3).astype(np.float32)
    a = (small + large).astype(np.float32)
    rows = jnp.asarray(a)
    minibatch = Minibatch(size, lambda x, i: (0.0 * x[0], rows[i] * x[0]))
    (_, high), (_, low) = sum_rows(minibatch, jnp.ones(1), block_size=10)
    exact = np.sum(a.astype(np.float64))
    assert abs(np.float64(high[0] + low[0]) - exact) < 0.1
    assert abs(np.cumsum(a, dtype=np.float32)[-1] - exact) > 1


def test_full_logdensity_resolves_small_differences_of_large_sums():
    # two log densities near -10^6 that differ by less than float32 resolves there
    size = 30_000
    minibatch = Minibatch(
        size, lambda x, i: (0.0 * x[0], -33.0 - 0.5 * x[0] ** 2 + 0.0 * i)
    )
    climb = full_logdensity(minibatch, jnp.zeros(1))
    x = jnp.array([1e-3])
    np.testing.assert_allclose(climb(x), -0.015, atol=2e-2)
    np.testing.assert_allclose(jax.grad(climb)(x), [-30.0], rtol=1e-5)
    assert float(climb(jnp.zeros(1))) == 0.0


def test_full_logdensity_works_for_many_positions_at_once():
    minibatch, *_ = logistic(500, 2)
    climb = full_logdensity(minibatch, jnp.zeros(2))
    xs = jax.random.normal(jax.random.key(0), (4, 2))
    with full_precision():
        one = jax.value_and_grad(climb)
        together, alone = jax.jit(jax.vmap(one))(xs), jax.jit(one)
        apart = [alone(x) for x in xs]
    for i, (value, gradient) in enumerate(apart):
        np.testing.assert_allclose(together[0][i], value, rtol=1e-5)
        np.testing.assert_allclose(together[1][i], gradient, rtol=1e-4, atol=1e-3)


def centre_error(num_data):
    """Error of the control's gradient in units of the posterior sd, float32."""
    minibatch, X, y, truth = logistic(num_data, 20)
    centre = jnp.asarray(truth, jnp.float32)
    control, _ = jax.jit(lambda c: control_at(minibatch, c, 0.0))(centre)
    p = 1 / (1 + np.exp(-X @ truth))
    precision = np.einsum("ij,i,ik->jk", X, p * (1 - p), X, optimize=True)
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    error = np.asarray(control.rows_gradient, np.float64)
    return np.max(np.abs(error - exact_rows_gradient(X, y, centre)) * sd)


def test_gradient_at_the_centre_is_exact_in_float32():
    assert centre_error(50_000) < 1e-4


@pytest.mark.slow
def test_gradient_at_the_centre_is_exact_in_float32_with_a_million_rows():
    assert centre_error(1_000_000) < 1e-4


@pytest.mark.parametrize(
    ("num_data", "dim", "expected"),
    [
        (50, 3, 50),
        (5_000, 3, 100),
        (32_561, 44, 440),
        (1_000_000, 20, 1000),
        (10_000, 5_000, 1000),
    ],
)
def test_default_batch_grows_with_rows_and_dimension(num_data, dim, expected):
    assert default_batch_size(num_data, dim) == expected
