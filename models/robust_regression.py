"""Stack loss: regression with Student-t errors, outliers and all.

The ammonia that escapes a plant on each of 21 days, by air flow, cooling-water
temperature and acid concentration. At least three days are outliers; the degrees of
freedom say how much to mind them.

Data: Brownlee (1965), public domain, shipped with statsmodels. Predictors are
standardised.
Model: Lange, Little and Taylor (1989), doi:10.1080/01621459.1989.10478852, with the
prior on the degrees of freedom of Juarez and Steel (2010).
For NUTS: easy (11 gradients a draw), with a long right tail in the degrees of freedom,
of which 21 rows say little.
Family: multiscale with its Student-t base; ensemble score. 6 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
from statsmodels.datasets import stackloss

from models._tables import standardise


def model(X, y=None):
    intercept = numpyro.sample("intercept", dist.Normal(0, 50))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10))
    nu = numpyro.sample("nu", dist.Gamma(2, 0.1))
    with numpyro.plate("days", len(X)):
        numpyro.sample("y", dist.StudentT(nu, intercept + X @ beta, sigma), obs=y)


def data() -> dict[str, np.ndarray]:
    table = stackloss.load_pandas()
    return {"X": standardise(table.exog), "y": table.endog.to_numpy(float)}
