"""The draws of a tree as the posterior's own coordinates."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from nutfree.diagnostics.modes import thin
from nutfree.numerics.programs import jitted
from nutfree.target import Target


def latent_posterior(tree: xr.DataTree, target: Target) -> xr.Dataset:
    """The sampled sites of the posterior, without deterministic ones."""
    posterior = tree["posterior"].to_dataset()
    if not isinstance(target.position, Mapping):
        return posterior
    names = [name.replace("/", ".") for name in target.position]
    return posterior[[name for name in names if name in posterior]]


def unconstrained_draws(
    tree: xr.DataTree, target: Target, max_draws: int
) -> tuple[Any, NDArray]:
    """At most ``max_draws`` draws a chain on the sampling space.

    Returns:
        ``(positions, vectors)``: the pytree with leading axes (chain, draw), and the
        same raveled to ``(chain, draw, d)``.
    """
    posterior = latent_posterior(tree, target)
    keep = thin(np.arange(posterior.sizes["draw"]), max_draws)
    values = {
        name: jnp.asarray(posterior[name.replace("/", ".")].values[:, keep])
        for name in target.position
    }
    positions = jitted(jax.vmap(jax.vmap(target.unconstrain)))(values)
    ravel = jax.vmap(jax.vmap(lambda z: ravel_pytree(z)[0]))
    return positions, np.asarray(ravel(positions), dtype=np.float64)
