"""Kind and support of a latent site, from its distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist


def base(fn):
    """Return the distribution inside expansions and independent dimensions."""
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


def is_improper(fn) -> bool:
    return isinstance(base(fn), dist.ImproperUniform)


def base_support(support):
    """Return the support inside independent dimensions."""
    while isinstance(support, dist.constraints.independent):
        support = support.base_constraint
    return support


def is_real(support) -> bool:
    return base_support(support) is dist.constraints.real


def is_simplex(support) -> bool:
    return isinstance(base_support(support), type(dist.constraints.simplex))


def unconstrained_shape(site) -> tuple[int, ...]:
    """Return the shape of a latent site on the sampling space."""
    transform = dist.biject_to(site["fn"].support)
    return tuple(transform.inverse_shape(jnp.shape(site["value"])))


def support(fn, another):
    """Return the support, `constraints.dependent` where bounds depend on a site.

    The two distributions are those of one site in two traces.
    """
    one, other = (jax.tree.flatten(f.support) for f in (fn, another))
    same = one[1] == other[1] and not any(
        isinstance(bound, jax.core.Tracer) for bound in (*one[0], *other[0])
    )
    if same and all(map(np.array_equal, one[0], other[0])):
        return fn.support
    return dist.constraints.dependent
