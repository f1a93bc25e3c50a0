"""The envelopes that smooth the non-smooth terms of the potential.

A term g of the potential is replaced by its envelope: Moreau's,
    inf_y g(y) + |x - y|^2 / (2 step),  gradient (x - prox(x)) / step,
or the right Bregman-Moreau envelope of Lau and Liu, arXiv 2207.04387,
    inf_y g(y) + D_phi(x, y) / step,  gradient (grad phi(x) - grad phi(prox(x))) / step,
or the left one,
    inf_y g(y) + D_phi(y, x) / step,  gradient grad^2 phi(x) (x - prox(x)) / step,
which both are the first for phi(x) = |x|^2 / 2. Automatic differentiation of the
functions here gives those gradients, and, by the envelope theorem, those in g's own
parameters.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.kernels.bregman.entropies import HyperbolicEntropy
from nutfree.kernels.bregman.geometry import is_real
from nutfree.numerics.preconditioning import matvec, standard_deviations
from nutfree.target import Position, Split

#: Directions along which it is measured how fast the argument of a term moves.
NUM_PROBES = 16


def moreau_envelope(term, x, step):
    """inf_y g(y) + sum (x - y)^2 / (2 step), a scalar.

    Args:
        term: g.
        x: where.
        step: a scalar, or of the shape of x if `term.separable`.
    """
    if hasattr(term, "gap"):
        return term.huber(x, term.width(step)) - term.gap(x, step)
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


def left_bregman_envelope(term, entropy: HyperbolicEntropy, x, step):
    """inf_y g(y) + D_phi(y, x) / step, a scalar.

    Args:
        term: g, with a `left_prox`; phi is centred at its `loc`.
        entropy: phi.
        x: where.
        step: a scalar.
    """
    phi = entropy.at(entropy.scale, term.loc)
    nearest = jax.lax.stop_gradient(term.left_prox(phi, x, step))
    return term.value(nearest) + phi.divergence(nearest, x) / step


def smoothed(term, x, step, scale):
    """Return what stands for g(x) in an unadjusted kernel's potential, a scalar.

    Moreau's envelope in the metric of `scale`, that is with the step lambda scale^2
    (the smallest of them where g does not separate). A norm's envelope is raised by the
    constant by which it lies below the norm away from the kink. That changes no
    gradient in x; where the term's scale is itself unknown it lowers the error in its
    posterior from the order of lambda to that of lambda^2.

    Args:
        term: g.
        x: where.
        step: lambda, relative to the squared scale.
        scale: of the shape of x, or a scalar.
    """
    step = step * jnp.square(_separated(term, scale))
    if hasattr(term, "huber"):
        return term.huber(x, term.width(step))
    return moreau_envelope(term, x, step)


def widened(term, x, width):
    """Return what stands for g(x) in an adjusted kernel's force, a scalar.

    A norm gets a parabola within `width` of its kink. Any other g gets Moreau's
    envelope with lambda = width^2 / 2, the step that moves as far.

    Args:
        term: g.
        x: where.
        width: a distance, of the shape of x, or a scalar.
    """
    width = _separated(term, width)
    if hasattr(term, "huber"):
        return term.huber(x, width)
    return moreau_envelope(term, x, 0.5 * jnp.square(width))


def _separated(term, number):
    """A number per element, as one for each of what a term separates into.

    That of a row is the root of its mean square. Of all it is the least, but for those
    that are 0, of elements that are always 0.
    """
    if getattr(term, "separable", False):
        return number
    if getattr(term, "by_rows", False) and jnp.ndim(number):
        return jnp.sqrt(jnp.mean(jnp.square(number), axis=-1))
    return jnp.min(jnp.where(number > 0, number, jnp.inf))


def smoothed_log_density(split: Split, smooth: Callable, scales: Mapping) -> Callable:
    """Return `z -> (smoothed log density, log density)` on the sampling space.

    A term of a constrained site's value is not smoothed.

    Args:
        split: of the target.
        smooth: `(term, x, scale) -> what stands for the term`, a scalar.
        scales: of the argument of every term, by name; see `term_scales`.
    """

    def stands_for(name, part):
        if is_smoothable(split, name):
            return smooth(part.term, part.x, scales[name])
        return part.term.value(part.x)

    def evaluate(z):
        smooth_part, parts = split.parts(split.constrain(z))
        f = smooth_part + split.log_det(z)
        g = sum(part.term.value(part.x) for part in parts.values())
        envelope = sum(stands_for(name, part) for name, part in parts.items())
        return f - envelope, f - g

    return evaluate


def is_smoothable(split: Split, name: str) -> bool:
    """Whether a term is one of a real-supported site, or of a composition."""
    return name not in split.supports or is_real(split.supports[name])


def term_scales(split: Split, position: Position, factor: jax.Array) -> dict:
    """How far the arguments of the terms move at unit velocities, sds by name.

    Args:
        split: of the target.
        position: of its structure; its numbers do not count.
        factor: R, in whose coordinates the velocities are.
    """
    z, unravel = ravel_pytree(position)
    sds = jnp.broadcast_to(standard_deviations(factor), z.shape)
    # the value of a real-supported site is its own coordinate, and so is its scale
    scales = dict(split.constrain(unravel(sds)))

    def composed(z):
        _, parts = split.parts(split.constrain(unravel(z)))
        return {k: part.x for k, part in parts.items() if k not in split.supports}

    origin = jnp.zeros_like(z)
    if not jax.eval_shape(composed, origin):
        return scales

    def along(i, sums):
        v = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), z.shape)
        move = matvec(factor, v.astype(z.dtype))
        moved = jax.jvp(composed, (origin,), (move,))[1]
        return jax.tree.map(lambda total, m: total + m * m, sums, moved)

    zeros = jax.tree.map(jnp.zeros_like, composed(origin))
    sums = jax.lax.fori_loop(0, NUM_PROBES, along, zeros)
    return scales | {k: jnp.sqrt(total / NUM_PROBES) for k, total in sums.items()}


def counted_envelope(log_densities: Callable) -> Callable:
    """`(x, count) -> ((smoothed, exact), gradient of smoothed, count + 1)`."""
    both = jax.value_and_grad(log_densities, has_aux=True)

    def evaluate(x, count):
        values, grad = both(x)
        return values, grad, count + 1

    return evaluate
