"""The coordinates of mirror Langevin: each site's value, or where its support has no
mirror map, its unconstrained value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to

from nutfree.errors import UnsupportedModel
from nutfree.kernels.bregman.entropies import HyperbolicEntropy
from nutfree.kernels.bregman.envelopes import right_bregman_envelope, smoothed
from nutfree.kernels.bregman.geometry import mirror_for
from nutfree.kernels.bregman.mirror import Euclidean
from nutfree.target import Position, Split, Target

Values = Mapping[str, jax.Array]
_NONE: Mapping[str, jax.Array] = {}


@dataclass(frozen=True, eq=False)
class Space:
    """The coordinates of a target whose sites have `maps`, None for a site without."""

    split: Split
    maps: Mapping[str, Any]

    @property
    def bare(self) -> list[str]:
        """The sites that have no map."""
        return [name for name, mirror in self.maps.items() if mirror is None]

    @property
    def is_flat(self) -> bool:
        """Whether the coordinates are those of the sampling space, with one metric."""
        return all(isinstance(mirror, Euclidean) for mirror in self.maps.values())

    def mirror(self, name: str, scales: Values, centers: Values):
        return (self.maps[name] or Euclidean()).at(scales[name], centers[name])

    def enter(self, position: Position) -> dict[str, jax.Array]:
        """Return the coordinates of a position on the sampling space."""
        values = self.split.constrain(position)
        if self.bare and not (
            isinstance(position, dict) and values.keys() <= {*position}
        ):
            raise UnsupportedModel(
                f"The support of {', '.join(self.bare)} has no mirror map, and the "
                "position is no dictionary with its unconstrained value. Write the "
                "position as a dictionary from site name to unconstrained value."
            )
        return {
            name: position[name] if mirror is None else mirror.clip(values[name])
            for name, mirror in self.maps.items()
        }

    def leave(self, coordinates: Values) -> tuple[dict, jax.Array]:
        """Return the values of all sites, and the log Jacobian of those without map."""
        if not self.bare:
            return dict(coordinates), jnp.asarray(0.0)
        free, log_det_mapped = {}, jnp.asarray(0.0)
        for name, w in coordinates.items():
            if self.maps[name] is not None:
                transform = biject_to(self.split.supports[name])
                z = transform.inv(w)
                log_det = transform.log_abs_det_jacobian(z, w)
                log_det_mapped, w = log_det_mapped + jnp.sum(log_det), z
            free[name] = w
        # the bounds of a site may depend on others: only all sites together tell
        values = dict(self.split.constrain(free))
        values.update({k: w for k, w in coordinates.items() if k not in self.bare})
        return values, self.split.log_det(free) - log_det_mapped

    def log_densities(
        self,
        smoothing,
        mirrors,
        scales: Mapping = _NONE,
        envelope: Callable = right_bregman_envelope,
    ) -> Callable:
        """`coordinates -> (smoothed, exact)` log density of the coordinates.

        Args:
            smoothing: lambda.
            mirrors: the maps in the units of their sites, by name.
            scales: of the arguments of the terms of no site that are to be smoothed.
            envelope: of a term under the hyperbolic entropy.
        """

        def stands_for(name, term, x):
            phi = mirrors.get(name)  # a composition has none
            if isinstance(phi, HyperbolicEntropy) and hasattr(term, "right_prox"):
                return envelope(term, phi, x, smoothing)
            if name in scales:
                return smoothed(term, x, smoothing, scales[name])
            if phi is None or self.maps[name] is None:
                return term.value(x)
            return smoothed(term, x, smoothing, phi.scale)

        def evaluate(coordinates):
            values, log_det = self.leave(coordinates)
            smooth, parts = self.split.parts(values)
            g = sum(part.term.value(part.x) for part in parts.values())
            envelope = sum(stands_for(k, *part) for k, part in parts.items())
            return smooth + log_det - envelope, smooth + log_det - g

        return evaluate

    def position(self, coordinates: Values, logdensity) -> tuple[Position, jax.Array]:
        """Return the draw on the sampling space and the target's log density there."""
        values, log_det = self.leave(coordinates)
        position = self.split.unconstrain(values)
        for name in self.bare:
            position = {**position, name: coordinates[name]}
        return position, logdensity - log_det + self.split.log_det(position)


def space_of(target: Target, geometry: str) -> Space:
    """The coordinates of a target in a geometry, a key of `geometry.GEOMETRIES`."""
    split = target.split
    assert split is not None  # hosts have called `require`
    maps = {name: mirror_for(c, geometry) for name, c in split.supports.items()}
    return Space(split, maps)
