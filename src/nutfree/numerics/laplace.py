"""The posterior mode and the curvature there, for kernels that are centred on it.

`climb` is optax's L-BFGS with its zoom line search, for one start that is to arrive: it
ends by itself, at a mode to the last few hundredths of a nat. A bounded number of
gradients for each of many starts is spent by `nutfree.numerics.descent`. Posteriors
over many rows are in `nutfree.minibatch.mode`. A product with the Hessian counts as two
gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.hessian import hessian_product

#: Up to this dimension the curvature is a matrix, beyond it a diagonal.
DENSE_DIM = 100
#: Steps in a row of hardly any gain after which a climb ends.
PATIENCE = 5
#: A step of which the gradient promises less than this part of the least gain that
#: counts stands for `PATIENCE` of them.
AT_REST = 1e-4
#: Random signs that estimate the diagonal of the curvature.
NUM_PROBES = 50
#: Steps of the power iteration for its largest eigenvalue.
POWER_STEPS = 20


class Laplace(NamedTuple):
    """The Gaussian approximation at a mode.

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
    """Climb like `maximise`, and show every step that is not at rest to `visit`.

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


def precision_product(logdensity: Callable, x: jax.Array) -> Callable:
    """Return `v -> -H v`, H the second derivatives of the log density at x."""
    product = hessian_product(jax.grad(logdensity), x)
    return lambda v: -product(v)


def hutchinson_diagonal(
    product: Callable, signs: jax.Array, *others: jax.Array
) -> jax.Array:
    """Estimate the diagonal of a matrix A by the mean of v * (A v) over random signs v.

    Reference: Hutchinson, Communications in Statistics 19(2), 1990. Unbiased, and exact
    where A is diagonal.

    Args:
        product: `(v, *other) -> A v`, or an unbiased estimate of it.
        signs: the vectors v, shape `(n, d)`.
        others: what else each product takes, such as a key, shape `(n, ...)`.
    """
    terms = jax.lax.map(lambda probe: probe[0] * product(*probe), (signs, *others))
    return jnp.mean(terms, axis=0)


def precision(
    rng_key: jax.Array,
    logdensity: Callable,
    x: jax.Array,
    count: Any,
    cost: float = 1.0,
    *,
    dense_dim: int = DENSE_DIM,
    num_probes: int = NUM_PROBES,
    at_once: int | None = 16,
) -> tuple[jax.Array, Any]:
    """Evaluate minus the second derivatives at x.

    Args:
        cost: what a gradient counts.
        dense_dim: up to this dimension they are a matrix, beyond it a diagonal, which
            is estimated from `num_probes` products.
        at_once: products that are made side by side; None makes them one by one, whose
            rounding is the same however many points are looked at together.

    Returns:
        `(precision, count)`, the precision of shape `(d, d)` or `(d,)`.
    """
    product, dim = precision_product(logdensity, x), x.shape[0]
    if dim <= dense_dim:
        rows = jax.lax.map(product, jnp.eye(dim, dtype=x.dtype), batch_size=at_once)
        return 0.5 * (rows + rows.T), count + 2 * cost * dim
    signs = jax.random.rademacher(rng_key, (num_probes, dim), x.dtype)
    return hutchinson_diagonal(product, signs), count + 2 * cost * num_probes


def positive(precision: jax.Array) -> jax.Array:
    """Return the nearest usable precision: negative curvature is reflected, none is 0.

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
    """Return the covariance of a positive precision, symmetric to the last bit."""
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
    """Find the largest eigenvalue of R' A R, A the precision at x, by power iteration.

    Args:
        covariance: R R', an estimate of the inverse of A. A matrix, shape `(d, d)`, is
            taken for exact, and the eigenvalue for 1; a diagonal has shape `(d,)`.

    Returns:
        `(eigenvalue, count)`, the eigenvalue at least 1.
    """
    if covariance.ndim == 2:
        return jnp.ones((), x.dtype), count
    product, scale = precision_product(logdensity, x), jnp.sqrt(covariance)

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
