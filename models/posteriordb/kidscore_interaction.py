"""kidiq-kidscore_interaction: children's test scores by their mothers' IQ and school.

A linear regression with an interaction, its predictors as they come, neither centred
nor scaled, and a flat prior on the coefficients.

Source: posteriordb, model kidscore_interaction, data kidiq (BSD-3-Clause); Gelman and
Hill (2007), chapter 4.
For NUTS: slow; intercept, slopes and interaction are correlated at 0.9 to 0.99, and
their scales differ by a hundred. A dense inverse mass matrix makes it easy.
Family: a reference for all, and a test of preconditioning. 5 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from models.posteriordb._collection import read_data, read_reference


def model(mom_hs, mom_iq, kid_score=None):
    flat = dist.ImproperUniform(constraints.real_vector, (), event_shape=(4,))
    beta = numpyro.sample("beta", flat)
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * mom_hs + beta[2] * mom_iq + beta[3] * (mom_hs * mom_iq)
    with numpyro.plate("children", len(mom_iq)):
        numpyro.sample("kid_score", dist.Normal(mean, sigma), obs=kid_score)


def data() -> dict[str, np.ndarray]:
    stan = read_data("kidiq-kidscore_interaction")
    return {name: stan[name] for name in ("mom_hs", "mom_iq", "kid_score")}


def reference() -> dict[str, np.ndarray]:
    return read_reference("kidiq-kidscore_interaction")
