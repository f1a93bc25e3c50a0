"""Effect handlers that let one model text run in full, in batches, or as its prior."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.primitives import Messenger


class full_data(Messenger):
    """Run every plate of a model on all of its rows, whatever its `subsample_size`.

    Args:
        fn: the model.
        rows: for a plate that is to run on fewer rows, their numbers, shape `(n,)`
            with n less than the plate's size; may be traced.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal())
        ...     with numpyro.plate("data", 100, subsample_size=10):
        ...         batch = numpyro.subsample(y, event_dim=0)
        ...         numpyro.sample("y", dist.Normal(mu, 1), obs=batch)
        >>> from numpyro.infer import MCMC, NUTS
        >>> mcmc = MCMC(NUTS(full_data(model)), num_warmup=10, num_samples=10)
    """

    def __init__(self, fn=None, rows: Mapping[str, jax.Array] | None = None):
        self.rows = rows or {}
        super().__init__(fn)

    def process_message(self, msg):
        if msg["type"] == "plate":
            size = msg["args"][0]
            indices = self.rows.get(msg["name"], jnp.arange(size))
            msg["args"] = (size, indices.shape[0])
            msg["value"] = indices


#: Names of Jacobians: `_x_log_det` for the site `x`; in a scope, `a/_a/x_log_det`.
_JACOBIAN = re.compile(r"(.*)_(\1.+)_log_det", re.DOTALL)


def is_jacobian(name: str) -> bool:
    """Say whether this is a factor in which NumPyro keeps the Jacobian of a site."""
    return site_of_jacobian(name) is not None


def site_of_jacobian(name: str) -> str | None:
    """Return the site whose Jacobian NumPyro keeps in this factor, or None."""
    found = _JACOBIAN.fullmatch(name)
    return None if found is None else found[2]


def prior_only(model):
    """Hide the model's observed and factor sites, but not the Jacobians."""

    def hidden(site):
        return (
            site["type"] == "sample"
            and site["is_observed"]
            and not is_jacobian(site["name"])
        )

    return handlers.block(model, hide_fn=hidden)
