"""RBMUMLA: right Bregman-Moreau unadjusted mirror Langevin, for posteriors that are
non-smooth or constrained.

Reference: Lau and Liu, Bregman proximal Langevin Monte Carlo via Bregman-Moreau
envelopes, arXiv 2207.04387. With U = f + g, g convex and non-smooth, phi a mirror map
on the support and g_lambda an envelope of g,

    grad phi(x') = grad phi(x) - gamma grad (f + g_lambda)(x)
                   + sqrt(2 gamma) [grad^2 phi(x)]^(1/2) xi.

x are the values of the sites, each in the geometry of its support, and U is minus the
log of their density there: no Jacobian. The bias is O(gamma) + O(lambda) with lambda =
smoothing * gamma, and O(gamma) + O(lambda^2) for a piecewise linear g. A transition
takes as many steps, of one gradient each, as make successive draws nearly independent.

Four things differ from the paper. phi is in units of the posterior's scale, found in
warm-up, so that it also preconditions. The default phi has a barrier where the paper
has an entropy, and bounded noise, for the reasons in `barriers` and `mirror`. With the
default geometry the envelope's Legendre function is quadratic. A site whose support has
no mirror map is moved by its unconstrained value, with the Jacobian.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.kernels.bregman import myula
from nutfree.kernels.bregman.envelopes import (
    counted_envelope,
    right_bregman_envelope,
    term_scales,
)
from nutfree.kernels.bregman.mirror import Euclidean
from nutfree.kernels.bregman.myula import SMOOTHING, inflation_at
from nutfree.kernels.bregman.predicted import EULER
from nutfree.kernels.bregman.space import Values, space_of
from nutfree.kernels.bregman.unadjusted import (
    UnadjustedInfo,
    transition,
    transition_length,
)
from nutfree.kernels.bregman.unadjusted_warmup import unadjusted_warmup
from nutfree.registry import option
from nutfree.target import Position, Target
from nutfree.warmup import Warmup

GEOMETRY_HELP = (
    "Euclidean on the real line and a barrier at bounds (barrier); the hyperbolic "
    "entropy and a barrier; or the paper's entropies everywhere (entropy), for "
    "densities that vanish at their bounds"
)


@dataclass(frozen=True)
class Options(myula.Options):
    geometry: str = option(
        "barrier", GEOMETRY_HELP, choices=("barrier", "hyperbolic", "entropy")
    )


class RBMUMLAState(NamedTuple):
    """A draw, and the same point in the coordinates that the kernel moves in.

    position
        On the sampling space.
    logdensity
        The target's, there.
    values
        A dict of sites: the value of a site with a mirror map, the unconstrained
        value of one without. Full relative precision near a boundary at zero.
    smoothed, smoothed_grad
        The smoothed log density of `values` and its gradient, of the smoothing that
        the state was reached with; those of `init` have none.
    """

    position: Position
    logdensity: jax.Array
    values: Values
    smoothed: jax.Array
    smoothed_grad: Values


def init(
    position, logdensity_fn: Target, rng_key=None, options=Options()
) -> RBMUMLAState:
    del rng_key
    space = space_of(logdensity_fn, options.geometry)
    values = space.enter(position)
    mirrors = {name: space.maps[name] or Euclidean() for name in values}
    log_densities = space.log_densities(1.0, mirrors)
    value, grad = jax.value_and_grad(lambda w: log_densities(w)[1])(values)
    return RBMUMLAState(position, logdensity_fn(position), values, value, grad)


def build_kernel(
    options=Options(), *, envelope: Callable = right_bregman_envelope
) -> Callable:
    """Return `kernel(rng_key, state, target, step_size, num_steps, ...)`.

    `step_size` is gamma; `num_steps` is the number of steps, or 0 for as many as
    `relaxation` asks for (`transition_length`); `smoothing` is lambda / gamma;
    `inverse_mass_matrix` has the squared scales of the maps and `center` their centres,
    each a scalar or of shape `(d,)` in the order of the sites' names.

    Where `adjusted` is true, as in warm-up, a step is taken with the acceptance rate
    that it would have if the metric did not change along it. With Euclidean maps that
    is the smoothed target's MALA. Otherwise it leaves out what near a boundary costs a
    Metropolis test much, and the law of the unadjusted chain little.

    Args:
        envelope: what smooths a term under the hyperbolic entropy.
    """

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        num_steps=0,
        smoothing=SMOOTHING,
        inverse_mass_matrix=1.0,
        center=0.0,
        relaxation=1.0,
        adjusted=False,
        predicted=None,
    ) -> tuple[RBMUMLAState, UnadjustedInfo]:
        space = space_of(logdensity_fn, options.geometry)
        scales = _filled(jnp.sqrt(inverse_mass_matrix), state.values)
        centers = _filled(center, state.values)
        mirrors = {name: space.mirror(name, scales, centers) for name in scales}
        composed = {}
        if space.is_flat:
            sds = ravel_pytree(scales)[0]
            found = term_scales(logdensity_fn.split, state.position, sds)
            composed = {k: v for k, v in found.items() if k not in mirrors}
        evaluate = counted_envelope(
            space.log_densities(smoothing * step_size, mirrors, composed, envelope)
        )

        def propose(key, state, count):
            x, grad = state.values, state.smoothed_grad
            x_new = _step(key, mirrors, x, grad, step_size)
            (value, logdensity), grad_new, count = evaluate(x_new, count)
            log_ratio = value - state.smoothed
            for name, phi in mirrors.items():
                old, new = (x[name], grad[name]), (x_new[name], grad_new[name])
                log_ratio += _work(phi, old, new, step_size)
            position, logdensity = space.position(x_new, logdensity)
            moved = RBMUMLAState(position, logdensity, x_new, value, grad_new)
            return moved, log_ratio, count

        length = transition_length(step_size, num_steps, relaxation)
        inflation = inflation_at(predicted, step_size, jnp.result_type(float))
        return transition(rng_key, state, length, adjusted, propose, inflation)

    return kernel


def _filled(number, like: Values) -> Values:
    """A scalar or a vector of shape `(d,)` as a tree like `like`."""
    flat, unravel = ravel_pytree(like)
    return unravel(jnp.broadcast_to(number, flat.shape).astype(flat.dtype))


def _step(rng_key, mirrors, x: Values, grad: Values, step_size) -> Values:
    """One step of mirror Langevin from `x`, where the gradient is `grad`."""
    flat, unravel = ravel_pytree(x)
    xi = unravel(jax.random.normal(rng_key, flat.shape, flat.dtype))
    x_new = {}
    for name, phi in mirrors.items():
        y = phi.grad(x[name]) + step_size * grad[name]
        y = y + phi.noise(x[name], xi[name], step_size)
        x_new[name] = phi.clip(phi.inverse(y))
    return x_new


def _work(phi, old, new, step_size) -> jax.Array:
    """One site's share in the log Metropolis ratio of a Langevin step.

    That ratio is the change of the log density, less what the gradients at both ends
    say it should be, less step_size / 4 times the change of their squared norm, here
    in the metric of where the step began.
    """
    (x, grad), (x_new, grad_new) = old, new
    expected = 0.5 * jnp.sum((grad + grad_new) * (x_new - x))
    norms = phi.dual_norm2(x, grad) - phi.dual_norm2(x, grad_new)
    return 0.25 * step_size * norms - expected


def warmup(options=Options(), *, build: Callable = build_kernel) -> Warmup:
    """Tune the kernel that `build(options)` returns."""

    def observe(position, target):
        space = space_of(target, options.geometry)
        values = space.enter(position)
        logs = {
            name: jnp.log(phi.distance(values[name]))
            if (phi := space.maps[name]) is not None and hasattr(phi, "distance")
            else jnp.zeros_like(values[name])
            for name in values
        }
        return ravel_pytree(values)[0], ravel_pytree(logs)[0]

    def metric(found, observed):
        del found
        covariance = observed.coordinates.invertible_covariance()
        variances, slowest = covariance, jnp.ones(())
        if covariance.ndim == 2:
            variances = jnp.diag(covariance)
            sd = jnp.sqrt(variances)
            slowest = jnp.max(jnp.linalg.eigvalsh(covariance / sd / sd[:, None]))
        spread = observed.log_distances.invertible_covariance()
        return {
            "inverse_mass_matrix": variances,
            "center": observed.coordinates.mean,
            # near a boundary the coordinate of standard noise is the log distance
            "relaxation": jnp.maximum(slowest, jnp.max(spread)),
        }

    return unadjusted_warmup(
        lambda position, target: init(position, target, options=options),
        build(options),
        observe,
        metric,
        options.smoothing or SMOOTHING,
        options.num_pilot,
        EULER,
        mirrored=True,
    )


SPEC = replace(
    myula.SPEC,
    name="rbmumla",
    summary="unadjusted mirror Langevin on a smoothed, constrained posterior",
    paper="Lau and Liu 2022, arXiv 2207.04387",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    bias="of order step_size, and of the smoothing lambda = smoothing * step_size: a "
    "smaller step_size reduces both; the kernel Stein discrepancy shows it, but not in "
    "the neck of a funnel; 'marbmumla' has none, at fewer gradients",
)
