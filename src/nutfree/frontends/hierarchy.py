"""Which latent sites of a model take their scale from another latent site."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import constraints

from nutfree.frontends import sites
from nutfree.frontends.starts import at_random
from nutfree.frontends.windows import in_memory
from nutfree.numerics.laplace import precision_product
from nutfree.numerics.programs import jitted
from nutfree.target import LogDensity, Target


def centred_sites(
    model: Callable, args: tuple = (), kwargs: Mapping[str, Any] | None = None
) -> tuple[tuple[str, str], ...]:
    """Find the latent sites whose scale is another latent site.

    Each positive site is doubled in turn, and to each real number one is added; sites
    of a location-scale family whose scale changes are centred on it. Where the data
    tell little of such a site, the posterior is a funnel (Betancourt and Girolami,
    arXiv 1312.0906).

    Returns:
        Pairs of the site and its scale.
    """
    args, kwargs = in_memory((args, dict(kwargs or {})))
    # at random in their supports: improper priors cannot be drawn from
    seeded = at_random(model, 0)

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
        if site["fn"].support is constraints.positive:
            other_value = 2.0 * values[name]
        elif site["fn"].support is constraints.real and not jnp.shape(values[name]):
            other_value = values[name] + 1.0
        else:
            continue
        moved = traced({**values, name: other_value})
        found += [
            (other, name)
            for other in latent
            if other != name and _scale_differs(latent[other], moved[other])
        ]
    return tuple(found)


def funnels(
    centred: tuple[tuple[str, str], ...],
    target: Target,
    prior: LogDensity,
    position: Mapping[str, jax.Array],
) -> tuple[tuple[str, str], ...]:
    """Find the centred sites of which the data tell no more than the scale does.

    For a site as a whole, v its direction, they tell less where the prior's precision
    v' P v is more than half of the posterior's.

    Args:
        centred: pairs of a site and its scale.
        target: the posterior.
        prior: log density of the latent sites alone.
        position: where on the sampling space, such as a mode.
    """
    x, unravel = ravel_pytree(position)

    def along_it(logdensity, direction):
        product = precision_product(lambda v: logdensity(unravel(v)), x)
        return direction @ product(direction)

    def precisions(direction):
        return along_it(target, direction), along_it(prior, direction)

    found = []
    for site, scale in centred:
        along = {k: jnp.full_like(v, k == site) for k, v in position.items()}
        of_posterior, of_prior = jitted(precisions)(ravel_pytree(along)[0])
        if not of_prior <= 0.5 * of_posterior:
            found.append((site, scale))
    return tuple(found)


def _scale_differs(site: Mapping[str, Any], moved: Mapping[str, Any]) -> bool:
    if not hasattr(sites.base(site["fn"]), "loc"):
        return False
    before, after = (getattr(sites.base(s["fn"]), "scale", None) for s in (site, moved))
    if before is None or after is None:
        return False
    return not np.allclose(jnp.asarray(before), jnp.asarray(after))
