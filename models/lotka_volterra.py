"""Lotka-Volterra: hares and lynxes, whose numbers solve a differential equation.

    du/dt = (alpha - beta v) u,    dv/dt = (delta u - gamma) v,

with lognormal errors of both pelt counts. The solver has a rule for reverse-mode
gradients only.

Model: Carpenter (2018), *Predator-Prey Population Dynamics*, Stan case studies. Data:
pelts of hares and lynxes in thousands, 1900 to 1920, Hudson's Bay Company; published
figures (Odum, *Fundamentals of Ecology*).
For NUTS: easy from near the cycles, at many steps of a solver a gradient. A mode
without cycles, 50 below the other in log density, holds chains that begin at it.
Family: every kernel with a gradient; those that ask for a Hessian have no forward mode.
8 dimensions.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.experimental.ode import odeint


def _growth(numbers, t, rates):
    alpha, beta, gamma, delta = rates
    hares, lynxes = numbers
    return jnp.stack(
        [(alpha - beta * lynxes) * hares, (delta * hares - gamma) * lynxes]
    )


def model(years, pelts=None):
    first = numpyro.sample(
        "first", dist.LogNormal(np.log(10.0), 1).expand([2]).to_event(1)
    )
    rates = numpyro.sample(
        "rates",
        dist.TruncatedNormal(
            loc=np.array([1.0, 0.05, 1.0, 0.05]),
            scale=np.array([0.5, 0.05, 0.5, 0.05]),
            low=0.0,
        ).to_event(1),
    )
    sigma = numpyro.sample("sigma", dist.LogNormal(-1, 1).expand([2]).to_event(1))
    numbers = odeint(_growth, first, jnp.asarray(years), rates, rtol=1e-5, atol=1e-4)
    # at bad rates the solver may end below zero
    log_numbers = jnp.log(jnp.maximum(numbers, 1e-6))
    numpyro.sample("pelts", dist.LogNormal(log_numbers, sigma).to_event(2), obs=pelts)


def data() -> dict[str, np.ndarray]:
    hares = [30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1]
    hares += [40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7]
    lynxes = [4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4]
    lynxes += [8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]
    return {"years": np.arange(21.0), "pelts": np.column_stack([hares, lynxes])}
