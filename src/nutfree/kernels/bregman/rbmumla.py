"""RBMUMLA: right Bregman-Moreau unadjusted mirror Langevin, for posteriors that are
non-smooth or constrained.

Reference: Lau and Liu, Bregman proximal Langevin Monte Carlo via Bregman-Moreau
envelopes, arXiv 2207.04387. With U = f + g, g convex and non-smooth, phi a mirror map
on the support and g_lambda an envelope of g,

    grad phi(x') = grad phi(x) - gamma grad (f + g_lambda)(x)
                   + sqrt(2 gamma) [grad^2 phi(x)]^(1/2) xi.

x are the values of the sites, each in the geometry of its support, and U is minus the
log of their density there: no Jacobian. Bias O(gamma) + O(lambda), lambda = smoothing *
gamma. A transition is so many steps, of one gradient each, that successive draws are
nearly independent.

Where it differs from the paper: phi is in units of the posterior's scale, found in
warm-up, so that it also preconditions; the default phi has a barrier where the paper
has an entropy, and bounded noise, both for the reasons in `kernels.bregman.mirror`; and
with the default geometry the envelope's Legendre function is quadratic. A site whose
support has no mirror map is moved by its unconstrained value, with the Jacobian.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from numpyro.distributions import biject_to

from nutfree.errors import UnsupportedModel
from nutfree.facts import non_smooth
from nutfree.kernels.bregman import marbmumla, myula
from nutfree.kernels.bregman.envelopes import (
    counted_envelope,
    right_bregman_envelope,
    smoothed,
)
from nutfree.kernels.bregman.mirror import Euclidean, HyperbolicEntropy, mirror_for
from nutfree.kernels.bregman.myula import SMOOTHING
from nutfree.kernels.bregman.overdamped import OverdampedInfo, steps_for, transition
from nutfree.kernels.bregman.overdamped_warmup import overdamped_warmup
from nutfree.registry import KernelSpec, option
from nutfree.target import Position, Split, Target
from nutfree.warmup import Warmup

Values = Mapping[str, jax.Array]


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


@dataclass(frozen=True, eq=False)
class _Space:
    """The coordinates that the kernel moves in: `maps` has None for a site without."""

    split: Split
    maps: Mapping[str, Any]

    @property
    def bare(self) -> list[str]:
        """Sites that move by their unconstrained values."""
        return [name for name, mirror in self.maps.items() if mirror is None]

    def mirror(self, name: str, scales: Values, centers: Values):
        return (self.maps[name] or Euclidean()).at(scales[name], centers[name])

    def enter(self, position: Position) -> dict[str, jax.Array]:
        values = self.split.constrain(position)
        if self.bare and not (
            isinstance(position, dict) and values.keys() <= {*position}
        ):
            raise UnsupportedModel(
                f"Of the support of {', '.join(self.bare)} there is no mirror map, and "
                "the position is no dictionary with its unconstrained value. Write the "
                "position as a dictionary from site name to unconstrained value."
            )
        return {
            name: position[name] if mirror is None else mirror.clip(values[name])
            for name, mirror in self.maps.items()
        }

    def leave(self, coordinates: Values) -> tuple[dict, jax.Array]:
        """The values of all sites, and the log Jacobian of those that have no map."""
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

    def log_densities(self, smoothing, mirrors) -> Callable:
        """`coordinates -> (smoothed, as is)`, of the density of the coordinates."""

        def stands_for(name, term, x):
            phi = mirrors[name]
            if isinstance(phi, HyperbolicEntropy) and hasattr(term, "right_prox"):
                return right_bregman_envelope(term, phi, x, smoothing)
            if self.maps[name] is None:
                return term.value(x)
            return smoothed(term, x, smoothing, phi.scale)

        def evaluate(coordinates):
            values, log_det = self.leave(coordinates)
            smooth, nonsmooth = self.split.terms(values)
            g = sum(term.value(values[k]) for k, term in nonsmooth.items())
            envelope = sum(stands_for(k, t, values[k]) for k, t in nonsmooth.items())
            return smooth + log_det - envelope, smooth + log_det - g

        return evaluate

    def position(self, coordinates: Values, logdensity) -> tuple[Position, jax.Array]:
        """The draw on the sampling space and the target's log density there."""
        values, log_det = self.leave(coordinates)
        position = self.split.unconstrain(values)
        for name in self.bare:
            position = {**position, name: coordinates[name]}
        return position, logdensity - log_det + self.split.log_det(position)


def _space(target: Target, geometry: str) -> _Space:
    split = target.split
    assert split is not None  # hosts have called `require`
    maps = {name: mirror_for(c, geometry) for name, c in split.supports.items()}
    return _Space(split, maps)


def init(
    position, logdensity_fn: Target, rng_key=None, *, geometry: str = "barrier"
) -> RBMUMLAState:
    del rng_key
    space = _space(logdensity_fn, geometry)
    values = space.enter(position)
    mirrors = {name: space.maps[name] or Euclidean() for name in values}
    log_densities = space.log_densities(1.0, mirrors)
    smoothed_value, grad = jax.value_and_grad(lambda w: log_densities(w)[1])(values)
    return RBMUMLAState(position, logdensity_fn(position), values, smoothed_value, grad)


def build_kernel(geometry: str = "barrier") -> Callable:
    """Return `kernel(rng_key, state, target, step_size, num_steps, ...)`.

    `step_size` is gamma; `num_steps` is the number of steps, or 0 for as many as
    `relaxation` asks for (`kernels.bregman.overdamped`); `smoothing` is lambda / gamma;
    `inverse_mass_matrix` has the squared scales of the maps and `center` their centres,
    each a scalar or of shape `(d,)` in the order of the sites' names.

    Where `adjusted` is true, as in warm-up, a step is taken with the acceptance rate
    that it would have if the metric did not change along it. With Euclidean maps that
    is the smoothed target's MALA. Else it leaves out what near a boundary costs a
    Metropolis test much, and the law of the unadjusted chain little.

    Args:
        geometry: "barrier", "hyperbolic" or "entropy"; see `kernels.bregman.mirror`.
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
    ) -> tuple[RBMUMLAState, OverdampedInfo]:
        space = _space(logdensity_fn, geometry)
        scales = _filled(jnp.sqrt(inverse_mass_matrix), state.values)
        centers = _filled(center, state.values)
        mirrors = {name: space.mirror(name, scales, centers) for name in scales}
        lambda_ = smoothing * step_size
        evaluate = counted_envelope(space.log_densities(lambda_, mirrors))

        def propose(key, state, count):
            x, grad = state.values, state.smoothed_grad
            flat, unravel = ravel_pytree(x)
            xi = unravel(jax.random.normal(key, flat.shape, flat.dtype))
            x_new = {}
            for name, phi in mirrors.items():
                y = phi.grad(x[name]) + step_size * grad[name]
                y = y + phi.noise(x[name], xi[name], step_size)
                x_new[name] = phi.clip(phi.inverse(y))
            (value, logdensity), grad_new, count = evaluate(x_new, count)
            log_ratio = value - state.smoothed
            for name, phi in mirrors.items():
                old, new = (x[name], grad[name]), (x_new[name], grad_new[name])
                log_ratio += _work(phi, old, new, step_size)
            position, logdensity = space.position(x_new, logdensity)
            moved = RBMUMLAState(position, logdensity, x_new, value, grad_new)
            return moved, log_ratio, count

        length = steps_for(step_size, num_steps, relaxation)
        return transition(rng_key, state, length, adjusted, propose)

    return kernel


def _filled(number, like: Values) -> Values:
    """A scalar or a vector of shape `(d,)` as a tree like `like`."""
    flat, unravel = ravel_pytree(like)
    return unravel(jnp.broadcast_to(number, flat.shape).astype(flat.dtype))


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


def warmup(geometry: str = "barrier", num_pilot: int = 400) -> Warmup:
    def look(position, target):
        """The values, and the logs of the distances to their boundaries."""
        space = _space(target, geometry)
        values = space.enter(position)
        logs = {
            name: jnp.log(phi.distance(values[name]))
            if (phi := space.maps[name]) is not None and hasattr(phi, "distance")
            else jnp.zeros_like(values[name])
            for name in values
        }
        return ravel_pytree(values)[0], ravel_pytree(logs)[0]

    def metric(found, moments, spread):
        del found
        covariance = moments.invertible_covariance()
        variances = jnp.diag(covariance)
        sd = jnp.sqrt(variances)
        slowest = jnp.max(jnp.linalg.eigvalsh(covariance / sd / sd[:, None]))
        return {
            "inverse_mass_matrix": variances,
            "center": moments.mean,
            # near a boundary the coordinate of standard noise is the log distance
            "relaxation": jnp.maximum(slowest, jnp.max(spread)),
        }

    return overdamped_warmup(
        lambda position, target: init(position, target, geometry=geometry),
        build_kernel(geometry),
        marbmumla.init,
        marbmumla.build_kernel(),
        marbmumla.warmup(num_pilot=num_pilot),
        look,
        metric,
        SMOOTHING,
    )


@dataclass(frozen=True)
class Options(myula.Options):
    geometry: str = option(
        "barrier",
        "on the real line a Euclidean map (barrier), or the hyperbolic entropy",
        choices=("barrier", "hyperbolic"),
    )


SPEC = KernelSpec(
    name="rbmumla",
    family="bregman",
    summary="unadjusted mirror Langevin on a smoothed, constrained posterior",
    paper="Lau and Liu 2022, arXiv 2207.04387",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    needs=("split",),
    suits=non_smooth,
    guarantee="biased",
    bias="of order step_size, and of the smoothing lambda = smoothing * step_size: a "
    "smaller step_size reduces both; the kernel Stein discrepancy shows it, but not in "
    "the neck of a funnel, where 'marbmumla' is right",
)
