"""Bayesian lasso on the diabetes data.

Disease progression of 442 patients a year after ten baseline measurements, with a
Laplace prior on the coefficients. The log density has a kink wherever a coefficient
is zero, and several coefficients want to be there.

Model: Park and Casella (2008), doi:10.1198/016214508000000337, with the prior's scale
given, so that the non-smooth part of the posterior is a plain l1 norm.
Data: Efron, Hastie, Johnstone and Tibshirani (2004), shipped with scikit-learn
(BSD-3-Clause). Predictors and response are standardised.
For NUTS: it runs, but the kinks cost it: with `scale` from 0.1 down to 0.01 a draw
takes 22 gradients in place of 16 and is worth two thirds as much.
Family: Bregman proximal. 11 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_diabetes

from models._tables import standardise


def model(X, y=None, scale=0.1):
    beta = numpyro.sample(
        "beta", dist.Laplace(0, scale).expand([X.shape[1]]).to_event(1)
    )
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    with numpyro.plate("patients", len(X)):
        numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def data() -> dict[str, np.ndarray]:
    X, y = load_diabetes(return_X_y=True)
    return {"X": standardise(X), "y": standardise(y[:, None])[:, 0]}
