"""Stan's warm-up, with a metric that knows no unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.warmup.window import WindowState, window_warmup


def _after_a_window(draws, metric):
    """The metric after a window of these draws, shape `(n, d)`, and one before it."""
    warmup = window_warmup(0.6, dense_mass=metric.ndim == 2, pilot=None, walk=False)
    state = warmup.init(jax.random.key(0), draws[0], lambda x: -jnp.sum(x**2), 0)
    schedule = jnp.asarray([[1, 0]] * (len(draws) - 1) + [[1, 1]])
    inner: WindowState = state.inner._replace(schedule=schedule)
    mass = inner.mass_matrix._replace(inverse_mass_matrix=metric)
    state = state._replace(inner=inner._replace(mass_matrix=mass))

    class Seen:
        acceptance_rate = jnp.asarray(0.6)

    def learn(state, x):
        seen = Seen()
        seen.position = x
        return warmup.update(state, seen, seen), None

    return jax.lax.scan(learn, state, draws)[0].params["inverse_mass_matrix"]


@pytest.mark.parametrize("dense", [False, True])
def test_very_narrow_and_very_wide_coordinates_keep_their_metric(dense):
    scale = jnp.asarray([1e-6, 1.0, 1e4])
    draws = scale * jax.random.normal(jax.random.key(1), (200, 3))
    variances = scale**2
    found = _after_a_window(draws, jnp.diag(variances) if dense else variances)
    found = jnp.diag(found) if dense else found
    # a variance from 200 draws is known within 10 %
    np.testing.assert_allclose(found / variances, 1.0, atol=0.5)


def test_a_window_without_a_move_teaches_nothing():
    metric = jnp.asarray([1e-6, 4.0])
    found = _after_a_window(jnp.ones((30, 2)), metric)
    np.testing.assert_array_equal(found, metric)
