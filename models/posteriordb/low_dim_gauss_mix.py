"""low_dim_gauss_mix-low_dim_gauss_mix: two normals, their means in order.

A mixture of two components on 1,000 simulated values; the order of the means removes
the second labelling. The prior of the means is N(0, 2^2) each, cut to the ordered half
of the plane, which is written as a flat ordered site and a factor.

Source: posteriordb, model and data low_dim_gauss_mix (BSD-3-Clause).
For NUTS: easy. Family: a reference for all. 5 dimensions.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from models.posteriordb._collection import read_data, read_reference


def model(y=None, num_values=1000):
    ordered = dist.ImproperUniform(constraints.ordered_vector, (), event_shape=(2,))
    mu = numpyro.sample("mu", ordered)
    numpyro.factor("mu_prior", dist.Normal(0, 2).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5, 5))
    mixture = dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.stack([theta, 1 - theta])), dist.Normal(mu, sigma)
    )
    with numpyro.plate("values", num_values):
        numpyro.sample("y", mixture, obs=y)


def data() -> dict[str, np.ndarray]:
    return {"y": read_data("low_dim_gauss_mix-low_dim_gauss_mix")["y"]}


def reference() -> dict[str, np.ndarray]:
    return read_reference("low_dim_gauss_mix-low_dim_gauss_mix")
