"""Hares and lynxes again, with the equations solved by SciPy.

The posterior of `models.lotka_volterra`, from the values of its likelihood alone:
`scipy.integrate.solve_ivp` solves for the logarithms of the numbers, and JAX cannot see
into it.

Data and model: those of `models.lotka_volterra`.
For NUTS: impossible in this form, there is no gradient.
Family: ensemble, blackjax.rmh. 8 dimensions.
"""

from functools import cache

import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.integrate import solve_ivp

from models import lotka_volterra


def populations(rates, first, years) -> np.ndarray:
    """Hares and lynxes in each year, `(years, 2)`.

    Raises:
        RuntimeError: where the solver gives up.
    """
    alpha, beta, gamma, delta = rates

    def change(t, logs):
        hares, lynxes = np.exp(logs)
        return alpha - beta * lynxes, delta * hares - gamma

    ends = years[0], years[-1]
    found = solve_ivp(change, ends, np.log(first), "LSODA", years)
    if not found.success:
        raise RuntimeError(found.message)
    return np.exp(found.y.T)


def log_likelihood(position) -> float:
    """Of `rates`, `first` and `sigma`, and the data `years` and `pelts`."""
    given = {name: np.asarray(value, float) for name, value in position.items()}
    numbers = populations(given["rates"], given["first"], given["years"])
    z = np.log(given["pelts"] / numbers) / given["sigma"]
    return float(np.sum(-0.5 * z**2 - np.log(given["sigma"])))


@cache
def black_box():
    """The likelihood as a kernel may call it; reading the data needs no nutfree."""
    import nutfree as nf

    return nf.blackbox(log_likelihood)


def model(years, pelts):
    first = numpyro.sample(
        "first", dist.LogNormal(np.log(10.0), 1).expand([2]).to_event(1)
    )
    center = np.array([1.0, 0.05, 1.0, 0.05])
    prior = dist.TruncatedNormal(center, np.array([0.5, 0.05, 0.5, 0.05]), low=0.0)
    rates = numpyro.sample("rates", prior.to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1, 1).expand([2]).to_event(1))
    given = {"first": first, "rates": rates, "sigma": sigma}
    numpyro.factor("pelts", black_box()({**given, "years": years, "pelts": pelts}))


def data() -> dict[str, np.ndarray]:
    return lotka_volterra.data()
