"""The exact flow of a Gaussian with kinks.

    H(u, v) = |v|^2 / 2 + omega^2 |u|^2 / 2 - tilt' u + sum_j rho_j(y_j),
    y = offset + pull u,    rho_j(y) = below_j y for y < 0, above_j y for y > 0.

Between two kinks the force is linear, so that every y_j is c + b s(t) + a c(t) with
s = sin(omega t) / omega and c = (1 - cos(omega t)) / omega^2, which are t and t^2 / 2
where omega is 0. The next kink is at a root of a quadratic in tan(omega t / 2) / omega,
and beyond it the force is another. There is no discretisation and no gradient: a flow
costs a few operations on vectors of as many numbers as there are kinks, for each kink
that it crosses. Pakman and Paninski, arXiv 1208.4118, have it for truncated Gaussians
and for the lasso.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

#: Kinks that a flow may cross in a row, for each kink that there is.
MAX_CROSSED = 20
#: And a number of them for few kinks.
MORE_CROSSED = 100
#: Longest piece of a flow, times omega: the half-angle's tangent is infinite at pi.
LONGEST = 2.5


class Kinks(NamedTuple):
    """Kinks that a reference potential has, m of them.

    offset, below, above
        Signed distance from each kink at u = 0, and the slopes there; `(m,)`.
    rows
        `(m, d)`, by how much each distance changes with each coordinate; or `(m,)`,
        the number of the one coordinate that each distance is.
    pull, gram
        `rows @ R`, and `pull @ pull.T`; where `rows` are numbers of coordinates, R is
        diagonal, and both are `(m,)`.
    """

    offset: jax.Array
    below: jax.Array
    above: jax.Array
    rows: jax.Array
    pull: jax.Array
    gram: jax.Array

    @property
    def are_separate(self) -> bool:
        return self.rows.ndim == 1

    @property
    def speeds(self) -> jax.Array:
        """Sds of the distances' velocities, `(m,)`."""
        return jnp.sqrt(self.gram if self.are_separate else jnp.diag(self.gram))

    def drawn(self, factor) -> "Kinks":
        """The same kinks, in the coordinates of another R."""
        if not self.offset.size:
            return self
        if self.are_separate:
            pull = jnp.broadcast_to(factor, factor.shape)[self.rows]
            return self._replace(pull=pull, gram=pull * pull)
        pull = self.rows @ factor if factor.ndim == 2 else self.rows * factor
        return self._replace(pull=pull, gram=pull @ pull.T)

    def along(self, u):
        """`pull u`."""
        return self.pull * u[self.rows] if self.are_separate else self.pull @ u

    def back(self, force, like):
        """`pull' force`, of the shape of `like`."""
        if self.are_separate:
            return jnp.zeros_like(like).at[self.rows].add(self.pull * force)
        return force @ self.pull

    def push(self, force, like):
        """`rows' force`, of the shape of `like`: in the coordinates s, not u."""
        if self.are_separate:
            return jnp.zeros_like(like).at[self.rows].add(force)
        return force @ self.rows

    def slopes(self, y):
        """rho'(y), and between the two slopes at a kink."""
        middle = 0.5 * (self.below + self.above)
        return jnp.where(y < 0, self.below, jnp.where(y > 0, self.above, middle))

    def value(self, y):
        """sum_j rho_j(y_j), a scalar."""
        return jnp.sum(jnp.where(y < 0, self.below * y, self.above * y))


def flow(u, v, time, omega, tilt, kinks: Kinks) -> tuple[jax.Array, ...]:
    """Follow H from `(u, v)`, both `(d,)`, for a `time`.

    Returns:
        `(u, v, arrived)`: where it ends; False where it has crossed so many kinks that
        it was given up.
    """
    acceleration = tilt - omega * omega * u
    s, c, cosine = _motion(time, omega)
    plain = u + s * v + c * acceleration, cosine * v + s * acceleration
    if not kinks.offset.size:
        return *plain, jnp.asarray(True)
    y, dy = kinks.offset + kinks.along(u), kinks.along(v)
    ddy = kinks.along(acceleration)
    across = _separately if kinks.are_separate else _across
    moved, pushed, arrived = across(
        y, dy, ddy, kinks.below, kinks.above, kinks.gram, omega, time
    )
    u, v = plain
    return u - kinks.back(moved, u), v - kinks.back(pushed, v), jnp.all(arrived)


def _motion(time, omega):
    """Of y'' = a - omega^2 (y - y(0)): `(s, c, cosine)`, see the module."""
    half = 0.5 * time * jnp.sinc(0.5 * omega * time / jnp.pi)
    angle = omega * time
    return time * jnp.sinc(angle / jnp.pi), 2.0 * half * half, jnp.cos(angle)


def _separately(y, dy, ddy, below, above, gram, omega, time):
    """`_across`, of kinks that do not push each other."""

    def one(*of_kink):
        *numbers, gram = (x[None] for x in of_kink)
        return _across(*numbers, gram[None], omega, time)

    moved, pushed, arrived = jax.vmap(one)(y, dy, ddy, below, above, gram)
    return moved[:, 0], pushed[:, 0], arrived


def _across(y, dy, ddy, below, above, gram, omega, time):
    """What the kinks add to a flow that crosses them.

    Args:
        y, dy, ddy: distances, their velocities, and their accelerations but for that by
            the kinks, `(m,)`.
        gram: `(m, m)`, symmetric.

    Returns:
        `(moved, pushed, arrived)`: the solution at `time` of S'' = rho'(y) - omega^2 S
        with S = S' = 0 at the start, and S', both `(m,)`; whether `time` was reached.
    """
    squared = omega * omega
    longest = jnp.where(omega > 0, LONGEST / jnp.where(omega > 0, omega, 1), time)
    most = MAX_CROSSED * y.size + MORE_CROSSED
    numbers, jump = jnp.arange(y.size), above - below

    def crossed(carry):
        left, y, dy, ddy, is_above, moved, pushed, n = carry
        side = jnp.where(is_above, 1.0, -1.0).astype(y.dtype)
        tangents = _first_exit(
            jnp.maximum(side * y, 0.0), side * dy, side * ddy, squared
        )
        # the number of the least, which `argmin` takes twice as long to find
        least = jnp.min(tangents)
        i = jnp.min(jnp.where(tangents == least, numbers, y.size - 1))
        t = 2.0 * _arctan(least, omega)
        left_or_longest = jnp.minimum(left, longest)
        hits = t < left_or_longest
        t = jnp.minimum(t, left_or_longest)
        s, c, cosine = _motion(t, omega)
        y, dy, ddy = (
            y + s * dy + c * ddy,
            cosine * dy + s * ddy,
            cosine * ddy - squared * s * dy,
        )
        # exactly at its kink, and on the other side of it
        at_kink = (numbers == i) & hits
        y = jnp.where(at_kink, 0.0, y)
        is_above = is_above ^ at_kink
        change = jnp.where(at_kink, jnp.where(is_above, jump, -jump), 0.0)
        ddy = ddy - gram[i] * jnp.sum(change)
        left = jnp.maximum(left - t, 0.0)
        s, c, _ = _motion(left, omega)  # what the change makes by the end
        moved, pushed = moved + c * change, pushed + s * change
        return left, y, dy, ddy, is_above, moved, pushed, n + 1

    is_above = jnp.where(y == 0, dy > 0, y > 0)
    slope = jnp.where(is_above, above, below)
    time = jnp.asarray(time, y.dtype)
    s, c, _ = _motion(time, omega)
    ddy = ddy - gram @ slope
    start = time, y, dy, ddy, is_above, c * slope, s * slope, jnp.asarray(0)
    end = jax.lax.while_loop(
        lambda carry: (carry[0] > 0) & (carry[-1] < most), crossed, start
    )
    left, *_, moved, pushed, _ = end
    return moved, pushed, left <= 0


def _first_exit(c, b, a, squared):
    """The least tan(omega t / 2) / omega with t > 0 at which a distance falls below 0.

    Args:
        c, b, a: distance, at least 0, velocity and acceleration.
        squared: omega^2.
    """
    quadratic, linear = 4.0 * a + 2.0 * squared * c, 2.0 * b
    discriminant = linear * linear - 2.0 * quadratic * c
    root = jnp.sqrt(jnp.maximum(discriminant, 0.0))
    rises = linear > 0
    over = jnp.where(rises, linear + root, 2.0 * c)
    under = jnp.where(rises, -quadratic, root - linear)
    exits = jnp.where(rises, quadratic < 0, discriminant >= 0)
    return jnp.where(exits, over / jnp.maximum(under, jnp.finfo(c.dtype).tiny), jnp.inf)


def _arctan(tangent, omega):
    """arctan(omega tangent) / omega, which is `tangent` where omega is 0."""
    angle = jnp.arctan(omega * tangent) / jnp.where(omega > 0, omega, 1.0)
    return jnp.where(omega > 0, angle, tangent)
