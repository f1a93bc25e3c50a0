"""MARBMUMLA and MAMYULA: Metropolis-adjusted Langevin trajectories along a smoothed
force, for posteriors that are non-smooth or constrained.

References: Lau and Liu, arXiv 2207.04387, and Durmus, Moulines and Pereyra, arXiv
1612.07471, for the force, minus the gradient of f + g_lambda with U = f + g; and
Riou-Durand and Vogrinc, arXiv 2202.13230, for the trajectory and its adjustment (MALT).
A transition draws v from N(0, I) and makes L steps of

    s <- s + (eps/2) R v
    v <- v - eps R' grad (f + g_lambda)(s)
    s <- s + (eps/2) R v
    v <- exp(-eta eps) v + sqrt(1 - exp(-2 eta eps)) xi  (not after the last)

and accepts the end with probability min(1, exp(-Delta)). Delta is the change of U
itself, kinks included, plus the change that the kicks have made to |v|^2 / 2. Any force
leaves the posterior invariant, so the kernel is exact: neither the step nor lambda
biases it. A transition takes L gradients and one density, and L is about 1.6 / eps.

MARBMUMLA moves in the arc length of the mirror map (`arclength`), MAMYULA on the
sampling space. Three things differ from the papers. The kick is in the middle of the
step, so that no force is kept between transitions. R R' is an adapted covariance, and
g_lambda is g with its kinks rounded over eps standard deviations, which is how far one
step moves; a width that falls faster than eps would reject at every kink. A tenth of
the transitions, drawn at random, have steps of eps / 4.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from nutfree.facts import non_smooth
from nutfree.kernels.bregman import arclength
from nutfree.kernels.bregman.adjusted_warmup import adjusted_warmup
from nutfree.kernels.bregman.envelopes import smoothed_log_density, widened
from nutfree.numerics.evaluation import (
    counted_value,
    counted_value_and_grad,
    is_finite,
    select,
)
from nutfree.numerics.langevin import steps_lasting
from nutfree.numerics.preconditioning import matvec, standard_deviations, transpose
from nutfree.registry import KernelSpec, option
from nutfree.target import Position, Target
from nutfree.warmup import Warmup

#: Width of a smoothed kink, in distances of one step. Measured on 10 and 100 Laplace
#: coordinates: 0.85 to 1.3 are within a tenth of the best, 0.3 rejects five times more.
SMOOTHING = 1.0
#: Friction eta of the velocity, in the unit of time in which eps is a length.
FRICTION = 0.35
#: Length of a trajectory in that unit. pi / 2 carries the squares of a Gaussian
#: farthest, pi its values; 2.5 cost the squares half.
DURATION = 1.6
#: Most steps of one trajectory whose number the kernel chooses by itself.
MAX_STEPS = 128
#: Share of the transitions with short steps, by which a chain leaves places where the
#: usual step is never accepted.
SHORT_SHARE = 0.1
#: Length of a short step, relative to the usual one.
SHORT_STEP = 0.25
#: Energy error above which a transition is divergent, as in Stan.
DIVERGENT = 1000.0


@dataclass(frozen=True)
class Options:
    step_size: float | None = option(
        None, "step eps, in units of the preconditioned coordinates", gt=0, tuned=True
    )
    num_steps: int | None = option(
        None,
        "steps L of a trajectory; None is 1.6 / eps, at most 128",
        ge=1,
        tuned=True,
    )
    smoothing: float | None = option(
        None, "width of a smoothed kink, in distances of one step", gt=0, tuned=True
    )
    friction: float | None = option(
        None, "eta, by which a trajectory forgets its velocity", ge=0, tuned=True
    )
    num_pilot: int = option(400, "transitions before the first, to find scales", ge=40)


class TrajectoryState(NamedTuple):
    """Position (a pytree) and its log density."""

    position: Position
    logdensity: jax.Array


class TrajectoryInfo(NamedTuple):
    """Acceptance probability, and the evaluations spent.

    A trajectory whose energy error is not finite, or above 1,000, is a rejection and
    divergent. `visited` and `force`, both of shape `(d,)`, are the last point at which
    the force was evaluated, in the kernel's coordinates, and the force; warm-up learns
    from them.
    """

    acceptance_rate: jax.Array
    is_accepted: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array
    num_density_evals: jax.Array
    num_steps: jax.Array
    visited: jax.Array
    force: jax.Array


class Trajectory(NamedTuple):
    """A trajectory so far: its end, and the change of |v|^2 / 2 by its kicks."""

    end: jax.Array
    velocity: jax.Array
    kinetic: jax.Array
    visited: jax.Array
    force: jax.Array
    num_grad_evals: jax.Array


def init(
    position, logdensity_fn: Target, rng_key=None, options=Options()
) -> TrajectoryState:
    del rng_key, options
    return TrajectoryState(position, logdensity_fn(position))


def build_kernel(options=Options(), *, mirrored: bool = True) -> Callable:
    """Return `kernel(rng_key, state, target, step_size, ...)`.

    `step_size` is eps; `num_steps` is L, or 0 for that which `step_size` asks for;
    `smoothing` is the width of a rounded kink over eps standard deviations; `friction`
    is eta; `factor` is R, of shape `(d, d)`, `(d,)` or a scalar; `unit`, `(d,)` or a
    scalar, is that of the distances to a boundary.

    Args:
        mirrored: whether a half-line is moved along by its arc length, or by its log.
    """
    del options

    def kernel(
        rng_key,
        state,
        logdensity_fn,
        step_size,
        num_steps=0,
        smoothing=SMOOTHING,
        friction=FRICTION,
        factor=1.0,
        unit=1.0,
    ) -> tuple[TrajectoryState, TrajectoryInfo]:
        noise_key, accept_key, short_key = jax.random.split(rng_key, 3)
        z, unravel = ravel_pytree(state.position)
        mask = half_lines(state.position, logdensity_fn, mirrored)
        root = jnp.asarray(factor, z.dtype)
        eps = jnp.asarray(step_size, z.dtype)
        length = _length(eps, num_steps)
        short = jax.random.uniform(short_key) < SHORT_SHARE
        eps = jnp.where(short, SHORT_STEP * eps, eps)
        scales = jnp.broadcast_to(standard_deviations(root), z.shape)

        def smooth(term, x, scale):
            return widened(term, x, smoothing * eps * scale)

        log_densities = smoothed_log_density(
            logdensity_fn.split, smooth, unravel(scales)
        )

        def potential(s):
            z, log_slope = arclength.leave(s, mask, unit)
            return log_densities(unravel(z))[0] + log_slope

        s = arclength.enter(z, mask, unit)
        path = _trajectory(noise_key, s, potential, root, eps, friction, length)
        z_new, log_slope_new = arclength.leave(path.end, mask, unit)
        position = unravel(z_new)
        value, density_count = counted_value(logdensity_fn)(position, jnp.asarray(0))
        rise = value + log_slope_new - state.logdensity
        error = path.kinetic - (rise - arclength.leave(s, mask, unit)[1])
        finite = is_finite(z_new, value, error)
        acceptance_rate = jnp.where(finite, jnp.exp(jnp.minimum(-error, 0.0)), 0.0)
        accepted = jax.random.uniform(accept_key) < acceptance_rate
        info = TrajectoryInfo(
            acceptance_rate,
            accepted,
            ~(error <= DIVERGENT) & ~jnp.isneginf(value),
            path.num_grad_evals,
            density_count,
            length,
            path.visited,
            path.force,
        )
        return select(accepted, TrajectoryState(position, value), state), info

    return kernel


def _length(step_size, num_steps) -> jax.Array:
    """`num_steps`, or where it is 0 the number whose duration is next to `DURATION`."""
    asked = jnp.asarray(num_steps, int)
    nearest = steps_lasting(DURATION - 0.5 * step_size, step_size, MAX_STEPS)
    return jnp.where(asked > 0, asked, nearest)


def _trajectory(rng_key, start, potential, root, eps, friction, length) -> Trajectory:
    """Make `length` steps from `start`, `(d,)`, along the gradient of `potential`."""
    evaluate = counted_value_and_grad(potential)
    keep = jnp.exp(-friction * eps)
    stir = jnp.sqrt(-jnp.expm1(-2 * friction * eps))

    def step(i, path: Trajectory) -> Trajectory:
        key = jax.random.fold_in(rng_key, i)
        noise = jax.random.normal(key, start.shape, start.dtype)
        # the first step finds no velocity yet
        v = jnp.where(i == 0, noise, keep * path.velocity + stir * noise)
        middle = path.end + 0.5 * eps * matvec(root, v)
        _, force, count = evaluate(middle, path.num_grad_evals)
        kicked = v + eps * matvec(transpose(root), force)
        # as a product, which keeps its digits where the squares would not
        kinetic = path.kinetic + 0.5 * jnp.sum((kicked - v) * (kicked + v))
        end = middle + 0.5 * eps * matvec(root, kicked)
        return Trajectory(end, kicked, kinetic, middle, force, count)

    zeros, none = jnp.zeros_like(start), jnp.zeros((), start.dtype)
    begun = Trajectory(start, zeros, none, start, zeros, jnp.asarray(0))
    return jax.lax.fori_loop(0, length, step, begun)


def half_lines(position: Position, target: Target, mirrored: bool) -> np.ndarray:
    """Which coordinates of the flat position are moved along by their arc length."""
    assert target.split is not None  # hosts have called `require`
    return arclength.on_half_line(position, target.split) & mirrored


def warmup(options=Options(), *, mirrored: bool = True) -> Warmup:
    return adjusted_warmup(
        init,
        build_kernel(mirrored=mirrored),
        partial(half_lines, mirrored=mirrored),
        {
            "num_steps": options.num_steps or 0,
            "smoothing": options.smoothing or SMOOTHING,
            "friction": FRICTION if options.friction is None else options.friction,
        },
        options.num_pilot,
    )


def gradients(options, params, target) -> jax.Array:
    """The steps of a transition."""
    del options, target
    return _length(params["step_size"], params["num_steps"])


SPEC = KernelSpec(
    name="marbmumla",
    family="bregman",
    summary="adjusted Langevin trajectories on a smoothed force, in mirror coordinates",
    paper="Lau and Liu 2022, arXiv 2207.04387; adjusted as in arXiv 2202.13230",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    needs=("split",),
    suits=non_smooth,
    guarantee="exact",
    gradients=gradients,
    recommended=True,
)
MAMYULA = replace(
    SPEC,
    name="mamyula",
    recommended=False,
    summary="adjusted Langevin trajectories on a Moreau-smoothed force",
    paper="Durmus, Moulines and Pereyra 2018, arXiv 1612.07471; adjusted as in arXiv "
    "2202.13230",
    build_kernel=partial(build_kernel, mirrored=False),
    warmup=partial(warmup, mirrored=False),
)
SPECS = (SPEC, MAMYULA)
