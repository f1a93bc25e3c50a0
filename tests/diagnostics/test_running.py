"""Moments and quantiles of draws that come in blocks are those of all draws."""

import arviz_stats
import numpy as np
import pytest
import xarray as xr

from nutfree.diagnostics.blocks import MAX_NUMBERS, worst_of
from nutfree.diagnostics.convergence import convergence, short_verdict
from nutfree.diagnostics.running import COLUMNS, RunningSummary

RNG = np.random.default_rng(0)
SHAPE = (4, 4000, 3)


def autoregressive(phi=0.8):
    x = RNG.normal(size=SHAPE)
    for t in range(1, SHAPE[1]):
        x[:, t] = phi * x[:, t - 1] + np.sqrt(1 - phi**2) * x[:, t]
    return x


CASES = {
    "normal, far from zero": 300 + 2 * RNG.normal(size=SHAPE),
    "autoregressive": autoregressive(),
    "exponential": RNG.exponential(size=SHAPE),
    "Student t of 3": RNG.standard_t(3, size=SHAPE),
    "two modes": RNG.choice([-5, 5], p=[0.3, 0.7], size=SHAPE) + RNG.normal(size=SHAPE),
}


def summarised(draws):
    summary, first = RunningSummary(draws.shape[1]), 0
    while first < draws.shape[1]:  # in blocks of any length
        k = int(RNG.integers(1, 700))
        summary.add(draws[:, first : first + k])
        first += k
    return summary, dict(zip(COLUMNS, summary.table(), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_summary_of_blocks_is_that_of_all_draws(case, monkeypatch):
    monkeypatch.setattr("nutfree.diagnostics.running.SLICE", 2)  # of three parameters
    draws = CASES[case].astype(np.float32)
    flat = draws.reshape(-1, 3).astype(float)
    _, found = summarised(draws)
    np.testing.assert_allclose(found["mean"], flat.mean(0), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found["sd"], flat.std(0, ddof=1), rtol=1e-4)
    run = xr.Dataset({"x": (("chain", "draw", "i"), draws)})
    split = arviz_stats.rhat(run, method="split")["x"]
    np.testing.assert_allclose(found["r_hat"], split, rtol=1e-4)
    # 63 batches of four chains: the error of a variance is 9 %, and of a ratio more
    ess = arviz_stats.ess(run, method="mean")["x"]
    np.testing.assert_allclose(found["ess_mean"], ess, rtol=0.5)
    for name, p in (("eti89_lb", 0.055), ("median", 0.5), ("eti89_ub", 0.945)):
        error = found[name] - np.quantile(flat, p, axis=0)
        # far less than the spacing of the grid, a quarter
        assert np.all(np.abs(error) < 0.06 * flat.std(0))


def test_what_is_wrong_with_draws_shows_in_their_summary():
    draws = CASES["exponential"].copy()
    draws[1, 70, 2], draws[2], draws[3, 80, 0] = np.nan, 1.0, 50.0
    summary, found = summarised(draws)
    assert summary.not_finite == 1
    assert summary.unmoved.tolist() == [False, False, True, False]
    assert summary.largest == 50.0
    assert np.isnan(found["mean"][2])
    assert np.isfinite(found["eti89_ub"][:2]).all()
    _, still = summarised(np.ones(SHAPE))
    assert still["median"].tolist() == [1.0, 1.0, 1.0]
    _, single = summarised(np.ones((2, 1, 1)))
    assert single["mean"] == 1.0


def test_many_draws_are_judged_a_block_at_a_time(monkeypatch):
    draws = autoregressive().astype(np.float32)
    draws[0] += 1.0
    site = xr.DataArray(draws, dims=("chain", "draw", "i"))
    run = xr.Dataset({"x": site})
    whole = convergence(run)
    monkeypatch.setattr("nutfree.diagnostics.blocks.MAX_NUMBERS", 5_000)
    found = worst_of(site)
    split = float(arviz_stats.rhat(run, method="split")["x"].max())
    assert found["r_hat"] == pytest.approx(split, rel=1e-4)
    assert found["largest"] == whole.largest
    tree = xr.DataTree.from_dict({"posterior": run})
    assert site.size < MAX_NUMBERS
    assert "chains disagree" in short_verdict(tree)
