"""Sonar: logistic regression of metal cylinders and rocks.

Whether a sonar echo came from a metal cylinder (1) or a rock (0), by the energy in 60
standardised frequency bands and an intercept. Neighbouring bands are strongly
correlated and the classes nearly separable.

Data: UCI Machine Learning Repository, Connectionist Bench (Sonar) (CC BY 4.0).
Model: Chopin and Ridgway (2017), arXiv:1506.08640, where it is the hard one of the
logistic regressions; their priors, restated for predictors of standard deviation 1.
For NUTS: moderate (92 gradients a draw); unimodal and log-concave, with wide and
correlated coefficients.
Family: a sanity check for all, with a gradient or without. 61 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

from models._tables import read_csv, standardise


def model(X, y=None):
    intercept = numpyro.sample("intercept", dist.Normal(0, 20))
    beta = numpyro.sample("beta", dist.Normal(0, 2.5).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("echoes", len(X)):
        numpyro.sample("y", dist.Bernoulli(logits=intercept + X @ beta), obs=y)


def data() -> dict[str, np.ndarray]:
    table = read_csv("sonar.csv")
    bands, label = table.iloc[:, :-1], table.iloc[:, -1]
    return {"X": standardise(bands), "y": (label == "M").to_numpy(int)}
