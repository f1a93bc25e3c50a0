"""Which latent sites of a model take their scale from another latent site."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import constraints

from nutfree.frontends import sites
from nutfree.frontends.handlers import full_data
from nutfree.frontends.windows import in_memory


def centred_sites(
    model: Callable, args: tuple = (), kwargs: Mapping[str, Any] | None = None
) -> tuple[tuple[str, str], ...]:
    """Find the latent sites whose scale is another latent site.

    Each positive site is doubled in turn; sites of a location-scale family whose scale
    changes are centred on it. Where the data tell little of such a site, the posterior
    is a funnel (Betancourt and Girolami, arXiv 1312.0906).

    Returns:
        Pairs of the site and its scale.
    """
    args, kwargs = in_memory((args, dict(kwargs or {})))
    seeded = full_data(handlers.seed(model, 0))

    def traced(values: Mapping[str, Any]) -> dict:
        fixed = handlers.substitute(seeded, data=dict(values))
        return handlers.trace(fixed).get_trace(*args, **kwargs)

    latent = {
        name: site
        for name, site in traced({}).items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    values = {name: site["value"] for name, site in latent.items()}
    found = []
    for name, site in latent.items():
        if site["fn"].support is not constraints.positive:
            continue
        moved = traced({**values, name: 2.0 * values[name]})
        found += [
            (other, name)
            for other in latent
            if other != name and _scale_differs(latent[other], moved[other])
        ]
    return tuple(found)


def _scale_differs(site: Mapping[str, Any], moved: Mapping[str, Any]) -> bool:
    if not hasattr(sites.base(site["fn"]), "loc"):
        return False
    before, after = (getattr(sites.base(s["fn"]), "scale", None) for s in (site, moved))
    if before is None or after is None:
        return False
    return not np.allclose(jnp.asarray(before), jnp.asarray(after))
