"""The Jacobian of stick-breaking, wherever a share is too small for the precision.

NumPyro clips what a stick takes of what is left, z, to between the smallest normal
number and 1 - eps, and takes logs for the Jacobian as they are then. Beyond a logit of
-87 in single precision the density on the sampling space is flat, so that it has no
finite integral, and a chain that has come there does not return. With K sticks,

    log |det| = sum_k log z_k + (K - k) log(1 - z_k),    k = 0, ..., K - 1,

which needs neither the shares nor their product, and has a cheap gradient. The shares
of later sticks stay as they are where 1 - z_k is clipped, and so do the K - k - 1 parts
of the Jacobian that are theirs.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import primitives
from numpyro.infer.util import _unconstrain_params

from nutfree.frontends.handlers import site_of_jacobian
from nutfree.frontends.sites import is_simplex


def log_det_of_sticks(z: jax.Array) -> jax.Array:
    """log |det| of stick-breaking, of shape `z.shape[:-1]`.

    Args:
        z: on the sampling space, `(..., K)`.
    """
    left = z.shape[-1] - jnp.arange(z.shape[-1])
    # apart from the shares, or a compiler makes their product anew for each of them
    x = jax.lax.optimization_barrier(z) - jnp.log(left)
    rest = jax.nn.log_sigmoid(-x)
    of_later = (left - 1) * jnp.maximum(rest, jnp.log(jnp.finfo(z.dtype).eps))
    return jnp.sum(jax.nn.log_sigmoid(x) + rest + of_later, axis=-1)


class unclipped(primitives.Messenger):
    """Run a model with the Jacobians of simplexes that NumPyro clips.

    It has nothing to do but where `potential_energy`, or the handler that it uses,
    puts unconstrained values in a model.
    """

    def __init__(self, fn=None) -> None:
        self.simplexes: set[str] = set()
        super().__init__(fn)

    def process_message(self, msg):
        if msg["type"] != "sample":
            return
        name = site_of_jacobian(msg["name"])
        if name is None:
            if is_simplex(msg["fn"].support):
                self.simplexes.add(msg["name"])
        elif name in self.simplexes:
            given = (
                handler.params
                for handler in reversed(primitives._PYRO_STACK)
                if isinstance(handler, _unconstrain_params)
            )
            z = next(given, {}).get(name)
            log_det = None if z is None else log_det_of_sticks(z)
            # in a scan, NumPyro has taken one step's values
            if log_det is not None and log_det.shape == msg["fn"].batch_shape:
                msg["fn"] = dist.Unit(log_det)
