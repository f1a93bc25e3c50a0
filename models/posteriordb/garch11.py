"""garch-garch11: volatility that feeds on its past, on 200 simulated returns.

A return's variance is alpha0 + alpha1 (last return - mu)^2 + beta1 (last variance).
Priors are flat: mu on the line, alpha0 above zero, and (alpha1, beta1) on the triangle
alpha1 + beta1 < 1, so that the support of beta1 depends on alpha1. The past returns
are given, and without `y` the model predicts one step ahead.

Source: posteriordb, model garch11, data garch (BSD-3-Clause).
For NUTS: moderate, the mass lying against the triangle's edges.
Family: a reference for all, with improper priors and a moving bound. 4 dimensions.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import constraints

from models.posteriordb._collection import read_data, read_reference


def model(past, sigma1, y=None):
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    alpha0 = numpyro.sample(
        "alpha0", dist.ImproperUniform(constraints.positive, (), ())
    )
    # Beta(1, 2) has density 2 (1 - alpha1): with the next line, flat on the triangle
    alpha1 = numpyro.sample("alpha1", dist.Beta(1, 2))
    beta1 = numpyro.sample("beta1", dist.Uniform(0, 1 - alpha1))

    def next_variance(variance, last):
        variance = alpha0 + alpha1 * (last - mu) ** 2 + beta1 * variance
        return variance, variance

    first = jnp.square(jnp.asarray(sigma1, mu.dtype))
    _, later = lax.scan(next_variance, first, jnp.asarray(past, mu.dtype))
    sigma = jnp.sqrt(jnp.append(first, later))
    with numpyro.plate("time", len(sigma)):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def data() -> dict:
    """``past`` is the return before each of ``y`` but the first."""
    stan = read_data("garch-garch11")
    return {"past": stan["y"][:-1], "sigma1": stan["sigma1"], "y": stan["y"]}


def reference() -> dict[str, np.ndarray]:
    return read_reference("garch-garch11")
