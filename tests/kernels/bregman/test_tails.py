"""Coordinates with the tails of a Gaussian: inverses, Jacobians, and what they do."""

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.kernels.bregman import tails

#: Exponential and lighter sides, a linear one, and a coordinate that is left alone.
CURVE = tails.Tails(
    jnp.array([True, True, True, False]),
    *jnp.array([[-3.0, 0, 2, 0], [1, 2, 0.3, 1], [0.5, 1, 1, 1]]),
    *jnp.array([[1.0, 0, -1, 0], [-1.5, 0, 1, 0]]),
)


def test_coordinates_invert_and_have_their_jacobian():
    @jax.jit
    @jax.vmap
    def there_and_back(s):
        z, log_slope = CURVE.leave(s)
        jacobian = jax.jacfwd(lambda s: CURVE.leave(s)[0])(s)
        return CURVE.enter(z), log_slope, jnp.sum(jnp.log(jnp.diag(jacobian)))

    s = jnp.linspace(-9, 9, 37)[:, None] * jnp.ones(4)
    back, log_slope, expected = there_and_back(s)
    np.testing.assert_allclose(back, s, atol=1e-4)
    np.testing.assert_allclose(log_slope, expected, rtol=1e-4, atol=1e-5)


def test_the_log_of_a_gamma_variate_becomes_nearly_gaussian():
    """E x^2 E g^2, 1 for a Gaussian, of 4,000 draws: z has 5, 1.5 and 1."""
    shape = jnp.array([0.2, 1.0, 20.0])
    z = jax.random.loggamma(jax.random.key(0), shape, (4000, 3))

    @jax.jit
    def measure(z):
        zero = tails.no_draws(z[0])
        sides = jax.lax.scan(lambda c, x: (c.plus(x), None), zero, z[:500])[0]
        curve = sides.tails(jnp.ones(3, bool))

        def logdensity(s):
            z, log_slope = curve.leave(s)
            return jnp.sum(shape * z - jnp.exp(z)) + log_slope

        s = jax.vmap(curve.enter)(z)
        return jnp.var(s, 0) * jnp.mean(jax.vmap(jax.grad(logdensity))(s) ** 2, 0)

    assert np.all(measure(z) < 1.25)


def test_few_draws_leave_coordinates_as_they_are():
    z = jax.random.normal(jax.random.key(0), (8, 2))
    sides = tails.no_draws(z[0])
    for row in z:
        sides = sides.plus(row)
    assert not np.any(sides.tails(jnp.ones(2, bool)).bent)
