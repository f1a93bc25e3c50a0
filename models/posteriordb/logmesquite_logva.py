"""mesquite-logmesquite_logva: the weight of mesquite bushes by volume and area.

A regression of log weight on the logs of canopy volume and canopy area and on the group
of the measurement, with flat priors on the coefficients and on the error's scale.

Source: posteriordb, model logmesquite_logva, data mesquite (BSD-3-Clause); Gelman and
Hill (2007), chapter 4.
For NUTS: easy. Family: a reference for all. 5 dimensions.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from models.posteriordb._collection import read_data, read_reference


def model(diam1, diam2, canopy_height, group, log_weight=None):
    flat = dist.ImproperUniform(constraints.real_vector, (), event_shape=(4,))
    beta = numpyro.sample("beta", flat)
    sigma = numpyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    log_area = jnp.log(diam1 * diam2)
    log_volume = log_area + jnp.log(canopy_height)
    mean = beta[0] + beta[1] * log_volume + beta[2] * log_area + beta[3] * group
    with numpyro.plate("bushes", len(group)):
        numpyro.sample("log_weight", dist.Normal(mean, sigma), obs=log_weight)


def data() -> dict[str, np.ndarray]:
    stan = read_data("mesquite-logmesquite_logva")
    names = ("diam1", "diam2", "canopy_height", "group")
    return {
        **{name: stan[name] for name in names},
        "log_weight": np.log(stan["weight"]),
    }


def reference() -> dict[str, np.ndarray]:
    return read_reference("mesquite-logmesquite_logva")
