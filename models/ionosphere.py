"""Ionosphere: logistic regression of good and bad radar returns.

Whether a radar return from the ionosphere shows structure (1) or not (0), by 33
standardised signal features (a constant one is dropped) and an intercept.

Data: UCI Machine Learning Repository, Ionosphere (CC BY 4.0).
Model: the priors of Chopin and Ridgway (2017), arXiv:1506.08640, which are
N(0, 5^2) on coefficients of predictors with standard deviation 1/2 and N(0, 20^2) on
the intercept; the predictors here have standard deviation 1.
For NUTS: easy (37 gradients a draw); unimodal and log-concave, with correlated and
skewed coefficients.
Family: a sanity check for all, with a gradient or without. 34 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

from models._tables import read_csv, standardise


def model(X, y=None):
    intercept = numpyro.sample("intercept", dist.Normal(0, 20))
    beta = numpyro.sample("beta", dist.Normal(0, 2.5).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("returns", len(X)):
        numpyro.sample("y", dist.Bernoulli(logits=intercept + X @ beta), obs=y)


def data() -> dict[str, np.ndarray]:
    table = read_csv("ionosphere.csv")
    features, label = table.iloc[:, :-1], table.iloc[:, -1]
    return {"X": standardise(features), "y": (label == "g").to_numpy(int)}
