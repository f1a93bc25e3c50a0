"""Eight schools: a hierarchical model of coaching effects, non-centred.

The effects ``theta`` of eight coaching programmes share a mean and a spread; with the
spread near zero the centred form has a funnel, which the reparameterisation removes.

Model and data: Rubin (1981), as in Gelman et al., *Bayesian Data Analysis*, section
5.5; published figures.
For NUTS: easy in this form (10 gradients a draw), so a kernel that cannot do it is
broken.
Family: every kernel's first test. 10 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import LocScaleReparam


@numpyro.handlers.reparam(config={"theta": LocScaleReparam(centered=0)})
def model(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def data() -> dict[str, np.ndarray]:
    return {
        "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
        "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    }
