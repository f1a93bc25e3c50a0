"""The part of a posterior that an adjusted trajectory follows exactly.

A reference is a Gaussian with kinks, in coordinates s = center + R u in which U is the
negative log density: the kinks of U that are affine in s, with their mean slopes, and a
quadratic of the curvature omega^2 in every direction of u. What U has beside them is
left to the kicks of a trajectory. Any reference leaves the kernel exact.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.bregman import kinks as kinks_of
from nutfree.kernels.bregman.envelopes import (
    is_smoothable,
    term_scales,
    widened,
)
from nutfree.kernels.bregman.kinks import Kinks
from nutfree.numerics.preconditioning import matvec, transpose
from nutfree.numerics.proximal import Hinge
from nutfree.target import At, Position, Split

#: Up to so many kinks may push each other along in a flow.
MAX_JOINT = 256


class Reference(NamedTuple):
    """omega^2 |u|^2 / 2 - tilt' u + kinks, with s = center + R u.

    center : (d,)
    tilt : (d,), minus the gradient of the quadratic at `center`, in the coordinates s.
    omega : ()
    kinks : m of them.
    """

    center: jax.Array
    tilt: jax.Array
    omega: jax.Array
    kinks: Kinks

    def potential(self, u, root) -> jax.Array:
        """The reference's potential, a scalar."""
        quadratic = 0.5 * jnp.square(self.omega) * jnp.sum(u * u)
        y = self.kinks.offset + self.kinks.along(u)
        return quadratic - self._tilt(root) @ u + self.kinks.value(y)

    def distances(self, s) -> jax.Array:
        """Signed distances from the kinks, `(m,)`."""
        kinks, shift = self.kinks, s - self.center
        moved = shift[kinks.rows] if kinks.are_separate else kinks.rows @ shift
        return kinks.offset + moved

    def score(self, s, outside) -> jax.Array:
        """The gradient of the log density in s, with that of the kinks.

        Args:
            outside: the gradient of what is outside of the kinks.
        """
        slopes = self.kinks.slopes(self.distances(s))
        return outside - self.kinks.push(slopes, outside)

    def quadratic_force(self, u, root) -> jax.Array:
        """Minus the gradient of the quadratic part in u, `(d,)`."""
        return self._tilt(root) - jnp.square(self.omega) * u

    def flow(self, u, v, time, root) -> tuple[jax.Array, ...]:
        """`(u, v, arrived)` after a time, see `kinks.flow`."""
        return kinks_of.flow(u, v, time, self.omega, self._tilt(root), self.kinks)

    def _tilt(self, root) -> jax.Array:
        return matvec(transpose(root), self.tilt)

    def recentred(self, center, tilt, omega, factor) -> "Reference":
        """The same kinks with another quadratic and another R."""
        kinks = self.kinks._replace(offset=self.distances(center)).drawn(factor)
        return Reference(center, tilt, omega, kinks)


def nothing(like: jax.Array) -> Reference:
    """The reference without kinks or quadratic: trajectories go straight on."""
    zeros, none = jnp.zeros_like(like), jnp.zeros(0, like.dtype)
    kinks = Kinks(none, none, none, jnp.zeros(0, jnp.int32), none, none)
    return Reference(zeros, zeros, jnp.zeros((), like.dtype), kinks)


class Lines(NamedTuple):
    """Piecewise linear terms at one position: distances and slopes, `(m,)`."""

    distance: jax.Array
    below: jax.Array
    above: jax.Array


def lines(split: Split, parts: Mapping[str, At]) -> Lines:
    """The kinks of the terms that are piecewise linear in a real argument."""
    flat = [
        [jnp.broadcast_to(a, jnp.shape(x)).ravel() for a in term.kinks(x)]
        for name, (term, x) in sorted(parts.items())
        if has_lines(split, name, term)
    ]
    if not flat:
        return Lines(*[jnp.zeros(0)] * 3)
    return Lines(*map(jnp.concatenate, zip(*flat, strict=True)))


def has_lines(split: Split, name: str, term) -> bool:
    """Whether a term is piecewise linear, and not of a constrained site's value."""
    return hasattr(term, "kinks") and is_smoothable(split, name)


def kinks_at(
    split: Split, s: jax.Array, position_of: Callable, is_diagonal: bool
) -> Kinks | None:
    """The kinks of a target, with their slopes and directions at one point.

    Args:
        split: of the target.
        s: the point, in the coordinates of the trajectories.
        position_of: `s -> position`.
        is_diagonal: whether R is.

    Returns:
        None where they are too many for a flow. `pull` and `gram` are yet to come.
    """

    def lines_at(s):
        return lines(split, split.parts(split.constrain(position_of(s)))[1])

    distance, below, above = lines_at(s)
    numbers = _own_coordinates(split, position_of(s)) if is_diagonal else None
    if numbers is not None:
        rows = jnp.asarray(numbers, jnp.int32)
        return Kinks(distance, below, above, rows, above, above)
    if distance.size > MAX_JOINT:
        return None
    rows = jax.jacobian(lambda s: lines_at(s).distance)(s).reshape(-1, s.size)
    return Kinks(distance, below, above, rows, rows, rows)


def reference_at(
    split: Split, s: jax.Array, position_of: Callable, factor: jax.Array
) -> Reference:
    """The kinks of a target at one point, and no quadratic; see `kinks_at`."""
    plain = nothing(s)
    kinks = kinks_at(split, s, position_of, factor.ndim < 2)
    return plain._replace(
        center=s, kinks=plain.kinks if kinks is None else kinks.drawn(factor)
    )


def _own_coordinates(split: Split, position: Position) -> list[int] | None:
    """The coordinate of each kink; None where one is not of a site's own value."""
    _, parts = jax.eval_shape(lambda z: split.parts(split.constrain(z)), position)
    numbers, at = {}, 0
    named = isinstance(position, dict)
    for name, tree in sorted(position.items() if named else [("", position)]):
        size = sum(leaf.size for leaf in jax.tree.leaves(tree))
        numbers[name] = list(range(at, at + size))
        at += size
    kinked = [k for k, part in sorted(parts.items()) if has_lines(split, k, part.term)]
    if any(k not in split.supports or k not in numbers for k in kinked):
        return None
    return [i for k in kinked for i in numbers[k]]


def log_density_outside(
    split: Split, position: Position, ours: Reference, root: jax.Array, width
) -> Callable:
    """Return `(position, s) -> log density` of what is outside of a reference's kinks.

    A kink that the reference does not have, or not there or not as sharp, is rounded.

    Args:
        split: of the target.
        position: of its structure.
        ours: the reference.
        root: R.
        width: of a rounded kink, in units of the velocities' sds.
    """
    has_kinks = ours.kinks.offset.size > 0
    scales = term_scales(split, position, root)
    widths = width * ours.kinks.speeds

    def stands_for(name, part):
        if not is_smoothable(split, name):
            return part.term.value(part.x)
        return widened(part.term, part.x, width * scales[name])

    def rounded(y, below, above):
        return Hinge(0.0, -below, above).huber(y, widths)

    def evaluate(position, s):
        smooth, parts = split.parts(split.constrain(position))
        value = smooth + split.log_det(position)
        if has_kinks:
            found, (_, below, above, *_) = lines(split, parts), ours.kinks
            parts = {k: p for k, p in parts.items() if not has_lines(split, k, p.term)}
            value = value - rounded(*found) + rounded(ours.distances(s), below, above)
        return value - sum(stands_for(name, part) for name, part in parts.items())

    return evaluate
