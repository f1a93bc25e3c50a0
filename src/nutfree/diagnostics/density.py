"""A log density and its gradient at many points, in one compiled program."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nutfree.numerics.programs import in_full_precision, jitted

#: Points of a call of the compiled program, and those evaluated side by side.
CHUNK = 256
BATCH = 64


class Values(NamedTuple):
    """Log densities `(n,)` and gradients `(n, d)`, in double precision."""

    value: NDArray
    grad: NDArray


class Density:
    """A log density of vectors, evaluated on the host at any number of points.

    Whatever their number, one program of `CHUNK` points is compiled.

    Args:
        logdensity_fn: of a vector `(d,)`.
        has_gradient: False for one that cannot be differentiated; gradients are NaN.
    """

    def __init__(
        self,
        logdensity_fn: Callable[[jax.Array], jax.Array],
        *,
        has_gradient: bool = True,
    ):
        def one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            if has_gradient:
                return jax.value_and_grad(logdensity_fn)(x)
            return logdensity_fn(x), jnp.full_like(x, jnp.nan)

        self._run = jitted(lambda xs: jax.lax.map(one, xs, batch_size=BATCH))

    @in_full_precision
    def __call__(self, points: NDArray) -> Values:
        """Evaluate at points of shape `(..., d)`."""
        points = np.asarray(points)
        shape, dim = points.shape[:-1], points.shape[-1]
        flat = points.reshape(-1, dim)
        values, grads = [], []
        for start in range(0, len(flat), CHUNK):
            rows = flat[start : start + CHUNK]
            padded = np.concatenate([rows, np.repeat(rows[-1:], CHUNK - len(rows), 0)])
            value, grad = self._run(jnp.asarray(padded, jnp.result_type(float)))
            values.append(np.asarray(value, np.float64)[: len(rows)])
            grads.append(np.asarray(grad, np.float64)[: len(rows)])
        return Values(
            np.concatenate(values).reshape(shape) if values else np.zeros(shape),
            np.concatenate(grads).reshape(*shape, dim) if grads else points * 0.0,
        )
