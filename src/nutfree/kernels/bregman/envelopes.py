"""The envelopes that smooth the non-smooth terms of the potential.

A term g of the potential is replaced by its envelope: Moreau's,
    inf_y g(y) + |x - y|^2 / (2 step),  gradient (x - prox(x)) / step,
or the right Bregman-Moreau envelope of Lau and Liu, arXiv 2207.04387,
    inf_y g(y) + D_phi(x, y) / step,  gradient (grad phi(x) - grad phi(prox(x))) / step,
which is the first for phi(x) = |x|^2 / 2. Automatic differentiation of the functions
here gives those gradients, and, by the envelope theorem, those in g's own parameters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nutfree.kernels.bregman.entropies import HyperbolicEntropy
from nutfree.kernels.bregman.geometry import mirror_for
from nutfree.kernels.bregman.mirror import Euclidean
from nutfree.target import Position, Split


def moreau_envelope(term, x, step):
    """inf_y g(y) + sum (x - y)^2 / (2 step), a scalar.

    Args:
        term: g.
        x: where.
        step: a scalar, or of the shape of x if `term.separable`.
    """
    if hasattr(term, "huber"):
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
    """The least of a number per element, where a term does not separate."""
    return number if getattr(term, "separable", False) else jnp.min(number)


def smoothed_log_density(split: Split, smooth: Callable, scales: Position) -> Callable:
    """Return `z -> (smoothed log density, log density)` on the sampling space.

    Only real-supported sites have their term smoothed.

    Args:
        split: of the target.
        smooth: `(term, x, scale) -> what stands for the term`, a scalar.
        scales: of the posterior, like a position.
    """
    # the value of a real-supported site is its own coordinate, and so is its scale
    by_site = split.constrain(scales)

    def stands_for(name, term, x):
        if isinstance(mirror_for(split.supports[name]), Euclidean):
            return smooth(term, x, by_site[name])
        return term.value(x)

    def evaluate(z):
        values = split.constrain(z)
        f, nonsmooth = split.terms(values)
        f = f + split.log_det(z)
        g = sum(term.value(values[name]) for name, term in nonsmooth.items())
        envelope = sum(stands_for(k, term, values[k]) for k, term in nonsmooth.items())
        return f - envelope, f - g

    return evaluate


def counted_envelope(log_densities: Callable) -> Callable:
    """`(x, count) -> ((smoothed, exact), gradient of smoothed, count + 1)`."""
    both = jax.value_and_grad(log_densities, has_aux=True)

    def evaluate(x, count):
        values, grad = both(x)
        return values, grad, count + 1

    return evaluate
