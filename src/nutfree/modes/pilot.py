"""The pilot of kernels that move between modes: where these are, and how wide.

It summarises a search for modes (`modes.search`) by a mixture of Laplace approximations
and by the centre and scale of the Gaussian that covers them all.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.modes.candidates import principal
from nutfree.modes.mixture import Modes, conditional_sds, modes_of
from nutfree.modes.search import Effort, search
from nutfree.target import Target

#: Probes for each start; a density costs less than a descent.
PROBES_PER_START = 8
#: Help text of a kernel's option `num_starts`.
NUM_STARTS = "starts of the search for modes, which also probes eight times as many"


class Pilot(NamedTuple):
    """What the pilot found.

    center, scale : (d,), mean and standard deviation of the mixture of the modes; they
        define the standardised coordinates u = (x - center) / scale.
    width : (d,), in standardised coordinates, the sd of each coordinate given all the
        others: the geometric mean over the modes.
    modes : the modes, in standardised coordinates.
    best : (d,), the heaviest of them, in the units of the position.
    num_grad_evals : gradients spent, see `modes.search.Search`.
    """

    center: jax.Array
    scale: jax.Array
    width: jax.Array
    modes: Modes
    best: jax.Array
    num_grad_evals: jax.Array


def run_pilot(
    rng_key: jax.Array, position: Any, target: Target, effort: Effort = Effort()
) -> Pilot:
    """Search for the modes of a target, and summarise them; traceable.

    Args:
        rng_key: a key.
        position: one of the starts, see `modes.search.search`.
        target: the posterior.
        effort: how much work the search does.
    """
    found = search(rng_key, position, target, effort)
    ends, curvature, width, axes, _ = found.candidates
    weight = found.candidates.weights
    middle = weight @ ends
    variance = jax.vmap(lambda a, w: a**2 @ w**2 if a.size else w**2)(axes, width)
    scale = jnp.sqrt(weight @ ((ends - middle) ** 2 + variance))

    best = jnp.argsort(-weight)[: effort.num_modes]
    rescale = scale[:, None] * scale if curvature.ndim == 3 else scale**2
    width, axes = jax.vmap(lambda h: principal(h * rescale))(curvature[best])
    modes = modes_of((ends[best] - middle) / scale, width, axes, jnp.log(weight[best]))
    log_sds = jnp.log(jax.vmap(conditional_sds)(width, axes))
    return Pilot(
        found.origin + found.unit * middle,
        found.unit * scale,
        jnp.exp(weight[best] @ log_sds / jnp.sum(weight[best])),
        modes,
        found.origin + found.unit * ends[best[0]],
        found.num_grad_evals,
    )
