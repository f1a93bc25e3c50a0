"""The Jacobian of stick-breaking where a share is too small for the precision.

NumPyro clips shares at the smallest normal number, and takes their logs for the
Jacobian as they are then. Beyond about -87 in single precision the density on the
sampling space is flat, so that it has no finite integral, and a chain that has come
there does not return. What is missing is the part of the log that was clipped.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import constraints


def clipped_log_det(
    supports: Mapping[str, Any],
) -> Callable[[Mapping[str, jax.Array]], jax.Array] | None:
    """What the log determinants of stick-breaking lack, a scalar of the position.

    It is 0 where no share is at the limit.

    Args:
        supports: the constraint of each site.

    Returns:
        None where no site is a simplex.
    """
    names = [name for name, support in supports.items() if _is_simplex(support)]
    if not names:
        return None

    def log_det(position):
        return sum(_clipped(position[name]) for name in names)

    return log_det


def _is_simplex(support) -> bool:
    support = getattr(support, "base_constraint", support)
    return isinstance(support, type(constraints.simplex))


def _clipped(z: jax.Array) -> jax.Array:
    shifted = z - jnp.log(z.shape[-1] - jnp.arange(z.shape[-1]))
    return jnp.sum(jnp.minimum(shifted - jnp.log(jnp.finfo(z.dtype).tiny), 0.0))
