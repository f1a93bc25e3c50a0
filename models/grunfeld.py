"""Investment of eleven firms: a hierarchical regression with varying coefficients.

The log of a firm's yearly investment depends on the logs of its market value and of
its capital stock; intercept and slopes vary by firm around a common mean, partially
pooled.

Data: Grunfeld (1958), eleven firms in 1935 to 1954, as recreated by Kleiber and
Zeileis (2010); public domain, shipped with statsmodels.
Model: the varying-coefficients regression of Gelman and Hill (2007), chapter 13, with
independent scales, centred because every firm has twenty years of data.
For NUTS: moderate; mild funnels in the group scales and firms whose value and
capital grew together make it 69 gradients a draw, the worst scale with an effective
sample size of a tenth of the draws.
Family: structured SGMCMC (sites and firms are its groups); federated, a firm an owner.
40 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
from statsmodels.datasets import grunfeld


def model(X, firm, y=None, num_firms=11):
    num_coefficients = X.shape[1]
    with numpyro.plate("coefficients", num_coefficients, dim=-1):
        mean = numpyro.sample("mean", dist.Normal(0, 2))
        scale = numpyro.sample("scale", dist.HalfNormal(1))
        with numpyro.plate("firms", num_firms, dim=-2):
            beta = numpyro.sample("beta", dist.Normal(mean, scale))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    with numpyro.plate("years", len(X)):
        numpyro.sample("y", dist.Normal((X * beta[firm]).sum(-1), sigma), obs=y)


def data() -> dict[str, np.ndarray]:
    """Columns of X: one, log market value, log capital; logs are centred."""
    table = grunfeld.load_pandas().data
    logs = np.log(table[["invest", "value", "capital"]].to_numpy(float))
    y, value, capital = (logs - logs.mean(axis=0)).T
    firm = np.unique(table["firm"].to_numpy(str), return_inverse=True)[1]
    return {
        "X": np.column_stack([np.ones_like(value), value, capital]),
        "firm": firm,
        "y": y,
    }
