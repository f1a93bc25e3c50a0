"""Where a log density jumps, and where its gradient does.

Along a segment between two points the log density f and its slope g are evaluated on a
grid. In the cell where they fit each other worst, bisection follows the larger part of

    jump:  f(b) - f(a) - (b - a) (g(a) + g(b)) / 2,
    kink:  g(b) - g(a).

Where f is smooth both vanish with the length of the cell; at a jump of f, or of g, they
stay. Stein's identity, and with it every check of draws against the score, does not
hold where f jumps; it does where only g jumps.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nutfree.diagnostics.density import Density, Values

#: Segments that are searched, and cells of each.
NUM_SEGMENTS = 48
NUM_CELLS = 32
#: Halvings of the worst cell. What is smooth is then 1 / 16,384 of what it was.
NUM_HALVINGS = 14
#: The smallest jump of the log density that counts, in nats.
MIN_JUMP = 0.02
#: The part of a cell's change of slope that must stay for it to be a kink.
STAYS = 0.05
#: Points on either side of the cell that is left, whose values differ by rounding.
NUM_BESIDE = 8
#: A jump is so many times as large as the differences between those.
ABOVE_NOISE = 8.0


class Smoothness(NamedTuple):
    """What the segments tell.

    jump
        The largest jump of the log density that was met, in nats; 0 without any.
    jump_share
        Share of the segments that cross a jump.
    kink_share
        Share of the segments on which the gradient jumps.
    kinked
        `(d,)` bools: the coordinates whose derivative was seen to jump.
    """

    jump: float
    jump_share: float
    kink_share: float
    kinked: NDArray

    @property
    def jumps(self) -> bool:
        return self.jump_share > 0

    @property
    def has_kinks(self) -> bool:
        return self.kink_share > 0


def smoothness(
    density: Density,
    points: ArrayLike,
    *,
    num_segments: int = NUM_SEGMENTS,
    seed: int = 0,
) -> Smoothness:
    """Look for jumps of a log density and of its gradient between points.

    Args:
        density: differentiable where it is smooth.
        points: `(n, d)`, such as draws; those that are not finite are left out.
        num_segments: pairs of points between which is searched, at some 90 gradients
            each.
        seed: of the pairs.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> x = np.random.default_rng(0).normal(size=(100, 2))
        >>> smoothness(Density(lambda x: -0.5 * jnp.sum(x**2)), x).has_kinks
        False
        >>> smoothness(Density(lambda x: -jnp.sum(jnp.abs(x))), x).has_kinks
        True
        >>> smoothness(Density(lambda x: jnp.where(x[0] > 0, 1.0, 0.0)), x).jumps
        True
    """
    x = np.asarray(points, np.float64)
    x = x[np.isfinite(x).all(1)]
    if len(x) < 2:
        return Smoothness(0.0, 0.0, 0.0, np.zeros(x.shape[1], bool))
    rng = np.random.default_rng(seed)
    first = rng.integers(len(x), size=num_segments)
    second = (first + rng.integers(1, len(x), size=num_segments)) % len(x)
    segments = _Segments(density, x[first], x[second])
    with np.errstate(invalid="ignore", over="ignore"):
        jump = _jumps(segments)
        kinked = _kinks(segments)
    return Smoothness(
        float(jump.max()),
        float((jump > 0).mean()),
        float(kinked.any(1).mean()),
        kinked.any(0),
    )


class _Segments:
    """The density along segments from `start` to `end`, `(segments, d)`."""

    def __init__(self, density: Density, start: NDArray, end: NDArray):
        self.density, self.start, self.way = density, start, end - start
        grid = np.linspace(0.0, 1.0, NUM_CELLS + 1)
        self.grid = self.at(np.broadcast_to(grid, (len(start), len(grid))))

    def at(self, t: NDArray) -> "_Sample":
        """The density at `t`, `(segments, k)`, parts of the way."""
        found = self.density(self.start[:, None] + t[..., None] * self.way[:, None])
        return _Sample(t, found, np.einsum("skd,sd->sk", found.grad, self.way))

    def worst(self, measure: Callable) -> "tuple[_Sample, NDArray]":
        """The cell where the measure is largest, and that measure."""
        sizes = measure(self.grid)
        cell = sizes.argmax(1)[:, None]
        return self.grid.take(np.concatenate([cell, cell + 1], 1)), sizes.max(1)

    def halve(self, measure: Callable, cell: "_Sample") -> "_Sample":
        """What repeated bisection leaves of a cell."""
        for _ in range(NUM_HALVINGS):
            middle = self.at(cell.t.mean(1, keepdims=True))
            three = cell.with_middle(middle)
            left = measure(three).argmax(1)[:, None]
            cell = three.take(np.concatenate([left, left + 1], 1))
        return cell

    def noise(self, measure: Callable, cell: "_Sample") -> NDArray:
        """The largest measure beside a cell, where there is but rounding."""
        steps = np.arange(NUM_BESIDE) * (cell.t[:, 1:] - cell.t[:, :1])
        sides = (cell.t[:, :1] - steps, cell.t[:, 1:] + steps)
        return np.maximum(*(measure(self.at(t)).max(1) for t in sides))


class _Sample(NamedTuple):
    """Parts of the way `(segments, k)`, values there, and the slope along the way."""

    t: NDArray
    found: Values
    slope: NDArray

    def take(self, columns: NDArray) -> "_Sample":
        rows = np.arange(len(columns))[:, None]
        found = Values(self.found.value[rows, columns], self.found.grad[rows, columns])
        return _Sample(self.t[rows, columns], found, self.slope[rows, columns])

    def with_middle(self, middle: "_Sample") -> "_Sample":
        def between(ends, inner):
            return np.concatenate([ends[:, :1], inner, ends[:, 1:]], 1)

        found = Values(*map(between, self.found, middle.found))
        return _Sample(
            between(self.t, middle.t), found, between(self.slope, middle.slope)
        )


def _misfit(s: _Sample) -> NDArray:
    """By how much values differ from the integral of the slope, between neighbours."""
    value, finite = s.found.value, np.isfinite(s.found.value)
    area = 0.5 * np.diff(s.t) * (s.slope[:, 1:] + s.slope[:, :-1])
    found = np.nan_to_num(np.abs(np.diff(value) - area), posinf=0.0)
    # a wall: finite on one side alone
    return np.where(finite[:, 1:] != finite[:, :-1], np.inf, found)


def _turn(s: _Sample) -> NDArray:
    """By how much the slope changes between neighbours."""
    return np.nan_to_num(np.abs(np.diff(s.slope)), posinf=0.0)


def _jumps(segments: _Segments) -> NDArray:
    """The jump on each segment, 0 without one."""
    cell = segments.halve(_misfit, segments.worst(_misfit)[0])
    jump = _misfit(cell)[:, 0]
    noise = segments.noise(_misfit, cell)
    return np.where(jump > MIN_JUMP + ABOVE_NOISE * noise, jump, 0.0)


def _kinks(segments: _Segments) -> NDArray:
    """`(segments, d)` bools: the derivatives that jump on each segment."""
    cell, before = segments.worst(_turn)
    cell = segments.halve(_turn, cell)
    size = _turn(cell)[:, 0]
    kink = size > STAYS * before + ABOVE_NOISE * segments.noise(_turn, cell)
    kink &= np.isfinite(cell.found.value).all(1)
    change = np.nan_to_num(np.abs(np.diff(cell.found.grad, axis=1))[:, 0])
    large = np.nan_to_num(np.abs(cell.found.grad).max(1))
    # a kink of one coordinate leaves the other derivatives as they are
    moved = change > STAYS * change.max(1, keepdims=True) + 1e-5 * large
    return kink[:, None] & moved
