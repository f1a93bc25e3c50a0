"""Draws at the last number before a limit are told, and x64 is named."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

from nutfree.diagnostics.ends import piled_up

RNG = np.random.default_rng(0)
TENTHS = np.full(5, 0.1)
#: Sites, exact draws of them, and what is said of these in single precision.
CASES = {
    "both ends": (dist.Beta(0.1, 0.1), RNG.beta(0.1, 0.1, 4000), "'x' at 1"),
    "shares": (dist.Dirichlet(TENTHS), RNG.dirichlet(TENTHS, 4000), "'x' at 0"),
    "zero": (dist.Gamma(0.05), RNG.gamma(0.05, size=4000), "'x' at 0"),
    "to_event": (
        dist.Beta(0.1, 0.1).expand([2]).to_event(1),
        RNG.beta(0.1, 0.1, (4000, 2)),
        "'x' at 1",
    ),
    "inside": (dist.Beta(2.0, 2.0), RNG.beta(2, 2, 4000), ""),
    "positive": (dist.HalfNormal(), np.abs(RNG.normal(size=4000)), ""),
    "free": (dist.Normal(), RNG.normal(size=4000), ""),
}


@pytest.mark.parametrize("name", CASES)
def test_draws_at_the_end_of_the_numbers_are_told(name):
    site, exact, expected = CASES[name]

    def model():
        numpyro.sample("x", site)

    draws = exact.astype(np.float32).reshape(2, 2000, *exact.shape[1:])
    dims = ["chain", "draw", *(f"d{i}" for i in range(exact.ndim - 1))]
    words = piled_up(xr.Dataset({"x": (dims, draws)}), model, (), {})
    assert expected in words
    assert bool(words) == bool(expected)
    assert ("jax_enable_x64" in words) == bool(expected)
