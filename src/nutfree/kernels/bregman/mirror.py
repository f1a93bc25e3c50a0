"""Mirror maps: the geometries in which a Bregman kernel moves.

A map is a record of a Legendre function phi on the inside of a support, its gradient,
the inverse of that gradient, and a square root of its Hessian. Each works in the unit
of its site, u = (x - center) / scale, so that `scale`, an estimate of the posterior's
standard deviations, makes it a diagonal preconditioner as well; with a scale of one
the formulas are those of the papers.

There are two maps for each bounded support. The entropies (Boltzmann-Shannon,
Fermi-Dirac, negative entropy) are those of Lau and Liu, arXiv 2207.04387. Their dual
noise has variance phi''(x), which grows exponentially in the dual variable towards a
boundary, and no explicit step follows it there: they are for densities that vanish
at the boundary. The barriers (Burg's entropy, plus a
quadratic where the support is unbounded) have the square root of the Hessian linear in
the dual variable, so that a step changes the distance to the boundary by a factor, and
the law near the boundary is right to the order of the step however close one looks.
Barriers are therefore the default.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from numpyro.distributions import constraints

#: Noise changes, to first order, no distance to a boundary by more than this share.
REACH = 0.9


def _record(*data: str, meta: tuple[str, ...] = ()):
    """A frozen dataclass that is a pytree of the fields `data`."""

    def register(cls):
        cls = dataclass(frozen=True)(cls)
        return jax.tree_util.register_dataclass(cls, data, meta)

    return register


class MirrorMap:
    """What all maps share; the Hessian is diagonal unless a map says otherwise.

    A map defines `value(x)`, phi up to a constant; `grad(x)`, the dual variable
    y = grad phi(x), defined up to what the support's constraints leave open;
    `inverse(y)`, grad phi*(y); and `root(x)`, the square root of the Hessian.
    """

    def at(self, scale, center) -> "MirrorMap":
        """The same map in other units, `scale` and `center` of the shape of x."""
        return replace(self, scale=scale, center=center)  # type: ignore[type-var]

    def hessian(self, x):
        """The diagonal of the Hessian of phi, where it is all of it."""
        return self.root(x) ** 2

    def clip(self, x):
        """`x`, moved off the boundary by what rounding needs."""
        return x

    def noise(self, x, xi, step_size):
        """sqrt(2 step_size) Hess phi(x)^(1/2) xi, with xi standard normal."""
        return jnp.sqrt(2 * step_size) * self.root(x) * xi

    def dual_norm2(self, x, r):
        """r' Hess phi(x)^-1 r for a difference r of dual variables, a scalar."""
        return jnp.sum((r / self.root(x)) ** 2)

    def divergence(self, x, y):
        """D_phi(x, y) = phi(x) - phi(y) - <grad phi(y), x - y>, a scalar."""
        return self.value(x) - self.value(y) - jnp.sum(self.grad(y) * (x - y))


class _Bounded(MirrorMap):
    """A map of a support with a boundary; `distance(x)` is that to the nearest side."""

    def noise(self, x, xi, step_size):
        """As of any map, but bounded: uniform with the variance of the normal.

        A step that is long against the distance to the boundary has no meaning, and a
        normal one now and then is. Noise with the same first three moments leaves the
        order of the bias as it is (Milstein and Tretyakov 2004, section 2.1), and for
        step_size < 0.13 no distance changes by more than `REACH` of itself. A longer
        step is cut to that.
        """
        uniform = 3**0.5 * jax.scipy.special.erf(xi / 2**0.5)
        root = self.root(x)
        limit = REACH * root * self.distance(x)
        return root * jnp.clip(jnp.sqrt(2 * step_size) * uniform, -limit, limit)


@_record("scale", "center")
class Euclidean(MirrorMap):
    """phi(x) = |u|^2 / 2 on the real line: mirror Langevin is Langevin."""

    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def value(self, x):
        return 0.5 * jnp.sum((x / self.scale) ** 2)

    def grad(self, x):
        return x / self.scale**2

    def inverse(self, y):
        return y * self.scale**2

    def root(self, x):
        return jnp.broadcast_to(1.0 / self.scale, x.shape).astype(x.dtype)


@_record("scale", "center")
class HyperbolicEntropy(MirrorMap):
    """phi(x) = sum u asinh(u) - sqrt(1 + u^2) on the real line.

    Steps grow with the distance from the centre, which suits heavy tails and scales
    that differ by orders. Reference: Ghai, Hazan and Singer, arXiv 1902.01903.
    """

    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def _unit(self, x):
        return (x - self.center) / self.scale

    def value(self, x):
        u = self._unit(x)
        return jnp.sum(u * jnp.arcsinh(u) - jnp.sqrt(1 + u**2))

    def grad(self, x):
        return jnp.arcsinh(self._unit(x)) / self.scale

    def inverse(self, y):
        return self.center + self.scale * jnp.sinh(self.scale * y)

    def root(self, x):
        return (1 + self._unit(x) ** 2) ** -0.25 / self.scale

    def divergence(self, x, y):
        """As of any map, for x and y on one side of the centre.

        Written in u - v, so that it keeps its relative precision as y nears x.
        """
        u, v = jnp.abs(self._unit(x)), jnp.abs(self._unit(y))
        root, root_y = jnp.sqrt(1 + u**2), jnp.sqrt(1 + v**2)
        rise = (u - v) * (u + v) / (root + root_y)
        return jnp.sum(u * jnp.log1p((u - v + rise) / (v + root_y)) - rise)


@_record("bound", "scale", "center", meta=("sign",))
class Barrier(_Bounded):
    """phi(x) = sum u^2 / 2 - log u for u = sign (x - bound) / scale > 0.

    Burg's entropy near the boundary and Euclidean far from it: the Hessian is
    1 / scale^2 + 1 / distance^2. The dual variable is any real number.
    """

    bound: jax.Array | float = 0.0
    sign: int = 1
    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def distance(self, x):
        return self.sign * (x - self.bound)

    def value(self, x):
        u = self.distance(x) / self.scale
        return jnp.sum(0.5 * u**2 - jnp.log(u))

    def grad(self, x):
        u = self.distance(x) / self.scale
        return self.sign * (u - 1 / u) / self.scale

    def inverse(self, y):
        u = _positive_root(self.sign * y * self.scale)
        return self.bound + self.sign * self.scale * u

    def root(self, x):
        return jnp.hypot(1 / self.scale, 1 / self.distance(x))

    def clip(self, x):
        return _clip_to_side(x, self.bound, self.sign)


@_record("bound", "scale", "center", meta=("sign",))
class BoltzmannShannon(_Bounded):
    """phi(x) = sum u log u - u for u = sign (x - bound) / scale > 0."""

    bound: jax.Array | float = 0.0
    sign: int = 1
    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def distance(self, x):
        return self.sign * (x - self.bound)

    def value(self, x):
        u = self.distance(x) / self.scale
        return jnp.sum(u * jnp.log(u) - u)

    def grad(self, x):
        return self.sign * jnp.log(self.distance(x) / self.scale) / self.scale

    def inverse(self, y):
        return self.bound + self.sign * self.scale * jnp.exp(self.sign * y * self.scale)

    def root(self, x):
        return (self.scale * self.distance(x)) ** -0.5

    def clip(self, x):
        return _clip_to_side(x, self.bound, self.sign)


class _OnInterval(_Bounded):
    """phi(x) = c sum h((x - lower) / (upper - lower)) with c so chosen that the Hessian
    at the centre is 1 / scale^2, and never below one unit of the interval's own."""

    def _width(self):
        return self.upper - self.lower

    def _share(self, x):
        """x as shares of the interval, from below and from above."""
        return (x - self.lower) / self._width(), (self.upper - x) / self._width()

    def _strength(self):
        at_center = self._curvature(*self._share(self.clip(jnp.asarray(self.center))))
        return jnp.maximum((self._width() / self.scale) ** 2 / at_center, 1.0)

    def distance(self, x):
        return jnp.minimum(x - self.lower, self.upper - x)

    def root(self, x):
        curvature = self._curvature(*self._share(x))
        return jnp.sqrt(self._strength() * curvature) / self._width()

    def clip(self, x):
        x = _clip_to_side(x, self.lower, 1, self._width())
        return _clip_to_side(x, self.upper, -1, self._width())


@_record("lower", "upper", "scale", "center")
class IntervalBarrier(_OnInterval):
    """h(p) = -log p - log(1 - p), with p the share of the interval below x."""

    lower: jax.Array | float = 0.0
    upper: jax.Array | float = 1.0
    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.5

    def _curvature(self, below, above):
        return below**-2.0 + above**-2.0

    def value(self, x):
        below, above = self._share(x)
        return -jnp.sum(self._strength() * (jnp.log(below) + jnp.log(above)))

    def grad(self, x):
        below, above = self._share(x)
        return self._strength() / self._width() * (1 / above - 1 / below)

    def inverse(self, y):
        r = y * self._width() / self._strength()
        size, hypotenuse = jnp.abs(r), jnp.hypot(r, 2.0)
        nearer = (1 + 2 / (size + hypotenuse)) / (2 + hypotenuse)
        share = self._width() * nearer
        return self.clip(jnp.where(r < 0, self.lower + share, self.upper - share))


@_record("lower", "upper", "scale", "center")
class FermiDirac(_OnInterval):
    """h(p) = p log p + (1 - p) log(1 - p)."""

    lower: jax.Array | float = 0.0
    upper: jax.Array | float = 1.0
    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.5

    def _curvature(self, below, above):
        return 1 / below + 1 / above

    def value(self, x):
        below, above = self._share(x)
        return jnp.sum(
            self._strength() * (below * jnp.log(below) + above * jnp.log(above))
        )

    def grad(self, x):
        below, above = self._share(x)
        ratio = jnp.log(below) - jnp.log(above)
        return self._strength() / self._width() * ratio

    def inverse(self, y):
        r = y * self._width() / self._strength()
        share = self._width() * jax.nn.sigmoid(-jnp.abs(r))
        return self.clip(jnp.where(r < 0, self.lower + share, self.upper - share))


class _OnSimplex(_Bounded):
    """phi(x) = sum_i h_i(x_i) restricted to sum_i x_i = 1, along the last axis.

    The density is with respect to any all but one of the shares, as Dirichlet's is.
    Dual variables count up to a common constant: in the coordinates x_1..x_{n-1} the
    dual variable is y_i - y_n and the Hessian D_i on the diagonal plus D_n everywhere,
    of which noise with variances D_1..D_n, differenced, is a square root.
    """

    def clip(self, x):
        x = jnp.maximum(x, jnp.finfo(x.dtype).tiny)
        return x / jnp.sum(x, axis=-1, keepdims=True)

    def distance(self, x):
        return x

    def dual_norm2(self, x, r):
        root = self.root(x)
        weight = root**-2.0
        middle = jnp.sum((r / root) / root, axis=-1, keepdims=True)
        middle = middle / jnp.sum(weight, axis=-1, keepdims=True)
        return jnp.sum(((r - middle) / root) ** 2)


@_record("scale", "center")
class SimplexBarrier(_OnSimplex):
    """h_i(x) = u^2 / 2 - log u with u = x / scale_i."""

    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def value(self, x):
        return jnp.sum(0.5 * (x / self.scale) ** 2 - jnp.log(x))

    def grad(self, x):
        return x / self.scale**2 - 1 / x

    def root(self, x):
        return jnp.hypot(1 / self.scale, 1 / x)

    def inverse(self, y):
        """Newton on 1 = 1 / sum_i x_i(y_i - nu), x_i the inverse of h_i'."""
        scale = jnp.broadcast_to(self.scale, y.shape)
        n = y.shape[-1]

        def level(share):  # nu at which the largest of the x_i is `share`
            slope = share / scale**2 - 1 / share
            return jnp.max(y - slope, axis=-1, keepdims=True)

        def shares(nu):
            return scale * _positive_root((y - nu) * scale)

        def newton(_, carry):
            nu, low, high = carry
            x = shares(nu)
            total = jnp.sum(x, axis=-1, keepdims=True)
            low = jnp.where(total >= 1, nu, low)
            high = jnp.where(total >= 1, high, nu)
            slope = jnp.sum(jnp.hypot(1 / scale, 1 / x) ** -2.0, -1, keepdims=True)
            step = nu + (total - 1) * total / slope
            inside = (step > low) & (step < high)
            return jnp.where(inside, step, 0.5 * (low + high)), low, high

        low, high = level(1.0), level(1.0 / n)
        nu, _, _ = jax.lax.fori_loop(0, 20, newton, (low, low, high))
        return self.clip(shares(nu))


@_record("scale", "center")
class NegativeEntropy(_OnSimplex):
    """h_i(x) = x log x; all coordinates have the smallest of the scales as theirs."""

    scale: jax.Array | float = 1.0
    center: jax.Array | float = 0.0

    def _strength(self):
        # unit metric 1 / x at the uniform distribution; one factor keeps softmax
        scale = jnp.atleast_1d(self.scale)
        return jnp.maximum(jnp.min(1.0 / (scale.shape[-1] * scale**2)), 1.0)

    def value(self, x):
        return self._strength() * jnp.sum(x * jnp.log(x))

    def grad(self, x):
        return self._strength() * jnp.log(x)

    def inverse(self, y):
        return self.clip(jax.nn.softmax(y / self._strength(), axis=-1))

    def root(self, x):
        return jnp.sqrt(self._strength() / x)


def _positive_root(v):
    """The u > 0 with u - 1/u = v, to full relative precision."""
    size, hypotenuse = jnp.abs(v), jnp.hypot(v, 2.0)
    larger = 0.5 * (size + hypotenuse)
    return jnp.where(v < 0, 1 / larger, larger)


def _clip_to_side(x, bound, sign, width=0.0):
    """`x` no nearer to `bound` than the rounding of numbers about as large as it."""
    info = jnp.finfo(jnp.result_type(float, x))
    gap = info.eps * jnp.abs(bound) + info.tiny * (1 + jnp.abs(width))
    return jnp.maximum(x, bound + gap) if sign > 0 else jnp.minimum(x, bound - gap)


#: For each choice of geometry: map on the line, on a half-line, an interval, a simplex.
GEOMETRIES: dict[str, tuple[Callable[..., MirrorMap], ...]] = {
    "barrier": (Euclidean, Barrier, IntervalBarrier, SimplexBarrier),
    "hyperbolic": (HyperbolicEntropy, Barrier, IntervalBarrier, SimplexBarrier),
    "entropy": (HyperbolicEntropy, BoltzmannShannon, FermiDirac, NegativeEntropy),
}


def mirror_for(constraint, geometry: str = "barrier") -> MirrorMap | None:
    """The mirror map for a NumPyro constraint.

    Args:
        constraint: a support, as in `numpyro.distributions.constraints`.
        geometry: "barrier", "hyperbolic" or "entropy".

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
