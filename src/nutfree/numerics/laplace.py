"""The posterior mode and the curvature there, for kernels that are centred on it.

Optimisation is optax's L-BFGS with its zoom line search. A Hessian-vector product
counts as two gradients. Posteriors over many rows are in
`nutfree.minibatch.mode`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.preconditioning import matvec, root, transpose

#: Up to this dimension the curvature is a matrix, beyond it a diagonal.
DENSE_DIM = 100
#: Steps in a row of hardly any gain after which a climb ends.
PATIENCE = 5
#: A step of which the gradient promises less than this part of the least gain that
#: counts stands for `PATIENCE` of them.
AT_REST = 1e-4
#: Random vectors for the diagonal of the curvature, and steps for its largest value.
NUM_PROBES = 50
POWER_STEPS = 20


class Laplace(NamedTuple):
    """A Gaussian approximation at a mode.

    centre
        The mode, shape `(d,)`.
    covariance
        Of shape `(d, d)`, or `(d,)` for a diagonal one.
    curvature
        Largest eigenvalue of the precision in the coordinates that the covariance
        scales to one; 1 where the covariance is a matrix.
    distance
        How far from the mode the optimiser stopped, in posterior sds.
    """

    centre: jax.Array
    covariance: jax.Array
    curvature: jax.Array
    distance: jax.Array


def maximise(
    logdensity: Callable,
    x: jax.Array,
    count: jax.Array,
    *,
    max_steps: int = 200,
    tolerance: float = 1e-3,
    cost: float = 1.0,
    max_linesearch_steps: int = 15,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Climb from `x` until `PATIENCE` steps in a row gain less than `tolerance` nats.

    A step to where the log density or its gradient is not finite ends the climb at
    the point before.

    Returns:
        `(x, gradient at x, count)`; each evaluation counts `cost`.
    """
    x, gradient, count, _ = climb(
        logdensity,
        x,
        count,
        lambda seen, old, new, count: (seen, count),
        (),
        max_steps=max_steps,
        tolerance=tolerance,
        cost=cost,
        max_linesearch_steps=max_linesearch_steps,
    )
    return x, gradient, count


def climb(
    logdensity: Callable,
    x: jax.Array,
    count: Any,
    visit: Callable,
    seen: Any,
    *,
    max_steps: int,
    tolerance: float = 1e-3,
    patience: int = PATIENCE,
    cost: float = 1.0,
    max_linesearch_steps: int = 15,
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """`maximise`, showing every step that is not at rest to `visit`.

    Args:
        visit: `(seen, old, new, count) -> (seen, count)`; old and new are pairs of a
            point and the gradient of the log density there.
        seen: what `visit` carries, any pytree.

    Returns:
        `(x, gradient at x, count, seen)`.
    """
    search = optax.scale_by_zoom_linesearch(
        max_linesearch_steps, initial_guess_strategy="one"
    )
    optimiser = optax.lbfgs(linesearch=search)

    def objective(x):
        return -logdensity(x)

    def step(carry):
        x, value, gradient, state, idle, num_steps, count, seen = carry
        updates, state_new = optimiser.update(
            gradient, state, x, value=value, grad=gradient, value_fn=objective
        )
        line = state_new[-1]
        value_new, gradient_new, taken = line.value, line.grad, line.info
        x_new = x + updates
        ok = is_finite(x_new, value_new, gradient_new)
        # at rest: a search that finds nothing costs the most, and rounding leads it
        at_rest = jnp.abs(jnp.dot(x_new - x, gradient)) < AT_REST * tolerance
        idle = jnp.where(at_rest, idle + PATIENCE, idle + 1)
        idle = jnp.where(value - value_new > tolerance, 0, idle)
        old, new = (
            (x, value, gradient, state),
            (x_new, value_new, gradient_new, state_new),
        )
        count = count + cost * taken.num_linesearch_steps
        seen, count = jax.lax.cond(
            ok & ~at_rest,
            lambda: visit(seen, (x, -gradient), (x_new, -gradient_new), count),
            lambda: (seen, count),
        )
        kept = select(ok, new, old)
        return (*kept, jnp.where(ok, idle, patience), num_steps + 1, count, seen)

    def going(carry):
        *_, idle, num_steps, _, _ = carry
        return (idle < patience) & (num_steps < max_steps)

    value, gradient = jax.value_and_grad(objective)(x)
    idle = jnp.where(is_finite(value, gradient), 0, patience)
    carry = (x, value, gradient, optimiser.init(x), idle, 0, count + cost, seen)
    x, _, gradient, *_, count, seen = jax.lax.while_loop(going, step, carry)
    return x, -gradient, count, seen


def _hessian_product(logdensity: Callable, x: jax.Array) -> Callable:
    """`v -> -H v`, H the second derivatives of the log density at x."""
    return lambda v: -jax.jvp(jax.grad(logdensity), (x,), (v,))[1]


def precision(
    rng_key: jax.Array, logdensity: Callable, x: jax.Array, count, cost: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Minus the second derivatives at x: a matrix, or its diagonal beyond `DENSE_DIM`.

    The diagonal is Hutchinson's estimate, mean of v * (-H v) over random signs v.
    """
    product = _hessian_product(logdensity, x)
    dim = x.shape[0]
    if dim <= DENSE_DIM:
        rows = jax.lax.map(product, jnp.eye(dim, dtype=x.dtype), batch_size=16)
        return 0.5 * (rows + rows.T), count + 2 * cost * dim
    signs = jax.random.rademacher(rng_key, (NUM_PROBES, dim), x.dtype)
    diagonal = jax.lax.map(lambda v: v * product(v), signs)
    return jnp.mean(diagonal, axis=0), count + 2 * cost * NUM_PROBES


def positive(precision: jax.Array) -> jax.Array:
    """The nearest usable precision: negative curvature is reflected, none is zero.

    One that is not finite becomes the identity.
    """
    precision = jnp.where(is_finite(precision), precision, _identity(precision))
    eps = jnp.finfo(precision.dtype).eps
    if precision.ndim == 1:
        size = jnp.abs(precision)
        return jnp.maximum(size, eps * jnp.max(size) + jnp.finfo(size.dtype).tiny)
    values, vectors = jnp.linalg.eigh(precision)
    size = jnp.abs(values)
    floor = precision.shape[0] * eps * jnp.max(size) + jnp.finfo(size.dtype).tiny
    return (vectors * jnp.maximum(size, floor)) @ vectors.T


def inverse(precision: jax.Array) -> jax.Array:
    """The covariance of a positive precision, symmetric to the last bit."""
    if precision.ndim == 1:
        return 1 / precision
    # scaled to a unit diagonal, which single precision inverts more accurately
    scale = jnp.sqrt(jnp.diag(precision))
    values, vectors = jnp.linalg.eigh(precision / jnp.outer(scale, scale))
    floor = precision.shape[0] * jnp.finfo(values.dtype).eps * jnp.max(values)
    covariance = (vectors / jnp.maximum(values, floor)) @ vectors.T
    covariance = covariance / jnp.outer(scale, scale)
    return 0.5 * (covariance + covariance.T)


def _identity(precision: jax.Array) -> jax.Array:
    if precision.ndim == 1:
        return jnp.ones_like(precision)
    return jnp.eye(precision.shape[0], dtype=precision.dtype)


def largest_curvature(
    rng_key, logdensity: Callable, x, covariance, count, cost: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Largest eigenvalue of the preconditioned precision, by power iteration."""
    if covariance.ndim == 2:
        return jnp.ones((), x.dtype), count
    product, scale = _hessian_product(logdensity, x), jnp.sqrt(covariance)

    def step(_, carry):
        v, _ = carry
        image = scale * product(scale * v)
        size = jnp.linalg.norm(image)
        return jnp.where(size > 0, image / size, v), size

    v = jax.random.normal(rng_key, x.shape, x.dtype)
    start = (v / jnp.linalg.norm(v), jnp.ones((), x.dtype))
    _, size = jax.lax.fori_loop(0, POWER_STEPS, step, start)
    size = jnp.where(jnp.isfinite(size), jnp.maximum(size, 1.0), 1.0)
    return size, count + 2 * cost * POWER_STEPS


def laplace(rng_key, logdensity: Callable, x, count) -> tuple[Laplace, jax.Array]:
    """Mode and curvature of a log density over flat vectors, from the start `x`."""
    key, curvature_key = jax.random.split(rng_key)
    centre, gradient, count = maximise(logdensity, x, count)
    matrix, count = precision(key, logdensity, centre, count)
    covariance = inverse(positive(matrix))
    top, count = largest_curvature(curvature_key, logdensity, centre, covariance, count)
    distance = jnp.linalg.norm(matvec(transpose(root(covariance)), gradient))
    return Laplace(centre, covariance, top, distance), count
