"""Galaxies: a Gaussian mixture whose posterior has a mode for every labelling.

The velocities of 82 galaxies in the Corona Borealis region, in 1,000 km/s, are a
mixture of K normal components. The priors treat the components alike and nothing
orders them, so the posterior is unchanged when they are relabelled: each of its modes
appears K! times with equal weight.

Data: Postman, Huchra and Geller (1986); Roeder (1990); published figures.
Model: Richardson and Green (1997), doi:10.1111/1467-9868.00095, with K fixed.
For NUTS: impossible to mix. A chain stays in the labelling that it fell into, so that
chains disagree (R-hat far above 1) although each looks well by itself.
Family: multiscale; chain of log-concave; ensemble score. 3K - 1 dimensions: 8 with
K = 3.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from models._tables import read_csv


def model(velocity=None, K=3, num_galaxies=82):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(K, 2.0)))
    with numpyro.plate("components", K):
        mu = numpyro.sample("mu", dist.Normal(20, 10))
        sigma = numpyro.sample("sigma", dist.LogNormal(0.5, 0.75))
    mixture = dist.MixtureSameFamily(
        dist.Categorical(probs=weights), dist.Normal(mu, sigma)
    )
    with numpyro.plate("galaxies", num_galaxies):
        numpyro.sample("velocity", mixture, obs=velocity)


def data() -> dict[str, np.ndarray]:
    return {"velocity": read_csv("galaxies.csv")[0].to_numpy() / 1000}
