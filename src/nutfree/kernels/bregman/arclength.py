"""Coordinates in which a mirror map's metric is flat.

The mirror Langevin diffusion of phi has noise of covariance Hess phi(x)^-1. In the
coordinate s with ds = phi''(x)^(1/2) dx its noise is standard, so that a leapfrog step
needs no metric that changes along it. For a distance u, in some unit, to the boundary
of a half-line,

    u = log(1 + exp(s)),    phi''(u)^(1/2) = 1 / (1 - exp(-u)):

the metric of a barrier, 1 / u^2, near the boundary, and flat far from it. An
exponential law of mean one has the logistic law in s. The arc length of the barrier of
an interval is the logit, which is NumPyro's coordinate already; that of a simplex has
no flat coordinates, and the stick-breaking ones stay.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import ExpTransform

from nutfree.kernels.bregman.barriers import Barrier
from nutfree.kernels.bregman.geometry import mirror_for
from nutfree.target import Position, Split

#: Below this s, log(softplus(s)) is its series, because exp(s) loses digits.
_SMALL = -8.0


def on_half_line(position: Position, split: Split) -> np.ndarray:
    """Which coordinates of the flat position are logs of distances, `(d,)` bools."""

    def is_log(name) -> bool:
        if not isinstance(mirror_for(split.supports[name]), Barrier):
            return False
        transform = biject_to(split.supports[name])
        transform = getattr(transform, "base_transform", transform)
        first = getattr(transform, "parts", [transform])[0]
        return isinstance(first, ExpTransform)

    named = isinstance(position, dict)
    parts = [
        np.full(np.size(leaf), named and name in split.supports and is_log(name))
        for name, tree in sorted(position.items() if named else [("", position)])
        for leaf in jax.tree.leaves(tree)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def log_softplus(s):
    """log log(1 + exp(s)), to full precision for any s."""
    series = jnp.minimum(s, _SMALL)
    direct = jnp.log(jax.nn.softplus(jnp.maximum(s, _SMALL)))
    return jnp.where(s < _SMALL, series - 0.5 * jnp.exp(series), direct)


def enter(z, mask: np.ndarray, unit):
    """`z`, with s in place of the log of a distance where `mask` says so.

    Args:
        z: a flat position, shape `(d,)`.
        mask: from `on_half_line`.
        unit: of each distance, `(d,)` or a scalar.
    """
    log_u = jnp.where(mask, z - jnp.log(unit), 0.0)
    u = jnp.exp(jnp.minimum(log_u, 60.0))
    # log(expm1(u)) as log(u) + u - (log(u) - log(1 - exp(-u)))
    tiny = u < 1e-3
    rest = jnp.log(-jnp.expm1(-jnp.where(tiny, 1.0, u)))
    s = jnp.where(tiny, log_u + 0.5 * u, u + rest)
    return jnp.where(mask, s, z)


def leave(s, mask: np.ndarray, unit) -> tuple[jax.Array, jax.Array]:
    """`(z, log |dz / ds|)`: the inverse of `enter`, `(d,)`, and a scalar."""
    inside = jnp.where(mask, s, 0.0)
    log_u = log_softplus(inside)
    slope = -jax.nn.softplus(-inside) - log_u
    return jnp.where(mask, jnp.log(unit) + log_u, s), jnp.sum(jnp.where(mask, slope, 0))
