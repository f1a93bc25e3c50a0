"""German credit: sparse logistic regression with a scale for every coefficient.

Whether a loan turned out bad (1) or good (0) for 1,000 applicants, by 48 columns made
of 7 numbers and 13 categorical answers. Each coefficient is a product of a global
scale, a local scale and a standard normal, so that few stay away from zero.

Data: UCI Machine Learning Repository, Statlog German Credit (CC BY 4.0).
Model: the sparse logistic regression of Hoffman et al. (2019), arXiv:1903.03704, on
the categorical form of the data and with an intercept.
For NUTS: hard; funnels between each coefficient and its scales, with heavy tails
towards small scales: 87 gradients a draw, a few divergences, and an effective sample
size of a fifth of the draws.
Family: structured SGMCMC; multiscale. 98 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

from models._tables import design_matrix, read_csv


def model(X, y=None):
    intercept = numpyro.sample("intercept", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.Gamma(0.5, 0.5))
    with numpyro.plate("features", X.shape[1]):
        local = numpyro.sample("lambda", dist.Gamma(0.5, 0.5))
        z = numpyro.sample("z", dist.Normal(0, 1))
    beta = numpyro.deterministic("beta", tau * local * z)
    with numpyro.plate("loans", len(X)):
        numpyro.sample("y", dist.Bernoulli(logits=intercept + X @ beta), obs=y)


def data() -> dict[str, np.ndarray]:
    table = read_csv("german.csv")
    answers, label = table.iloc[:, :-1], table.iloc[:, -1]
    return {"X": design_matrix(answers), "y": (label == 2).to_numpy(int)}
