"""Models of curves run under gradient kernels, one by a solver with no forward mode."""

import numpy as np
import pytest
from numpyro.infer import init_to_value

import models
import nutfree as nf

#: Posterior means of alpha, beta, gamma and delta, and of sigma, as Carpenter (2018)
#: prints them, and standard deviations of the former.
RATES, SPREAD, SIGMA = [0.55, 0.028, 0.80, 0.024], [0.07, 0.004, 0.10, 0.004], 0.25


@pytest.mark.slow
def test_hares_and_lynxes_have_the_rates_of_the_case_study():
    """From a start near them: there is a mode without cycles, too, of no mass."""
    zoo = models.load("lotka_volterra")
    values = {"first": np.array([34.0, 5.9]), "rates": np.array(RATES)}
    start = init_to_value(values=values | {"sigma": np.full(2, SIGMA)})
    settings = {"num_warmup": 300, "num_samples": 200, "num_chains": 2}
    kernel = nf.kernel("mala", zoo.model, init_strategy=start)
    tree = nf.sample(kernel, **zoo.data(), **settings, progress_bar=False)
    found = tree["posterior"]["rates"].mean(("chain", "draw")).values
    assert np.all(np.abs(found - RATES) < np.asarray(SPREAD))
    sigma = tree["posterior"]["sigma"].mean(("chain", "draw")).values
    assert np.all(np.abs(sigma - SIGMA) < 0.08)


@pytest.mark.slow
def test_theophylline_has_the_curve_of_least_squares():
    """A fifth is about one standard error of each of its estimates."""
    zoo = models.load("theophylline")
    kernel = nf.kernel("mala", zoo.model)
    tree = nf.sample(kernel, **zoo.data(), progress_bar=False)
    draws = tree["posterior"].to_dataset()
    elimination = draws["clearance"] / draws["volume"]
    absorption = elimination + draws["faster"]
    # R's nls(conc ~ SSfol(...)): lKe -2.92, lKa 0.575, lCl -3.92
    for value, wanted, error in (
        (np.log(elimination), -2.92, 0.2),
        (np.log(absorption), 0.575, 0.2),
        (np.log(draws["clearance"]), -3.92, 0.2),
    ):
        assert abs(float(value.median()) - wanted) < error
