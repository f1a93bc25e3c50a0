"""A digit as a sum of other digits: regression on non-negative coefficients.

A handwritten digit is explained by the ink of 50 others: each of its 64 pixels is a
weighted sum of theirs. Ink only adds, so the weights are positive, and most of them
belong at zero, where the exponential prior and the constraint meet.

Data: handwritten digits of the UCI Machine Learning Repository (CC BY 4.0), shipped
with scikit-learn. Pixels are scaled to [0, 1].
Model: non-negative least squares (Lee and Seung 1999, doi:10.1038/44565), made
Bayesian.
For NUTS: the log transform sends a coefficient near zero off along a long flat tail;
50 such tails are walked slowly.
Family: Bregman proximal, with an entropy as its mirror map. 51 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_digits


def model(X, y=None, rate=10.0):
    beta = numpyro.sample(
        "beta", dist.Exponential(rate).expand([X.shape[1]]).to_event(1)
    )
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    with numpyro.plate("pixels", len(X)):
        numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def data(num_images: int = 50) -> dict[str, np.ndarray]:
    """One image to explain, after the ``num_images`` that explain it, as columns."""
    images = load_digits().data / 16
    return {"X": images[:num_images].T, "y": images[num_images]}
