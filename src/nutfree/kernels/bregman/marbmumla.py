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

and accepts the end with probability min(1, exp(-Delta)), Delta the change of the true
U, kink and all, plus what the kicks have changed |v|^2 / 2 by. Any force leaves the
posterior invariant, so neither the step nor lambda biases it: exact. L gradients and
one density per transition, about 2.5 / eps.

MARBMUMLA moves in the arc length of the mirror map (`arclength`), MAMYULA on
the sampling space. Where they differ from the papers: the step is leapfrog with the
kick in the middle, so that no force is kept between transitions; R R' is an adapted
covariance, and lambda in units of its diagonal; and a tenth of the transitions, drawn
at random, have steps of eps / 4.
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
from nutfree.kernels.bregman.envelopes import smoothed_log_density
from nutfree.kernels.bregman.trajectory_warmup import trajectory_warmup
from nutfree.numerics.evaluation import (
    counted_value,
    counted_value_and_grad,
    is_finite,
    select,
)
from nutfree.numerics.preconditioning import matvec, transpose
from nutfree.registry import KernelSpec, option
from nutfree.target import Position, Target
from nutfree.warmup import Warmup

#: lambda over eps^2 / 2, the step of the overdamped sampler.
SMOOTHING = 1.0
#: Of the velocity, per unit of time in which a coordinate of unit variance turns.
FRICTION = 0.5
#: Length of a trajectory in the same time.
DURATION = 2.5
#: The most steps that a transition makes by itself.
MAX_STEPS = 128
#: This share of the transitions has steps shorter by this factor, by which chains leave
#: places where the usual step is never accepted.
SHORT_SHARE, SHORT = 0.1, 0.25
#: Energy errors above this are divergences, as in Stan.
DIVERGENT = 1000.0


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


def init(position, logdensity_fn: Target, rng_key=None) -> TrajectoryState:
    del rng_key
    return TrajectoryState(position, logdensity_fn(position))


def steps_for(step_size) -> jax.Array:
    """Steps of a trajectory of the usual duration."""
    return jnp.clip(jnp.ceil(DURATION / step_size), 1, MAX_STEPS).astype(int)


def build_kernel(*, mirrored: bool = True) -> Callable:
    """Return `kernel(rng_key, state, target, step_size, ...)`.

    `step_size` is eps; `num_steps` is L, or 0 for that which `step_size` asks for;
    `smoothing` is 2 lambda / eps^2; `friction` is eta; `factor` is R, of shape
    `(d, d)`, `(d,)` or a scalar; `unit`, `(d,)` or a scalar, is that of the distances
    to a boundary.

    Args:
        mirrored: whether a half-line is moved along by its arc length, or by its log.
    """

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
        eps = jnp.asarray(step_size, z.dtype)
        asked = jnp.asarray(num_steps, int)
        length = jnp.where(asked > 0, asked, steps_for(eps))
        short = jax.random.uniform(short_key) < SHORT_SHARE
        eps = jnp.where(short, SHORT * eps, eps)
        root = jnp.asarray(factor, z.dtype)
        squares = root**2 if root.ndim < 2 else jnp.sum(root**2, axis=1)
        scales = jnp.broadcast_to(jnp.sqrt(squares), z.shape)
        smooth = smoothed_log_density(
            logdensity_fn.split, smoothing * eps**2 / 2, unravel(scales)
        )

        def potential(s):
            z, log_slope = arclength.leave(s, mask, unit)
            return smooth(unravel(z))[0] + log_slope

        evaluate = counted_value_and_grad(potential)
        keep = jnp.exp(-friction * eps)
        stir = jnp.sqrt(-jnp.expm1(-2 * friction * eps))

        def step(i, carry):
            s, v, energy, _, _, count = carry
            noise = jax.random.normal(
                jax.random.fold_in(noise_key, i), z.shape, z.dtype
            )
            # the first finds no velocity yet
            v = jnp.where(i == 0, noise, keep * v + stir * noise)
            middle = s + 0.5 * eps * matvec(root, v)
            _, force, count = evaluate(middle, count)
            kicked = v + eps * matvec(transpose(root), force)
            # as a product, which keeps its digits where the squares would not
            energy = energy + 0.5 * jnp.sum((kicked - v) * (kicked + v))
            s = middle + 0.5 * eps * matvec(root, kicked)
            return s, kicked, energy, middle, force, count

        s = arclength.enter(z, mask, unit)
        none = jnp.zeros((), z.dtype)
        start = (s, jnp.zeros_like(s), none, s, jnp.zeros_like(s), jnp.asarray(0))
        s_new, _, kinetic, visited, force, count = jax.lax.fori_loop(
            0, length, step, start
        )
        z_new, log_slope_new = arclength.leave(s_new, mask, unit)
        position = unravel(z_new)
        value, density_count = counted_value(logdensity_fn)(position, jnp.asarray(0))
        rise = value + log_slope_new - state.logdensity
        error = kinetic - (rise - arclength.leave(s, mask, unit)[1])
        finite = is_finite(z_new, value, error)
        acceptance_rate = jnp.where(finite, jnp.exp(jnp.minimum(-error, 0.0)), 0.0)
        accepted = jax.random.uniform(accept_key) < acceptance_rate
        info = TrajectoryInfo(
            acceptance_rate,
            accepted,
            ~(error <= DIVERGENT) & ~jnp.isneginf(value),
            count,
            density_count,
            length,
            visited,
            force,
        )
        return select(accepted, TrajectoryState(position, value), state), info

    return kernel


def half_lines(position: Position, target: Target, mirrored: bool) -> np.ndarray:
    assert target.split is not None  # hosts have called `require`
    return arclength.on_half_line(position, target.split) & mirrored


def warmup(*, mirrored: bool = True, num_pilot: int = 400) -> Warmup:
    return trajectory_warmup(
        init,
        build_kernel(mirrored=mirrored),
        partial(half_lines, mirrored=mirrored),
        {"num_steps": 0, "smoothing": SMOOTHING, "friction": FRICTION},
        num_pilot,
    )


@dataclass(frozen=True)
class Options:
    step_size: float | None = option(
        None, "step eps, in units of the preconditioned coordinates", gt=0, tuned=True
    )
    num_steps: int | None = option(
        None,
        "steps L of a trajectory; None is 2.5 / eps, at most 128",
        ge=1,
        tuned=True,
    )
    smoothing: float | None = option(
        None, "envelope parameter lambda, as a multiple of eps^2 / 2", gt=0, tuned=True
    )
    friction: float | None = option(
        None, "eta, by which a trajectory forgets its velocity", ge=0, tuned=True
    )
    num_pilot: int = option(400, "transitions before the first, to find scales", ge=40)


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
