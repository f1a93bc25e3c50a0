"""The separate modes of a posterior, for what judges draws and recommends kernels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from nutfree.modes.candidates import newton_decrement
from nutfree.modes.search import ARRIVED, Effort, search
from nutfree.target import Position, Target

__all__ = ["SeparateModes", "find_modes"]

#: Work of `find_modes` by default: some 10,000 gradients in few dimensions.
DEFAULT_EFFORT = Effort(num_starts=64, num_probes=512, num_modes=64)


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

    Only ends at which a Newton step stays well inside the mode are modes, so that
    descents which have not converged along a ridge, or in a tail, make none. A mode
    that is narrow and far from everything is easily missed: what is found is certain,
    what is not found is not.

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
    """
    _, unravel = ravel_pytree(target.position)

    def approximations(rng_key):
        found = search(rng_key, target.position, target, effort)
        modes, unit = found.candidates, found.unit
        step = newton_decrement(found.logdensity, modes)
        separate = (modes.weights > 0) & jnp.isfinite(modes.values) & (step < ARRIVED)
        log_unit = jnp.sum(jnp.log(unit)) + 0.5 * unit.size * jnp.log(2 * jnp.pi)
        if modes.axes.size:
            root = unit[:, None] * modes.axes * modes.width[:, None]
            covariance = root @ jnp.swapaxes(root, 1, 2)
            variance = jnp.sum(root**2, axis=-1)
        else:
            variance = covariance = (unit * modes.width) ** 2
        x = found.origin + unit * modes.position
        spent = found.num_grad_evals + len(x)
        laplace = (x, modes.log_mass + log_unit, jnp.sqrt(variance), covariance)
        return separate, laplace, spent

    separate, laplace, spent = jax.jit(approximations)(jax.random.key(seed))
    order = np.argsort(-np.asarray(laplace[1]), kind="stable")
    kept = order[np.asarray(separate)[order]][: effort.num_modes]
    x, log_mass, sd, covariance = (np.asarray(part)[kept] for part in laplace)
    unravel_all = jax.vmap(unravel)
    return SeparateModes(
        jax.tree.map(np.asarray, unravel_all(x)),
        log_mass,
        jax.tree.map(np.asarray, unravel_all(sd)),
        covariance,
        int(spent),
    )
