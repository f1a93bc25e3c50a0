"""Whether a log density is a Gaussian's, found out numerically."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nutfree.numerics.programs import jitted

#: How far, relative to its size, the Hessian may differ between points.
TOLERANCE = 1e-3


def gaussian_moments(
    logdensity: Callable[[jax.Array], jax.Array], x: jax.Array
) -> tuple[NDArray, NDArray] | None:
    """Mean and covariance of a log density over vectors, if that is a Gaussian's.

    Args:
        logdensity: of a vector.
        x: the origin, of the shape and type of its argument.

    Returns:
        `(mean, covariance)`, `(d,)` and `(d, d)`; None if the Hessian is not the same
        negative definite matrix everywhere.
    """
    # numbers are needed, also where a host is tracing
    with jax.ensure_compile_time_eval():
        probe = np.random.default_rng(0).normal(size=(2, x.size))
        points = [x, *jnp.asarray(probe * np.array([[1.0], [3.0]]), x.dtype)]
        hessian = jitted(jax.hessian(logdensity))
        hessians = [np.asarray(hessian(p), float) for p in points]
        grad = np.asarray(jitted(jax.grad(logdensity))(x), float)
    precision = -hessians[0]
    size = np.abs(precision).max()
    same = all(np.abs(h + precision).max() <= TOLERANCE * size for h in hessians)
    if not same or not np.all(np.linalg.eigvalsh(precision) > 1e-7 * size):
        return None
    covariance = np.linalg.inv(precision)
    return covariance @ grad + np.asarray(x, float), covariance
