"""Verdicts and recommendations, from runs made up to have one fault each."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

from nutfree.errors import MissingCapability, NutfreeError, UnknownKernel
from nutfree.frontends.numpyro import model_target
from nutfree.report import compare, plot_draws, plot_ess, plot_rank, plot_trace
from nutfree.report.compare import recommendation
from nutfree.report.judge import judge
from nutfree.report.recommend import recommend

SHORT = {"num_warmup": 200, "num_samples": 300, "num_chains": 2}


def gaussian():
    numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.sample("scale", dist.HalfNormal(1))


def bimodal():
    sides = dist.Normal(np.array([-8.0, 8.0]), 1.0)
    weights = dist.Categorical(np.array([0.4, 0.6]))
    numpyro.sample("x", dist.MixtureSameFamily(weights, sides))


def made(draws, *, seconds=1.0, grads=1000.0, diverging=0):
    """A run of a one-parameter model with these draws, (chains, n)."""
    flags = np.zeros(draws.shape, dtype=bool)
    flags.ravel()[:diverging] = True
    dims = ("chain", "draw")
    stats = xr.Dataset({"diverging": (dims, flags)})
    stats.attrs = {"seconds": seconds, "num_grad_evals": grads, "kernel": "made"}
    posterior = xr.Dataset({"x": (dims, draws.astype(np.float32))})
    return xr.DataTree.from_dict({"posterior": posterior, "sample_stats": stats})


def exact(seed, *, share=0.6, chains=4, num=400):
    rng = np.random.default_rng(seed)
    right = rng.uniform(size=(chains, num)) < share
    return np.where(right, 8.0, -8.0) + rng.normal(size=(chains, num))


@pytest.fixture(scope="module")
def target():
    return model_target(bimodal)


def test_exact_draws_are_sound(target):
    found = judge({"good": made(exact(0))}, target)["good"]
    assert found.valid
    assert len(found.mode_shares) == 2
    assert found.figures["ess_per_second"] > 1000


def test_a_mode_that_every_chain_misses_is_seen_by_another_kernel(target):
    runs = {"nuts": made(exact(0, share=1.0)), "good": made(exact(1), seconds=50.0)}
    found = judge(runs, target)
    assert found["nuts"].figures["r_hat"] < 1.01  # all chains agree, and are wrong
    assert "never visited a mode" in found["nuts"].problems[0]
    assert recommendation(found)[0] == "good"


def test_a_mode_seen_only_by_an_unsound_run_is_told(target):
    runs = {"nuts": made(exact(0, share=1.0)), "bad": made(exact(1), diverging=400)}
    found = judge(runs, target)
    best, sentence = recommendation(found)
    assert best == "nuts"
    assert "Look again: nuts never visited a mode" in sentence


def test_draws_far_below_the_posterior_are_no_mode(target):
    astray = made(exact(1) + 500.0)
    assert judge({"good": made(exact(0)), "bad": astray}, target)["good"].valid


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        (made(np.repeat([[8.0], [-8.0]], 400, 1) + exact(0, share=1, chains=2)), "R-"),
        (made(1.5 * exact(0)), "KSD"),
        (made(exact(0), diverging=100), "diverge"),
        (made(exact(0, num=8)), "too few"),
    ],
)
def test_each_fault_is_named(run, fault, target):
    found = judge({"run": run}, target)
    assert any(fault in problem for problem in found["run"].problems)
    best, sentence = recommendation(found)
    assert best is None
    assert sentence.startswith("No run can be trusted")


@pytest.mark.parametrize(("seconds", "best"), [(1.05, "nuts"), (10.0, "other")])
def test_nuts_is_named_where_it_is_as_good(seconds, best, target):
    draws = exact(0)
    runs = {"other": made(draws), "nuts": made(draws, seconds=seconds)}
    name, sentence = recommendation(judge(runs, target))
    assert name == best
    assert sentence.startswith(f"{best}: ")


@pytest.fixture(scope="module")
def comparison():
    mala = ("mala", {"step_size": 0.3})
    kernels = {"nuts": "nuts", "<b>mala": mala, "sgld": "blackjax.sgld"}
    return compare(gaussian, kernels=kernels, progress_bar=False, **SHORT)


def test_table_has_a_row_per_kernel_and_a_verdict(comparison):
    assert list(comparison.table.index) == ["nuts", "<b>mala", "sgld"]
    assert comparison.table.loc["sgld", "verdict"].startswith("cannot run")
    assert comparison.table.loc["nuts", "verdict"] == "sound"
    assert set(comparison.trees) == {"nuts", "<b>mala"}
    assert comparison.recommendation in repr(comparison)


def test_report_is_self_contained_and_escaped(comparison, tmp_path):
    page = comparison.to_html(tmp_path / "report.html").read_text()
    assert "<b>mala" not in page
    assert "&lt;b&gt;mala" in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("data:image/png;base64,") == 4
    assert "step_size 0." in page  # as mala found it
    assert "<b>mala" not in comparison._repr_html_()


def test_every_plot_is_a_figure(comparison):
    from matplotlib.figure import Figure

    tree = comparison.trees["nuts"]
    figures = [comparison.plot(), plot_draws(tree), plot_draws(tree, ["scale"])]
    figures += [plot_trace(tree), plot_rank(tree), plot_ess(comparison.trees)]
    pair = plot_draws(tree, ["x"], logdensity_fn=lambda x: -0.5 * (x**2).sum())
    assert all(isinstance(figure, Figure) for figure in [*figures, pair])


def test_unknown_kernels_are_refused_before_any_run():
    with pytest.raises(UnknownKernel, match="Did you mean 'nuts'"):
        compare(gaussian, kernels=["nutz"])


def test_no_kernel_that_runs_is_an_error_with_the_reasons():
    with pytest.raises(NutfreeError, match="minibatch") as caught:
        compare(gaussian, kernels=["blackjax.sgld"], progress_bar=False, **SHORT)
    assert not isinstance(caught.value, MissingCapability)


def test_recommend_says_nuts_where_nothing_speaks_against_it():
    table = recommend(gaussian)
    assert table["kernel"][0] == "nuts"
    assert "nothing speaks against it" in table["why"][0]
    sgld = table.set_index("kernel").loc["blackjax.sgld"]
    assert not sgld["fits"]
    assert "plate" in sgld["needs_missing"]


def test_recommend_sees_separate_modes():
    table = recommend(bimodal).set_index("kernel")
    assert "2 separate modes" in table.loc["nuts", "why"]
    assert table.index[0] != "nuts"
