"""Checks of draws over many rows: what they see, and what they cost."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import nutfree as nf
from nutfree.diagnostics.discrepancies import scores
from nutfree.diagnostics.subsample import minibatch_scores, surrogate
from nutfree.report import exact_draws, kernel_stein_discrepancy, runs
from nutfree.report.cross_check import cross_check
from nutfree.report.judge import judge

N, DIM = 20_000, 3


def model(X, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        rows = numpyro.subsample(X, event_dim=1)
        labels = None if y is None else numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=rows @ beta), obs=labels)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, DIM)).astype(np.float32)
    chance = 1 / (1 + np.exp(-X @ np.array([1.0, -0.5, 0.2])))
    return {"X": X, "y": (rng.uniform(size=N) < chance).astype(int)}


@pytest.fixture(scope="module")
def laplace(data):
    """Mode and covariance, of a posterior that is Gaussian to a hundredth of an sd."""
    X, y = data["X"].astype(float), data["y"]
    mode = np.zeros(DIM)
    for _ in range(20):
        p = 1 / (1 + np.exp(-X @ mode))
        precision = (X * (p * (1 - p))[:, None]).T @ X + np.eye(DIM) / 4
        mode = mode + np.linalg.solve(precision, X.T @ (y - p) - mode / 4)
    return mode, np.linalg.inv(precision)


@pytest.fixture(scope="module")
def target(data):
    return nf.model_target(model, kwargs=data)


def gaussian(laplace, size, seed=0, wide=1.0, shift=0.0):
    """Draws of the posterior, or of one that is wider or elsewhere in the first
    coordinate."""
    mode, covariance = laplace
    noise = np.random.default_rng(seed).normal(size=(size, DIM))
    noise[:, 0] = wide * noise[:, 0] + shift
    return mode + noise @ np.linalg.cholesky(covariance).T


def tree_of(draws, chains=2, **stats):
    values = draws.reshape(chains, -1, DIM).astype(np.float32)
    posterior = xr.Dataset({"beta": (("chain", "draw", "i"), values)})
    shape = values.shape[:2]
    full = {k: (("chain", "draw"), np.full(shape, v)) for k, v in stats.items()}
    return xr.DataTree.from_dict(
        {"posterior": posterior, "sample_stats": xr.Dataset(full)}
    )


def test_scores_from_batches_are_unbiased_with_independent_errors(target, laplace):
    draws = gaussian(laplace, 4, wide=3.0)
    exact = scores({"beta": draws.astype(np.float32)}, target)
    sd = np.sqrt(np.diag(laplace[1]))
    repeated = np.repeat(draws, 400, axis=0)
    centre = laplace[0]
    found = minibatch_scores(repeated, target, batch_size=50, centre=centre, seed=1)
    found = found.reshape(4, 400, DIM)
    error = found.std(1) / 20
    assert np.all(error * sd > 1e-3)
    # 12 means at 4.5 errors: 1e-4 false alarms
    assert np.all(np.abs(found.mean(1) - exact) < 4.5 * error)
    # errors of draws that follow each other: 2 % of 1,600 pairs
    noise = (found - found.mean(1, keepdims=True))[..., 0]
    together = np.mean(noise[:, 1:] * noise[:, :-1], 1) / noise.var(1)
    assert np.all(np.abs(together) < 4.5 / 20)


def test_a_discrepancy_of_noisy_scores_is_that_of_the_exact_ones():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)) * 1.5
    exact = kernel_stein_discrepancy(x, -x, noisy=True).ksd ** 2
    noisy, biased = [], []
    for _ in range(60):
        s = -x + rng.normal(size=x.shape)
        noisy.append(kernel_stein_discrepancy(x, s, noisy=True, num_bootstrap=2).ksd)
        biased.append(kernel_stein_discrepancy(x, s, num_bootstrap=2).ksd)
    noisy, biased = np.square(noisy), np.square(biased)
    # four standard errors of the mean
    assert abs(noisy.mean() - exact) < 4 * noisy.std() / 60**0.5
    assert biased.mean() - exact > 10 * biased.std() / 60**0.5


def test_exact_draws_with_noisy_scores_stay_below_the_floor():
    # 100 repeats at 5 %: more than 12 exceedances has probability 0.1 %
    ratios = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(200, 3))
        s = -x + 0.5 * rng.normal(size=x.shape)
        found = kernel_stein_discrepancy(x, s, num_bootstrap=200, seed=seed, noisy=True)
        ratios.append(found.ratio)
    assert sum(ratio > 1 for ratio in ratios) <= 12


@pytest.mark.slow
def test_a_surrogate_has_the_gradient_of_all_rows_at_its_centre(target, laplace):
    draws = gaussian(laplace, 50)
    density = surrogate(draws, target, num_rows=2000, centre=laplace[0])
    centre = jnp.asarray(laplace[0], jnp.float32)
    sd = np.sqrt(np.diag(laplace[1]))
    # in units of the posterior, where a subsample alone would be off by 3 or so
    np.testing.assert_allclose(jax.grad(density)(centre) * sd, 0, atol=0.02)
    curvature = -np.asarray(jax.hessian(density)(centre)) @ laplace[1]
    # errors of a few in a hundred from 2,000 rows
    np.testing.assert_allclose(curvature, np.eye(DIM), atol=0.15)


def test_draws_that_are_right_agree_with_an_exact_chain_on_a_subsample(data, laplace):
    found = cross_check(tree_of(gaussian(laplace, 4000)), model, num_rows=4000, **data)
    assert found.agrees, str(found)
    assert list(found.table.index) == ["beta[0]", "beta[1]", "beta[2]"]
    # where the errors are small enough to see a tenth
    assert found.table["mean_error"].max() < 0.08
    assert str(found).startswith("agrees with NUTS on 4,000 rows")


@pytest.mark.parametrize(
    "spoil",
    [
        {"wide": 1.5},
        pytest.param({"wide": 0.6}, marks=pytest.mark.slow),
        pytest.param({"shift": 0.6}, marks=pytest.mark.slow),
    ],
)
def test_draws_that_are_wrong_do_not(spoil, data, laplace):
    tree = tree_of(gaussian(laplace, 4000, **spoil))
    assert not cross_check(tree, model, num_rows=4000, **data).agrees


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wide", "agrees"),
    [(1.0, True), pytest.param(1.5, False, marks=pytest.mark.slow)],
)
def test_draws_over_rows_on_disk_are_checked_alike(
    wide, agrees, data, laplace, tmp_path
):
    for name, value in data.items():
        np.save(tmp_path / f"{name}.npy", value)
    rows = {name: tmp_path / f"{name}.npy" for name in data}
    stored = nf.rows(**rows, window_rows=8000, block_rows=50)
    tree = tree_of(gaussian(laplace, 4000, wide=wide))
    found = cross_check(tree, model, num_rows=4000, **stored)
    assert found.agrees is agrees, str(found)
    assert found.num_rows == 4000


def test_a_model_without_rows_is_refused_with_what_to_write():
    def plain():
        numpyro.sample("beta", dist.Normal(0, 1).expand([DIM]).to_event(1))

    with pytest.raises(nf.MissingCapability, match="plate"):
        cross_check(tree_of(np.zeros((40, DIM))), plain)


@pytest.mark.slow
def test_a_comparison_over_many_rows_asks_for_batches_only(
    target, laplace, monkeypatch
):
    # the log density over all rows is wrong here, and nothing notices
    monkeypatch.setattr(runs, "MANY_ROWS", N)
    blind = replace(target, logdensity_fn=lambda z: 0.0 * jnp.sum(z["beta"]))
    trees = {
        "right": tree_of(gaussian(laplace, 2000)),
        "wide": tree_of(gaussian(laplace, 2000, wide=1.4)),
    }
    found = judge(trees, blind)
    assert found["right"].sound, found["right"].problems
    assert found["wide"].problems
    monkeypatch.setattr(runs, "MANY_ROWS", N + 1)
    assert judge({"right": trees["right"]}, blind)["right"].problems


def test_exact_draws_have_the_errors_of_inflated_ones():
    rng, n, inflation = np.random.default_rng(0), 200, 0.3
    worth = exact_draws(n, inflation)
    assert worth < exact_draws(n, 0.0) == n
    sds = rng.normal(scale=np.sqrt(1 + inflation), size=(20_000, n)).std(1, ddof=1)
    # mean squared errors of 20,000 sds: 1 %, and the formula's own order 1/n
    assert np.mean((sds - 1) ** 2) == pytest.approx(0.5 / worth, rel=0.05)
    assert np.isnan(exact_draws(n, np.inf)) or exact_draws(n, np.inf) == 0


@pytest.mark.slow
def test_a_report_says_what_the_step_does_to_variances(data, target):
    kernel = nf.kernel("sgld", model, gradient="plain", step_size=0.05, num_steps=40)
    tree = nf.sample(
        kernel, **data, num_warmup=0, num_samples=400, num_chains=2, progress_bar=False
    )
    found = judge({"sgld": tree}, target)["sgld"]
    # V = N/n = 100: hV/4 is 1.25
    assert found.figures["predicted_inflation"] == pytest.approx(1.25, rel=0.5)
    assert found.figures["ess_exact"] < 10 < found.figures["ess_bulk"]
    assert any("too large by" in caveat for caveat in found.caveats)
    assert found.problems


@pytest.mark.parametrize(
    ("num_rows", "first"),
    [
        pytest.param(500, "nuts", marks=pytest.mark.slow),
        pytest.param(60_000, "sgld", marks=pytest.mark.slow),
    ],
)
def test_sgld_is_recommended_where_rows_are_many_and_not_where_they_are_few(
    num_rows, first
):
    X = np.random.default_rng(0).normal(size=(num_rows, 1)).astype(np.float32)
    y = (X[:, 0] > 0.5).astype(int)
    table = nf.recommend(model, X, y, all_kernels=True)
    assert table["kernel"][0] == first
    why = table.set_index("kernel").loc["sgld", "why"]
    assert ("only 500 rows" in why) == (first == "nuts")
