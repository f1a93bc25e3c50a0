"""arK-arK: an autoregression of order five on 200 simulated values.

The likelihood is that of the sixth value on, each given the five before it; so the
lags are given, and without `y` the model predicts one step ahead.

Source: posteriordb, model arK, data arK (BSD-3-Clause).
For NUTS: easy. Family: a reference for all. 7 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

from models.posteriordb._collection import read_data, read_reference


def model(lags, y=None):
    K = lags.shape[1]
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([K]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("time", len(lags)):
        numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def data() -> dict[str, np.ndarray]:
    """Column k of ``lags`` holds the value k + 1 steps before ``y``."""
    stan = read_data("arK-arK")
    y, K = stan["y"], stan["K"]
    lags = [y[K - k : -k] for k in range(1, K + 1)]
    return {"lags": np.column_stack(lags), "y": y[K:]}


def reference() -> dict[str, np.ndarray]:
    return read_reference("arK-arK")
