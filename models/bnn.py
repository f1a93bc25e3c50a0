"""A small Bayesian neural network: wines by their chemistry.

Which of three cultivars a wine was made from, by 13 standardised measurements and one
hidden layer. Hidden units can be exchanged, and each can change sign with its
weights, so every mode comes in num_hidden! x 2^num_hidden copies.

Data: UCI Machine Learning Repository, Wine (CC BY 4.0), shipped with scikit-learn.
Model: Neal (1996), doi:10.1007/978-1-4612-0745-0, with prior scales falling as one
over the root of a layer's width.
For NUTS: 44 gradients a draw, and chains cross between the copies slowly: the output
weights have a seventh of the output biases' effective sample size, and their marginals
mean nothing. Judge a kernel by its predictions.
Family: SGLD and structured SGMCMC; multiscale as a stress test.
13 h + h + 3 h + 3 dimensions: 88 with h = 5 hidden units.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_wine

from models._tables import standardise


def model(X, y=None, num_hidden=5, num_classes=3):
    def normal(name, *shape, fan_in=1):
        prior = dist.Normal(0, fan_in**-0.5).expand(shape).to_event(len(shape))
        return numpyro.sample(name, prior)

    num_features = X.shape[1]
    w1 = normal("w1", num_features, num_hidden, fan_in=num_features)
    b1 = normal("b1", num_hidden)
    # three times wider than usual: the logits of a confident answer differ by 5 or so
    w2 = normal("w2", num_hidden, num_classes, fan_in=num_hidden / 9)
    b2 = normal("b2", num_classes)
    hidden = jnp.tanh(X @ w1 + b1)
    with numpyro.plate("wines", len(X)):
        numpyro.sample("y", dist.Categorical(logits=hidden @ w2 + b2), obs=y)


def data() -> dict[str, np.ndarray]:
    X, y = load_wine(return_X_y=True)
    return {"X": standardise(X), "y": y}
