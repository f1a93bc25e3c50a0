"""Proximal operators of non-smooth terms, and the envelopes that smooth them.

A term g of the potential is replaced by its envelope: Moreau's,
    inf_y g(y) + |x - y|^2 / (2 step),  gradient (x - prox(x)) / step,
or the right Bregman-Moreau envelope of Lau and Liu, arXiv 2207.04387,
    inf_y g(y) + D_phi(x, y) / step,  gradient (grad phi(x) - grad phi(prox(x))) / step,
which is the first for phi(x) = |x|^2 / 2. Automatic differentiation of the functions
here gives those gradients, and, by the envelope theorem, those in g's own parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nutfree.dynamics.mirror import Euclidean, HyperbolicEntropy, mirror_for
from nutfree.target import NonSmooth, Position, Split


def soft_threshold(x, threshold):
    """The proximal operator of threshold |.|: x, brought nearer to zero."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0.0)


def project_simplex(x):
    """The nearest point with positive entries that sum to one, on the last axis."""
    descending = -jnp.sort(-x, axis=-1)
    rank = jnp.arange(1, x.shape[-1] + 1)
    level = (jnp.cumsum(descending, axis=-1) - 1) / rank
    kept = jnp.sum(descending > level, axis=-1, keepdims=True)
    return jnp.maximum(x - jnp.take_along_axis(level, kept - 1, axis=-1), 0.0)


def _term(*fields: str):
    def register(cls):
        cls = dataclass(frozen=True)(cls)
        return jax.tree_util.register_dataclass(cls, fields, ())

    return register


@_term("loc", "scale")
class LaplaceTerm:
    """g(x) = sum |x - loc| / scale: minus the log of a Laplace density.

    The normaliser, which depends on `scale`, belongs to the smooth part.

    Args:
        loc, scale: of a shape that broadcasts to that of x; they may be traced.

    Example:
        >>> term = LaplaceTerm(0.0, 2.0)
        >>> float(term.prox(jnp.asarray(3.0), 1.0))
        2.5
    """

    loc: jax.Array | float
    scale: jax.Array | float
    #: prox also takes a step per element
    separable = True

    def value(self, x):
        return jnp.sum(jnp.abs(x - self.loc) / self.scale)

    def prox(self, x, step):
        return self.loc + soft_threshold(x - self.loc, step / self.scale)

    def gap(self, x, step):
        """g minus its Moreau envelope far from the kink, a scalar."""
        gap = step / (2 * jnp.square(self.scale))
        return jnp.sum(jnp.broadcast_to(gap, jnp.shape(x)))

    def right_prox(self, entropy: HyperbolicEntropy, x, step):
        """argmin_y g(y) + D_phi(x, y) / step, with phi centred at the kink.

        With u and v the distances of x and y to the kink in units of phi, stationarity
        reads u - v = t sqrt(1 + v^2), t = step phi.scale / scale, a quadratic in v.
        """
        u = (x - self.loc) / entropy.scale
        t = step * entropy.scale / self.scale
        size = jnp.abs(u)
        inside = size > t
        size = jnp.where(inside, size, t)
        root = jnp.sqrt(1 + (size - t) * (size + t))
        v = (size - t) * (size + t) / (size + t * root)
        return self.loc + entropy.scale * jnp.sign(u) * v


@_term("lower", "upper")
class Box:
    """g(x) = 0 where lower <= x <= upper, infinite elsewhere."""

    lower: jax.Array | float
    upper: jax.Array | float
    separable = True

    def value(self, x):
        inside = jnp.all((self.lower <= x) & (x <= self.upper))
        return jnp.where(inside, 0.0, jnp.inf).astype(x.dtype)

    def prox(self, x, step):
        return jnp.clip(x, self.lower, self.upper)


@_term("scale")
class GroupNorm:
    """g(x) = sum of |x_group| / scale, a group being a row of the last axis."""

    scale: jax.Array | float
    separable = False

    def value(self, x):
        return jnp.sum(jnp.linalg.norm(x, axis=-1) / self.scale)

    def prox(self, x, step):
        norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
        threshold = step / jnp.expand_dims(jnp.asarray(self.scale), -1)
        return x * jnp.maximum(1 - threshold / jnp.where(norm > 0, norm, 1.0), 0.0)


def moreau_envelope(term: NonSmooth, x, step):
    """inf_y g(y) + sum (x - y)^2 / (2 step), a scalar.

    Args:
        term: g.
        x: where.
        step: a scalar, or of the shape of x if `term.separable`.
    """
    nearest = jax.lax.stop_gradient(term.prox(x, step))
    return term.value(nearest) + jnp.sum((x - nearest) ** 2 / (2 * step))


def right_bregman_envelope(term, entropy: HyperbolicEntropy, x, step):
    """inf_y g(y) + D_phi(x, y) / step, a scalar.

    Args:
        term: g, with a `right_prox`; phi is centred at its `loc`.
        entropy: phi.
        x: where.
        step: a scalar.
    """
    phi = entropy.at(entropy.scale, term.loc)
    nearest = jax.lax.stop_gradient(term.right_prox(phi, x, step))
    return term.value(nearest) + phi.divergence(x, nearest) / step


def smoothed(term: NonSmooth, x, step, scale):
    """What stands for g(x) in the smoothed potential, a scalar.

    Moreau's envelope in the metric of `scale`, that is with the step lambda scale^2
    (the smallest of them where g does not separate). A Laplace term is raised by the
    constant by which its envelope lies below it away from the kink. That changes no
    gradient in x; where the term's scale is itself unknown it lowers the error in its
    posterior from the order of lambda to that of lambda^2.

    Args:
        term: g.
        x: where.
        step: lambda, relative to the squared scale.
        scale: of the shape of x, or a scalar.
    """
    if getattr(term, "separable", False):
        step = step * jnp.square(scale)
    else:
        step = step * jnp.min(jnp.square(scale))
    gap = getattr(term, "gap", lambda x, step: 0.0)
    return moreau_envelope(term, x, step) + gap(x, step)


def smoothed_log_density(split: Split, step, scales: Position) -> Callable:
    """`z -> (smoothed log density, log density)` on the sampling space.

    Only real-supported sites have their term smoothed.

    Args:
        split: of the target.
        step: lambda, relative to the squared scales.
        scales: like a position.
    """
    # the value of a real-supported site is its own coordinate, and so is its scale
    by_site = split.constrain(scales)

    def stands_for(name, term, x):
        if isinstance(mirror_for(split.supports[name]), Euclidean):
            return smoothed(term, x, step, by_site[name])
        return term.value(x)

    def evaluate(z):
        values = split.constrain(z)
        smooth, nonsmooth = split.terms(values)
        smooth = smooth + split.log_det(z)
        g = sum(term.value(values[name]) for name, term in nonsmooth.items())
        envelope = sum(stands_for(k, term, values[k]) for k, term in nonsmooth.items())
        return smooth - envelope, smooth - g

    return evaluate


def counted_envelope(log_densities: Callable) -> Callable:
    """`(x, count) -> ((smoothed, exact), gradient of smoothed, count + 1)`."""
    both = jax.value_and_grad(log_densities, has_aux=True)

    def evaluate(x, count):
        values, grad = both(x)
        return values, grad, count + 1

    return evaluate


__all__ = [
    "Box",
    "GroupNorm",
    "LaplaceTerm",
    "counted_envelope",
    "moreau_envelope",
    "project_simplex",
    "right_bregman_envelope",
    "smoothed",
    "smoothed_log_density",
    "soft_threshold",
]
