"""A Hessian's products, whatever rules its function is differentiated by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.ode import odeint

from nutfree.numerics.hessian import hessian_product

A = jnp.asarray([[2.0, 0.5], [0.5, 1.0]])


def smooth(x):
    return jnp.sum(jnp.sin(x @ A)) + x @ A @ x


def by_a_solver(x):
    """x[0] exp(-x[1]) and more, by an equation that is solved backwards, too."""
    ends = odeint(lambda z, t: -x[1] * z, x[0], jnp.linspace(0.0, 1.0, 3))
    return jnp.sum(ends) + jnp.sum(x**2)


def _closed_form(x):
    times = jnp.linspace(0.0, 1.0, 3)
    return jnp.sum(x[0] * jnp.exp(-x[1] * times)) + jnp.sum(x**2)


@jax.custom_vjp
def once(x):
    return smooth(x)


def _host_gradient(x):
    return np.asarray(jax.grad(smooth)(x))


def _backward(x, g):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return (g * once_more(jax.pure_callback(_host_gradient, shape, x)),)


@jax.custom_vjp
def once_more(x):
    return x


once.defvjp(lambda x: (smooth(x), x), _backward)
once_more.defvjp(lambda x: (x, None), lambda _, g: (g,))


@pytest.mark.parametrize(
    ("fn", "same", "tolerance"),
    [
        (smooth, smooth, 1e-6),
        (by_a_solver, _closed_form, 1e-4),
        # differences of float32
        (once, smooth, 2e-2),
    ],
)
def test_products_are_those_of_the_hessian(fn, same, tolerance):
    x = jnp.asarray([0.7, -0.4])
    expected = jax.hessian(same)(x)
    made = jax.jit(lambda x: jax.lax.map(hessian_product(jax.grad(fn), x), jnp.eye(2)))(
        x
    )
    np.testing.assert_allclose(made, expected, atol=tolerance)
    np.testing.assert_array_equal(
        hessian_product(jax.grad(fn), x)(jnp.zeros(2)), jnp.zeros(2)
    )
