"""sblri-blr: Bayesian linear regression on 100 simulated rows.

Source: posteriordb, model blr, data sblri (BSD-3-Clause).
For NUTS: easy; next to Gaussian. Family: a reference for all. 6 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

from models.posteriordb._collection import read_data, read_reference


def model(X, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10))
    with numpyro.plate("rows", len(X)):
        numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def data() -> dict[str, np.ndarray]:
    stan = read_data("sblri-blr")
    return {"X": stan["X"], "y": stan["y"]}


def reference() -> dict[str, np.ndarray]:
    return read_reference("sblri-blr")
