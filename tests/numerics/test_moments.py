"""The running moments are those of the values at once."""

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.numerics.moments import no_moments


def test_running_moments_are_those_of_all_values():
    # a mean of 100 sds, where sums of squares would lose four of float32's seven digits
    values = 100.0 + jax.random.normal(jax.random.key(0), (50, 3)) * jnp.arange(1.0, 4)
    for dense in (False, True):
        start = no_moments(values[0], dense=dense)
        found, _ = jax.lax.scan(lambda m, x: (m.plus(x), None), start, values)
        expected = np.cov(np.asarray(values, np.float64), rowvar=False)
        expected = expected if dense else np.diag(expected)
        assert found.number == 50
        np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.covariance(), expected, rtol=1e-3, atol=1e-3)


def test_a_coordinate_that_stays_put_can_be_divided_by():
    one = no_moments(jnp.zeros(2), dense=True).plus(jnp.ones(2))
    assert (one.covariance() == 0).all()
    assert (jnp.diag(one.invertible_covariance()) > 0).all()
    assert (no_moments(jnp.zeros(2)).invertible_covariance() > 0).all()
