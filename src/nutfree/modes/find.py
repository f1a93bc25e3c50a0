"""The separate modes of a posterior, for what judges draws and recommends kernels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from nutfree.modes.candidates import (
    WIDEST,
    Candidates,
    curvature_at,
    laplace_at,
    newton_decrement,
    principal,
)
from nutfree.modes.search import ARRIVED, Effort, search
from nutfree.numerics.programs import jitted
from nutfree.target import Position, Target

__all__ = ["SeparateModes", "find_modes"]

#: Work of `find_modes` by default: some 10,000 gradients in few dimensions.
DEFAULT_EFFORT = Effort(num_starts=64, num_probes=512, num_modes=64)
#: Work of it in verdicts and recommendations: from 96 draws of the prior, no probes.
BRIEF_EFFORT = Effort(num_starts=96, num_steps=100, num_modes=64)

#: Newton steps from a candidate; near a mode they converge in four or five.
MAX_NEWTON_STEPS = 12
#: Squared length of a Newton step, in widths, at which they end.
CONVERGED = 1e-4
#: Share of the largest curvature below which a negative one may be rounding.
ROUNDING = 1e-5
#: Shares of a Newton step that are tried.
LENGTHS = (1.0, 0.25, 0.0625)


class SeparateModes(NamedTuple):
    """The separate modes of a posterior, the heaviest first.

    position
        Where they are; a pytree like a position, with a leading axis of modes.
    log_mass
        `(modes,)`, log of the integral of the density over each, by Laplace's
        approximation.
    sd
        The approximation's standard deviations, a pytree like `position`.
    covariance
        `(modes, d, d)`, its covariance over the raveled position; `(modes, d)`, the
        variances given all other coordinates, above 64 dimensions.
    num_grad_evals
        Gradients that the search has cost.
    """

    position: Position
    log_mass: NDArray
    sd: Position
    covariance: NDArray
    num_grad_evals: int

    @property
    def weights(self) -> NDArray:
        """Shares of the mass, `(modes,)`."""
        mass = np.exp(self.log_mass - self.log_mass.max(initial=-np.inf))
        return mass / mass.sum()


def find_modes(
    target: Target, *, seed: int = 0, effort: Effort = DEFAULT_EFFORT
) -> SeparateModes:
    """Find the separate modes of a target.

    Newton's method goes on from where the descents of the search end, as these may stop
    along a ridge or in a tail. Only where it arrives, and the density curves down, is a
    mode. One that is narrow and far from everything is easily missed: there may be more
    modes than are found. Where correlations are near to one, single precision may find
    none.

    Args:
        target: a posterior with a gradient; starts are drawn from its prior where it
            has one.
        seed: of the starts.
        effort: how much work to do.

    Returns:
        At most `effort.num_modes` modes; none where no descent arrived.

    Example:
        >>> import jax.numpy as jnp
        >>> from nutfree.target import Target
        >>> def logdensity(x):
        ...     return jnp.logaddexp(-2 * (x - 3) ** 2, -2 * (x + 3) ** 2).sum()
        >>> found = find_modes(Target(logdensity, position=jnp.zeros(1)))
        >>> sorted(found.position.round(2).ravel().tolist()), found.sd.round(2).tolist()
        ([-3.0, 3.0], [[0.5], [0.5]])
        >>> found.weights.round(2).tolist()
        [0.5, 0.5]
    """
    return ModeSearch(target, effort)(seed)


class ModeSearch:
    """`find_modes` with a program that can be compiled before it is needed."""

    def __init__(self, target: Target, effort: Effort = DEFAULT_EFFORT):
        self._target, self._effort = target, effort
        self._program = jitted(self._approximations)

    def compile_ahead(self) -> None:
        """Compile in a thread while the caller goes on."""
        self._program.compile_ahead(jax.random.key(0))

    def __call__(self, seed: int = 0) -> SeparateModes:
        """Return the modes, at most as many as the effort allows."""
        separate, laplace, spent = self._program(jax.random.key(seed))
        order = np.argsort(-np.asarray(laplace[1]), kind="stable")
        kept = order[np.asarray(separate)[order]][: self._effort.num_modes]
        x, log_mass, sd, covariance = (np.asarray(part)[kept] for part in laplace)
        _, unravel = ravel_pytree(self._target.position)
        unravel_all = jax.vmap(unravel)
        return SeparateModes(
            jax.tree.map(np.asarray, unravel_all(x)),
            log_mass,
            jax.tree.map(np.asarray, unravel_all(sd)),
            covariance,
            int(spent),
        )

    def _approximations(self, rng_key):
        """Return which candidates are modes, their approximations, and the cost."""
        target = self._target
        search_key, newton_key = jax.random.split(rng_key)
        found = search(search_key, target.position, target, self._effort)
        modes, step, spent = _arrived(newton_key, found.logdensity, found.candidates)
        is_mode = jax.vmap(_curves_down)(modes.curvature) & (step < ARRIVED)
        modes = modes._replace(values=jnp.where(is_mode, modes.values, -jnp.inf))
        separate = (modes.weights > 0) & jnp.isfinite(modes.values)
        unit = found.unit
        log_unit = jnp.sum(jnp.log(unit)) + 0.5 * unit.size * jnp.log(2 * jnp.pi)
        if modes.axes.size:
            root = unit[:, None] * modes.axes * modes.width[:, None]
            covariance = root @ jnp.swapaxes(root, 1, 2)
            variance = jnp.sum(root**2, axis=-1)
        else:
            variance = covariance = (unit * modes.width) ** 2
        x = found.origin + unit * modes.position
        spent = found.num_grad_evals + spent
        laplace = (x, modes.log_mass + log_unit, jnp.sqrt(variance), covariance)
        return separate, laplace, spent


def _arrived(
    rng_key, logdensity, found: Candidates
) -> tuple[Candidates, jax.Array, jax.Array]:
    """Make Newton steps from every candidate that counts, until they are short.

    Returns:
        `(candidates, newton_decrement, evaluations)`.
    """

    def step(carry):
        u, value, i, _, count = carry
        curvature, products = curvature_at(logdensity, u, rng_key)
        width, axes = principal(curvature)
        grad = jax.grad(logdensity)(u)
        z = width * (axes.T @ grad if axes.size else grad)
        move = axes @ (width * z) if axes.size else width * z
        ends = u + jnp.asarray(LENGTHS, u.dtype)[:, None] * move
        values = jax.vmap(logdensity)(ends)
        best = jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))
        better = values[best] > value
        u, value = (
            jnp.where(better, ends[best], u),
            jnp.where(better, values[best], value),
        )
        going = better & (jnp.sum(z**2) > CONVERGED)
        return u, value, i + 1, going, count + products + 1 + len(LENGTHS)

    def from_candidate(candidate):
        u, value, counts = candidate
        start = (u, value, jnp.asarray(0), counts, jnp.asarray(0))
        end = jax.lax.while_loop(
            lambda c: c[3] & (c[2] < MAX_NEWTON_STEPS), step, start
        )
        return end[0], end[1], end[4]

    counts = (found.weights > 0) & jnp.isfinite(found.values)
    points, values, spent = jax.lax.map(
        from_candidate, (found.position, found.values, counts)
    )
    values = jnp.where(counts, values, -jnp.inf)
    modes, count = laplace_at(logdensity, points, values, rng_key)
    gradients = jax.vmap(jax.grad(logdensity))(points)
    decrement = newton_decrement(gradients, modes)
    if modes.axes.size:
        scaled = jax.vmap(_scaled_decrement)(gradients, modes.curvature)
        decrement = jnp.maximum(decrement, scaled)
    return modes, decrement, jnp.sum(spent) + count + len(points)


def _scaled_decrement(gradient, curvature) -> jax.Array:
    """Compute the squared length of a Newton step in coordinates of unit curvature.

    Where curvatures differ by 1e7, as in the neck of a funnel, rounding makes up the
    small eigenvalues of their matrix, and a slope seems to be a mode. It does not reach
    those of a matrix that is scaled to a unit diagonal.
    """
    scale = jnp.minimum(jnp.abs(jnp.diag(curvature)) ** -0.5, WIDEST)
    scaled = jnp.nan_to_num(curvature * scale[:, None] * scale)
    eigenvalues, axes = jnp.linalg.eigh(scaled)
    size = jnp.maximum(jnp.abs(eigenvalues), ROUNDING)
    return jnp.sum((axes.T @ (scale * gradient)) ** 2 / size)


def _curves_down(curvature) -> jax.Array:
    """Tell a mode from a saddle point."""
    diagonal = curvature.ndim == 1
    eigenvalues = curvature if diagonal else jnp.linalg.eigvalsh(curvature)
    return jnp.min(eigenvalues) > -ROUNDING * jnp.max(jnp.abs(eigenvalues))
