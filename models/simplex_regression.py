"""Combining El Nino forecasts: regression on weights that sum to one.

Eight simple rules forecast next month's sea-surface temperature; the combined forecast
is their weighted mean. A few rules deserve all the weight, so the posterior lies
against several faces of the simplex.

Data: monthly averages of the region Nino 1+2, 1950 to 2010, NOAA (public domain),
shipped with statsmodels; the last ten years are forecast.
Model: Bayesian forecast combination on the simplex (Granger and Ramanathan 1984,
doi:10.1002/for.3980030207, with their constraints as the prior's support).
For NUTS: easy (13 gradients a draw). It is here for kernels that stay on the simplex,
whose bias shows at its faces.
Family: Bregman proximal, with the negative entropy as its mirror map. 8 dimensions.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from statsmodels.datasets import elnino


def model(forecasts, y=None, concentration=1.0):
    num_rules = forecasts.shape[1]
    weights = numpyro.sample(
        "weights", dist.Dirichlet(jnp.full(num_rules, concentration))
    )
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    with numpyro.plate("months", len(forecasts)):
        numpyro.sample("y", dist.Normal(forecasts @ weights, sigma), obs=y)


def data(num_months: int = 120) -> dict[str, np.ndarray]:
    table = elnino.load_pandas().data.drop(columns="YEAR")
    temperature = table.to_numpy().ravel()
    months = np.arange(len(temperature) - num_months, len(temperature))

    def ago(lag):
        return temperature[months - lag]

    def usual(years, lag=0):
        return np.mean([ago(lag + 12 * (year + 1)) for year in range(years)], axis=0)

    anomaly = ago(1) - usual(20, lag=1)
    rules = [
        ago(1),  # as last month
        2 * ago(1) - ago(2),  # the trend goes on
        np.mean([ago(lag) for lag in range(1, 13)], axis=0),  # the last year's mean
        ago(12),  # as a year ago
        usual(5),  # as in the last five years
        usual(20),  # as in the last twenty
        usual(20) + anomaly,  # usual, and as much off as last month
        usual(20) + anomaly / 2,  # usual, and half as much off
    ]
    return {"forecasts": np.column_stack(rules), "y": ago(0)}
