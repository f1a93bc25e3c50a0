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
from nutfree.target import NonSmooth, Position, Split


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
