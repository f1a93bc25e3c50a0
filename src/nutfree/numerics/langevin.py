"""The steps of Langevin dynamics, overdamped and underdamped, and their bias.

The overdamped step, with a preconditioner, is

    x' = x + R u,    u = (h/2) R' grad log pi(x) + sqrt(h) xi,    xi ~ N(0, I),

with R R' = C the inverse mass matrix, an estimate of the posterior covariance; R is of
shape `(d, d)`, or stands for a diagonal matrix with shape `(d,)` or as a scalar.

A Langevin kernel begins with `init`, and its transition decides what becomes of what
`propose` returns: MALA accepts or rejects it, ULA always takes it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.numerics.evaluation import counted_value_and_grad, flatten, is_finite
from nutfree.numerics.preconditioning import matvec, root, transpose
from nutfree.target import LogDensity, Position

#: Most steps of one transition of a kernel that chooses their number by itself.
MAX_STEPS = 1000


class LangevinState(NamedTuple):
    """Position (a pytree), its log density, and the gradient there (a pytree)."""

    position: Position
    logdensity: jax.Array
    logdensity_grad: Position


class Proposal(NamedTuple):
    """A Langevin step, not yet accepted.

    state
        Where the step leads.
    acceptance_rate
        Its Metropolis-Hastings acceptance probability; 0 where `is_finite` is False.
    is_finite
        Whether the position, its log density and its gradient are.
    num_grad_evals
        Gradients spent.
    """

    state: LangevinState
    acceptance_rate: jax.Array
    is_finite: jax.Array
    num_grad_evals: jax.Array


def init(
    position: Position, logdensity_fn: LogDensity, rng_key=None, options=None
) -> LangevinState:
    """Return the state at `position`; every Langevin kernel's own `init`."""
    del rng_key, options
    return LangevinState(position, *jax.value_and_grad(logdensity_fn)(position))


def propose(
    rng_key: jax.Array,
    state: LangevinState,
    logdensity_fn: LogDensity,
    step_size: jax.Array | float,
    inverse_mass_matrix: jax.Array | float = 1.0,
    factor: jax.Array | None = None,
) -> Proposal:
    """Make one step from `state`.

    Args:
        step_size: h.
        inverse_mass_matrix: C, of shape `(d, d)`, `(d,)` or a scalar.
        factor: R; None to compute it from C.
    """
    x, logdensity, unravel = flatten(state.position, logdensity_fn)
    grad, _ = ravel_pytree(state.logdensity_grad)
    if factor is None:
        factor = root(jnp.asarray(inverse_mass_matrix, x.dtype))
    x_new, move = langevin_step(rng_key, x, grad, step_size, factor)
    evaluate = counted_value_and_grad(logdensity)
    value_new, grad_new, count = evaluate(x_new, jnp.asarray(0))
    log_ratio = metropolis_log_ratio(
        (state.logdensity, grad), (value_new, grad_new), move, step_size, factor
    )
    finite = is_finite(x_new, value_new, grad_new)
    acceptance_rate = jnp.where(finite, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
    proposed = LangevinState(unravel(x_new), value_new, unravel(grad_new))
    return Proposal(proposed, acceptance_rate, finite, count)


def langevin_step(rng_key, x, grad, step_size, factor) -> tuple[jax.Array, jax.Array]:
    """Make one step from `x`, of shape `(d,)`, where the gradient is `grad`.

    Args:
        factor: R.

    Returns:
        `(x', u)`.
    """
    noise = jax.random.normal(rng_key, x.shape, x.dtype)
    drift = 0.5 * step_size * matvec(transpose(factor), grad)
    move = drift + jnp.sqrt(step_size) * noise
    return x + matvec(factor, move), move


def metropolis_log_ratio(old, new, move, step_size, factor) -> jax.Array:
    """Return the log Metropolis-Hastings ratio of a step; NaN becomes -inf.

    Args:
        old, new: pairs of log density and gradient, at x and x'.
        move: u.
        factor: R.
    """
    (value, grad), (value_new, grad_new) = old, new
    there = move - 0.5 * step_size * matvec(transpose(factor), grad)
    back = move + 0.5 * step_size * matvec(transpose(factor), grad_new)
    change = 0.5 * (jnp.sum(there**2) - jnp.sum(back**2)) / step_size
    log_ratio = value_new - value + change
    return jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)


def steps_to_forget(step_size) -> jax.Array:
    """Return the steps after which a chain of unit sd has forgotten 63 % of itself."""
    return steps_lasting(2, step_size, MAX_STEPS)


def steps_lasting(duration, step_size, max_steps: int) -> jax.Array:
    """Return how many steps last `duration`, between one and `max_steps`."""
    return jnp.clip(jnp.ceil(duration / step_size), 1, max_steps).astype(int)


def predicted_inflation(step_size, noise, curvature) -> jax.Array:
    """The fraction by which the overdamped step makes the posterior variance too large.

    On a Gaussian, in coordinates in which its sd is one, the chain's stationary
    variance is (1 + hV/4)/(1 - h L/4): V is the variance of the gradient's noise, and
    L = 1 unless the preconditioner misses a correlation, when it is the largest
    eigenvalue of the preconditioned precision.
    """
    stable = step_size * curvature < 4
    denominator = jnp.where(stable, 1 - step_size * curvature / 4, 1.0)
    inflation = (1 + step_size * noise / 4) / denominator - 1
    return jnp.where(stable, inflation, jnp.inf)


def step_for_inflation(inflation: float, noise, curvature) -> jax.Array:
    """The step size h at which `predicted_inflation` is `inflation`."""
    return 4 * inflation / (noise + (1 + inflation) * curvature)


def baoab_step(
    xi, momentum, gradient, step_size, friction
) -> tuple[jax.Array, jax.Array]:
    """One underdamped step of unit mass by splitting, and the momentum after it.

    Reference: Leimkuhler and Matthews, AMRX 2013, arXiv 1203.5428. With friction gamma,

        B  p += (h/2) g(x)     A  x += (h/2) p     O  p <- c p + sqrt(1 - c^2) xi
        A  x += (h/2) p        B  p += (h/2) g(x)            c = exp(-gamma h).

    The gradient of the last B is that of the next first, so both are made at once, and
    a step costs one gradient. Positions are read where it is evaluated, between A and
    B; there their variance is right on a Gaussian for any step below two.

    Args:
        xi: standard normal, of the momentum's shape.
        momentum: p, of unit variance at equilibrium.
        gradient: g(x), of log pi where the step starts.
        step_size, friction: h, and the momentum's decay per unit of time.

    Returns:
        `(displacement of x, momentum)`.
    """
    kicked = momentum + step_size * gradient
    kept = jnp.exp(-friction * step_size)
    momentum = kept * kicked + jnp.sqrt(-jnp.expm1(-2 * friction * step_size)) * xi
    return 0.5 * step_size * (kicked + momentum), momentum
