"""What a target's structure and a few cheap probes tell of its posterior."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from nutfree.diagnostics.density import Density
from nutfree.diagnostics.limits import MISSED_WEIGHT
from nutfree.diagnostics.smoothness import smoothness
from nutfree.facts import Facts
from nutfree.modes.find import BRIEF_EFFORT, SeparateModes, find_modes
from nutfree.numerics.gaussian import gaussian_moments
from nutfree.target import Target, has_gradient

#: Rows times dimensions times gradients that the probes may evaluate.
BUDGET = 2e9
#: Gradients that the search for modes and that for kinks take, roughly.
NUM_GRADIENTS = 15_000
#: Coordinates up to which the prior is looked at for being Gaussian.
MAX_PRIOR_DIM = 500
#: Points between which jumps and kinks are looked for.
NUM_POINTS = 64


def probe(
    target: Target, *, centred: tuple[tuple[str, str], ...] = (), seed: int = 0
) -> Facts:
    """Look at a target's parts; search for modes, jumps and kinks where that is cheap.

    Args:
        target: with ``position`` set.
        centred: pairs of a site and its scale, see `frontends.hierarchy`.
        seed: of the probes' starting points.
    """
    flat, unravel = ravel_pytree(target.position)
    num_data = target.minibatch.num_data if target.minibatch else None
    gradient = has_gradient(target)
    bounded: tuple[str, ...] = ()
    non_smooth: set[str] = set()
    if target.split is not None:
        values = target.split.constrain(target.position)
        non_smooth |= set(target.split.terms(values)[1])
        bounded = tuple(k for k, c in target.split.supports.items() if not _is_real(c))
    num_modes, jumps = None, False
    if gradient and (num_data or 1) * flat.size * NUM_GRADIENTS <= BUDGET:
        found = find_modes(target, seed=seed, effort=BRIEF_EFFORT)
        num_modes = count(found)
        density = Density(lambda x: target.logdensity_fn(unravel(x)))
        seen = smoothness(density, _points(target, found, seed), seed=seed)
        jumps = seen.jumps
        if not jumps:
            non_smooth |= _names(target, seen.kinked)
    return Facts(
        dim=flat.size,
        num_data=num_data,
        num_owners=len(target.shards or ()),
        non_smooth=tuple(sorted(non_smooth)),
        bounded=bounded,
        has_gradient=gradient,
        jumps=jumps,
        has_gaussian_prior=_has_gaussian_prior(target, flat, unravel),
        centred=centred,
        num_modes=num_modes,
    )


def count(found: SeparateModes) -> int | None:
    """Modes of comparable mass; None where the search is sure of none."""
    if not len(found.log_mass):
        return None
    return int(np.sum(found.weights >= MISSED_WEIGHT)) or 1


def _points(target: Target, found: SeparateModes, seed: int) -> NDArray:
    """Points where the posterior may be: prior draws, and some around the modes."""
    rng = np.random.default_rng(seed)
    center = np.asarray(ravel_pytree(target.position)[0], float)
    points = [center + rng.normal(size=(NUM_POINTS // 2, center.size))]
    if target.prior is not None:
        keys, draw = jax.random.split(jax.random.key(seed), NUM_POINTS), target.prior
        draws = jax.vmap(lambda key: ravel_pytree(draw.sample(key))[0])(keys)
        points.append(np.asarray(draws, float))
    if len(found.log_mass):
        ravel = jax.vmap(lambda position: ravel_pytree(position)[0])
        modes, sds = (np.asarray(ravel(x), float) for x in (found.position, found.sd))
        which = rng.integers(len(modes), size=NUM_POINTS)
        points.append(modes[which] + sds[which] * rng.normal(size=modes[which].shape))
    return np.concatenate(points)


def _names(target: Target, coordinates: NDArray) -> set[str]:
    """The sites that these coordinates belong to."""
    if not isinstance(target.position, dict):
        return {"the position"} if coordinates.any() else set()
    names = {
        name: jnp.full(jnp.shape(leaf), float(i))
        for i, (name, leaf) in enumerate(sorted(target.position.items()))
    }
    owner = np.asarray(ravel_pytree(names)[0]).astype(int)
    listed = sorted(names)
    return {listed[i] for i in set(owner[coordinates].tolist())}


def _has_gaussian_prior(target: Target, flat: jax.Array, unravel: Callable) -> bool:
    prior = target.prior
    if prior is None or flat.size > MAX_PRIOR_DIM:
        return False
    try:
        found = gaussian_moments(
            lambda x: prior.logdensity(unravel(x)), jnp.zeros_like(flat)
        )
    except (ValueError, TypeError):
        # a prior that JAX cannot differentiate twice
        return False
    return found is not None


def _is_real(support: Any) -> bool:
    support = getattr(support, "base_constraint", support)
    return type(support).__name__ in {"_Real", "_RealVector"}
