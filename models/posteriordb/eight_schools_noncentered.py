"""eight_schools-eight_schools_noncentered: a hierarchical model of coaching effects.

Source: posteriordb, model eight_schools_noncentered, data eight_schools
(BSD-3-Clause); Rubin (1981).
For NUTS: easy in this form. Family: a reference for all. 10 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

from models.posteriordb._collection import read_data, read_reference


def model(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(sigma)):
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def data() -> dict[str, np.ndarray]:
    stan = read_data("eight_schools-eight_schools_noncentered")
    return {"sigma": stan["sigma"], "y": stan["y"]}


def reference() -> dict[str, np.ndarray]:
    return read_reference("eight_schools-eight_schools_noncentered")
