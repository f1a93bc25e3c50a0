"""Products of a Hessian with a vector, by whatever rules its function has.

Forward over reverse is the cheapest. A function with a reverse-mode rule alone
(`jax.custom_vjp`, ODE solvers) may refuse that: then by reverse over reverse, and where
that is refused too, by central differences of gradients.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nutfree.numerics.programs import inner_jaxprs

#: Relative step of the differences, in powers of the precision.
DIFFERENCE = 1 / 3


def hessian_product(gradient: Callable, x: jax.Array) -> Callable:
    """Return `v -> H v`, H the derivatives of `gradient` at x, of shape `(d, d)`."""
    if not _has_reverse_rule(jax.make_jaxpr(gradient)(x).jaxpr):
        return lambda v: jax.jvp(gradient, (x,), (v,))[1]

    def reverse(v):
        return jax.vjp(gradient, x)[1](v)[0]

    try:
        jax.eval_shape(reverse, x)
    # a custom rule is the user's own code, and may raise anything where it is
    # differentiated again. It has been traced above, and differences take its place
    except Exception:
        return lambda v: _difference(gradient, x, v)
    return reverse


def _difference(gradient: Callable, x: jax.Array, v: jax.Array) -> jax.Array:
    size = jnp.linalg.norm(v)
    along = v / jnp.where(size > 0, size, 1.0)
    scale = jnp.maximum(1.0, jnp.abs(along @ x))
    step = jnp.finfo(x.dtype).eps ** DIFFERENCE * scale * along
    change = gradient(x + step) - gradient(x - step)
    return change * size / (2 * jnp.where(size > 0, jnp.linalg.norm(step), 1.0))


def _has_reverse_rule(jaxpr) -> bool:
    """Say whether a program calls what has a reverse-mode rule of its own."""
    return any(
        eqn.primitive.name.startswith("custom_vjp_call")
        or any(_has_reverse_rule(inner) for inner, _ in inner_jaxprs(eqn))
        for eqn in jaxpr.eqns
    )
