"""MARBMUMLA and MAMYULA: Metropolis-adjusted trajectories for posteriors that are
non-smooth or constrained.

References: Pakman and Paninski, arXiv 1208.4118, for the flow of a Gaussian with kinks;
Shahbaba, Lan, Johnson and Neal, arXiv 1106.5941, for its use as a part of a splitting;
Riou-Durand and Vogrinc, arXiv 2202.13230, for the trajectory and its adjustment (MALT);
Lau and Liu, arXiv 2207.04387, for the smoothing. A transition draws v from N(0, I) and
makes L steps of

    (u, v) <- the exact flow of the reference, for eps / 2
    v <- v - eps grad (U - reference)(u)
    (u, v) <- the exact flow of the reference, for eps / 2
    v <- exp(-eta eps) v + sqrt(1 - exp(-2 eta eps)) xi  (not after the last)

and accepts the end with probability min(1, exp(-Delta)). Delta is the change of
U - reference, kinks included, plus the change that the kicks have made to |v|^2 / 2.
Any reference and any force leave the posterior invariant, so the kernel is exact:
neither the step nor the smoothing biases it. A transition takes L gradients and one
density, and L is about 1.7 / eps: one, where the reference is nearly the posterior.

MARBMUMLA's reference is a Gaussian with the posterior's own kinks (`reference`), found
in warm-up, and it moves bounded sites in coordinates in which their tails are those of
a Gaussian (`coordinates`), and real ones in units that positive ones make (`scales`).
MAMYULA has none of these: its flow is s <- s + (eps / 2) R v, on the sampling space. A
kink that is not in the reference is rounded over eps standard deviations, which is how
far one step moves; a width that falls faster than eps would reject at every kink. R R'
is an adapted covariance. A tenth of the transitions, drawn at random, have steps of
eps / 4.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.facts import kinks_or_bounds, non_smooth
from nutfree.kernels.bregman.adjusted_warmup import adjusted_warmup
from nutfree.kernels.bregman.coordinates import Tails, enter, kinds_of, leave
from nutfree.kernels.bregman.geometry import at_the_edge
from nutfree.kernels.bregman.reference import (
    Reference,
    log_density_outside,
    nothing,
)
from nutfree.kernels.bregman.trajectory import trajectory
from nutfree.numerics.evaluation import (
    counted_value,
    is_finite,
    select,
)
from nutfree.numerics.langevin import steps_lasting
from nutfree.numerics.preconditioning import matvec, solve_root
from nutfree.registry import KernelSpec, option
from nutfree.target import Position, Target
from nutfree.warmup import Warmup

#: Width of a smoothed kink, in distances of one step. Measured on 10 and 100 Laplace
#: coordinates: 0.85 to 1.3 are within a tenth of the best, 0.3 rejects five times more.
SMOOTHING = 1.0
#: Friction eta of the velocity, in the unit of time in which eps is a length.
FRICTION = 0.35
#: Length of a trajectory in that unit. pi / 2 carries the squares of a Gaussian
#: farthest, pi its values; on a lasso 1.6 to 2 are the best for the worse of both.
DURATION = 1.7
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
        "steps L of a trajectory; None is 1.7 / eps, at most 128",
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
    divergent, unless it came to where a share or a positive number is less than the
    least of its precision. `visited`, `force` and `outside`, of shape `(d,)`, are the
    last point at which the force was evaluated, in the kernel's coordinates, the force,
    and what of it is not that of the reference's kinks; warm-up learns from them.
    """

    acceptance_rate: jax.Array
    is_accepted: jax.Array
    is_divergent: jax.Array
    num_grad_evals: jax.Array
    num_density_evals: jax.Array
    num_steps: jax.Array
    visited: jax.Array
    force: jax.Array
    outside: jax.Array


def init(
    position, logdensity_fn: Target, rng_key=None, options=Options()
) -> TrajectoryState:
    del rng_key, options
    return TrajectoryState(position, logdensity_fn(position))


def build_kernel(options=Options(), *, mirrored: bool = True) -> Callable:
    """Return `kernel(rng_key, state, target, step_size, ...)`.

    `step_size` is eps; `num_steps` is L, or 0 for that which `step_size` asks for;
    `smoothing` is the width of a rounded kink over eps standard deviations; `friction`
    is eta; `factor` is R, of shape `(d, d)`, lower triangular, `(d,)` or a scalar;
    `tails` are those of bounded sites' coordinates; `reference` is what the
    trajectories follow exactly, or None for nothing.

    Args:
        mirrored: whether bounded sites are moved in the coordinates of `coordinates`,
            or in NumPyro's.
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
        tails=Tails(),
        reference: Reference | None = None,
    ) -> tuple[TrajectoryState, TrajectoryInfo]:
        noise_key, accept_key, short_key = jax.random.split(rng_key, 3)
        z, unravel = ravel_pytree(state.position)
        of = kinds_of(state.position, logdensity_fn.split, mirrored=mirrored)
        root = jnp.asarray(factor, z.dtype)
        ours = nothing(z) if reference is None else reference
        eps = jnp.asarray(step_size, z.dtype)
        length = _length(eps, num_steps)
        short = jax.random.uniform(short_key) < SHORT_SHARE
        eps = jnp.where(short, SHORT_STEP * eps, eps)
        outside = log_density_outside(
            logdensity_fn.split, state.position, ours, root, smoothing * eps
        )

        def outside_at(s):
            z, log_slope = leave(s, of, tails)
            # or a compiler makes z anew for every number that needs it
            position = unravel(jax.lax.optimization_barrier(z))
            edge = at_the_edge(logdensity_fn.split, position)
            return outside(position, s) + log_slope, edge

        s = enter(z, of, tails)
        u = solve_root(root, s - ours.center)
        path = trajectory(noise_key, u, outside_at, ours, root, eps, friction, length)
        s_new = ours.center + matvec(root, path.end)
        z_new, log_slope_new = leave(s_new, of, tails)
        z_new = jax.lax.optimization_barrier(z_new)
        position = unravel(z_new)
        value, density_count = counted_value(logdensity_fn)(position, jnp.asarray(0))
        rise = value + log_slope_new - state.logdensity
        rise = rise - leave(s, of, tails)[1]
        followed = ours.potential(path.end, root) - ours.potential(u, root)
        error = path.kinetic - rise - followed
        finite = is_finite(z_new, value, error)
        acceptance_rate = jnp.where(
            finite & path.arrived, jnp.exp(jnp.minimum(-error, 0.0)), 0.0
        )
        escaped = path.escaped | at_the_edge(logdensity_fn.split, position)
        accepted = jax.random.uniform(accept_key) < acceptance_rate
        info = TrajectoryInfo(
            acceptance_rate,
            accepted,
            ~(error <= DIVERGENT) & ~jnp.isneginf(value) & ~escaped,
            path.num_grad_evals,
            density_count,
            length,
            path.visited,
            path.force,
            path.outside,
        )
        return select(accepted, TrajectoryState(position, value), state), info

    return kernel


def _length(step_size, num_steps) -> jax.Array:
    """`num_steps`, or where it is 0 the number whose duration is next to `DURATION`."""
    asked = jnp.asarray(num_steps, int)
    nearest = steps_lasting(DURATION - 0.5 * step_size, step_size, MAX_STEPS)
    return jnp.where(asked > 0, asked, nearest)


def warmup(
    options=Options(), *, mirrored: bool = True, follows: bool | None = None
) -> Warmup:
    """Tune the kernel; `follows` is whether trajectories follow a reference."""
    follows = mirrored if follows is None else follows

    def coordinates(z, position, target, tails):
        of = kinds_of(position, target.split, mirrored=mirrored)
        _, unravel = ravel_pytree(position)

        def position_of(s):
            # a kink at 0 stays there, whatever the scale
            return unravel(leave(s, of, tails, jax.lax.stop_gradient)[0])

        return enter(z, of, tails), position_of

    return adjusted_warmup(
        init,
        build_kernel(mirrored=mirrored),
        partial(kinds_of, mirrored=mirrored),
        {
            "num_steps": options.num_steps or 0,
            "smoothing": options.smoothing or SMOOTHING,
            "friction": FRICTION if options.friction is None else options.friction,
        },
        options.num_pilot,
        DURATION,
        coordinates if follows else None,
    )


def gradients(options, params, target) -> jax.Array:
    """The steps of a transition."""
    del options, target
    return _length(params["step_size"], params["num_steps"])


SPEC = KernelSpec(
    name="marbmumla",
    family="bregman",
    summary="adjusted trajectories along the exact flow of a Gaussian with kinks",
    paper="Pakman and Paninski 2014, arXiv 1208.4118; adjusted as in arXiv 2202.13230",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    needs=("split",),
    suits=kinks_or_bounds,
    guarantee="exact",
    gradients=gradients,
    only_for_warmup=("visited", "force", "outside"),
    recommended=True,
)
MAMYULA = replace(
    SPEC,
    name="mamyula",
    recommended=False,
    suits=non_smooth,
    summary="adjusted Langevin trajectories on a Moreau-smoothed force",
    paper="Durmus, Moulines and Pereyra 2018, arXiv 1612.07471; adjusted as in arXiv "
    "2202.13230",
    build_kernel=partial(build_kernel, mirrored=False),
    warmup=partial(warmup, mirrored=False),
)
SPECS = (SPEC, MAMYULA)
