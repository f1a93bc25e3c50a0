"""Inpainting: a pixel as a positive combination of the others.

The ink of one pixel in 500 handwritten digits is a weighted sum of the ink in the 50
other pixels that are inked most. Ink only adds, so the weights are positive. A few
neighbours carry the sum; most pixels would take a negative weight if they could, and
the posterior presses them against zero.

Data: handwritten digits of the UCI Machine Learning Repository (CC BY 4.0), shipped
with scikit-learn. Ink is scaled to [0, 1].
Model: non-negative least squares (Lawson and Hanson 1974, chapter 23), made Bayesian
by exponential priors.
For NUTS: no trouble on the log scale (25 gradients a draw). It is here for kernels that
stay on the scale of the weights, whose bias shows at zero.
Family: Bregman proximal, with an entropy as its mirror map. 51 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_digits

PIXEL = 8 * 4 + 3  # near the middle


def model(X, y=None, rate=1.0):
    beta = numpyro.sample(
        "beta", dist.Exponential(rate).expand([X.shape[1]]).to_event(1)
    )
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    with numpyro.plate("images", len(X)):
        numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def data(num_pixels: int = 50) -> dict[str, np.ndarray]:
    ink = load_digits().data[:500] / 16
    y, others = ink[:, PIXEL], np.delete(ink, PIXEL, axis=1)
    most = np.argsort(-others.mean(axis=0))[:num_pixels]
    return {"X": others[:, np.sort(most)], "y": y}
