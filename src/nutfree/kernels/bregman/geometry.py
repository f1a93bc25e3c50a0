"""The mirror map of a support, by geometry."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from numpyro.distributions import constraints

from nutfree.kernels.bregman.barriers import Barrier, IntervalBarrier, SimplexBarrier
from nutfree.kernels.bregman.entropies import (
    BoltzmannShannon,
    FermiDirac,
    HyperbolicEntropy,
    NegativeEntropy,
)
from nutfree.kernels.bregman.mirror import Bounded, Euclidean, MirrorMap
from nutfree.target import Position, Split

#: Maps of the line, a half-line, an interval and a simplex, by geometry.
GEOMETRIES: dict[str, tuple[Callable[..., MirrorMap], ...]] = {
    "barrier": (Euclidean, Barrier, IntervalBarrier, SimplexBarrier),
    "hyperbolic": (HyperbolicEntropy, Barrier, IntervalBarrier, SimplexBarrier),
    "entropy": (HyperbolicEntropy, BoltzmannShannon, FermiDirac, NegativeEntropy),
}


def mirror_for(constraint, geometry: str = "barrier") -> MirrorMap | None:
    """The mirror map for a NumPyro constraint.

    Args:
        constraint: a support, as in `numpyro.distributions.constraints`.
        geometry: a key of `GEOMETRIES`.

    Returns:
        A map with scale one, or None for a support that has none (ordered vectors,
        Cholesky factors, bounds that depend on other sites): such a site is sampled
        by its unconstrained value, with the Jacobian.

    Example:
        >>> mirror_for(constraints.less_than(3.0))
        Barrier(bound=3.0, sign=-1, scale=1.0, center=0.0)
    """
    line, half_line, interval, simplex = GEOMETRIES[geometry]
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint is constraints.real:
        return line()
    if isinstance(constraint, type(constraints.simplex)):
        return simplex()
    if isinstance(constraint, type(constraints.circular)):
        return None
    if isinstance(constraint, constraints.interval):
        return interval(constraint.lower_bound, constraint.upper_bound)
    one_sided = partial(isinstance, constraint)
    if one_sided(constraints.greater_than):
        return half_line(constraint.lower_bound, 1)
    if one_sided(constraints.less_than):
        return half_line(constraint.upper_bound, -1)
    return None


def at_the_edge(split: Split, position: Position) -> jax.Array:
    """Whether a value is so near to its bound that no smaller number is there, a bool.

    Shares of a simplex and positive numbers end at 1e-38 in single precision. What the
    log density is beyond cannot be evaluated.
    """
    values, edge = split.constrain(position), jnp.asarray(False)
    for name, support in split.supports.items():
        mirror = mirror_for(support)
        if isinstance(mirror, Bounded):
            x = values[name]
            least = 4 * jnp.finfo(x.dtype).tiny
            edge |= jnp.any(mirror.distance(x) <= least)
    return edge


def is_real(constraint) -> bool:
    """Whether a support is the real line in every coordinate."""
    return isinstance(mirror_for(constraint), Euclidean)
