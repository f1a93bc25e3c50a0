"""Verdicts and recommendations, from runs made up to have one fault each."""

import ast
import html
import re
from importlib import import_module

import numpyro
import numpyro.distributions as dist
import pytest

from nutfree.errors import MissingCapability, NutfreeError, UnknownKernel
from nutfree.report import compare, plot_draws, plot_ess, plot_rank, plot_trace
from nutfree.report.entries import Failure
from tests.report.runs import bimodal, exact, made

comparing = import_module("nutfree.report.compare")
SHORT = {"num_warmup": 200, "num_samples": 300, "num_chains": 2}


def gaussian():
    numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.sample("scale", dist.HalfNormal(1))


@pytest.fixture(scope="module")
def comparison():
    mala = ("mala", {"step_size": 0.3})
    kernels = {"nuts": "nuts", "<b>mala": mala, "sgld": "blackjax.sgld"}
    return compare(gaussian, kernels=kernels, progress_bar=False, **SHORT)


def test_table_has_a_row_per_kernel_and_a_verdict(comparison):
    assert list(comparison.table.index) == ["nuts", "<b>mala", "sgld"]
    assert comparison.table.loc["sgld", "verdict"].startswith("cannot run")
    assert comparison.verdicts["nuts"].sound
    assert comparison.table.loc["nuts", "verdict"].startswith("sound: an error of")
    assert "minibatch" in comparison.errors["sgld"]
    assert set(comparison.trees) == {"nuts", "<b>mala"}
    said = " ".join(repr(comparison).split())
    assert said.startswith(comparison.recommendation)
    assert "did not run" in said


def test_it_fits_a_terminal_and_speaks_in_words(comparison):
    lines = repr(comparison).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert not re.search(r"\de[+-]\d|ess_|_tv|ksd|…", repr(comparison))
    for words in ("effective", "disagreement", "discrepancy", "R-hat"):
        assert words in repr(comparison)


def test_the_page_has_what_a_reader_needs_to_repeat_it(comparison, tmp_path):
    page = comparison.to_html(tmp_path / "report.html").read_text()
    order = ["Use nuts", "effective draws", "Model, data", "Parameters", "Every figure"]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    code = html.unescape(re.search(r"<pre>(import.*?)</pre>", page, re.DOTALL)[1])
    call = ast.parse(code).body[-1].value
    said = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    assert said["num_samples"] == SHORT["num_samples"]
    assert said["kernels"]["<b>mala"] == ("mala", {"step_size": 0.3})
    assert not re.search(r"\de[+-]\d", page.split("<pre>")[0].split("<img")[0])


def test_report_is_self_contained_and_escaped(comparison, tmp_path):
    page = comparison.to_html(tmp_path / "report.html").read_text()
    assert "<b>mala" not in page
    assert "&lt;b&gt;mala" in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("data:image/png;base64,") == 7
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


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no memory")])
def test_whatever_happens_to_the_judging_the_runs_are_kept(error, monkeypatch):
    def fails(*_):
        raise error

    runs = {"nuts": made(exact(0)), "mala": Failure("failed: it", "Traceback: it")}
    monkeypatch.setattr(comparing, "run_all", lambda *_: runs)
    monkeypatch.setattr(comparing, "judge", fails)
    found = compare(bimodal, kernels=["nuts", "mala"])
    assert found.trees["nuts"] is runs["nuts"]
    assert found.best is None
    assert "not judged" in found.recommendation
    assert "not checked" in found.table.loc["nuts", "verdict"]
    assert found.table.loc["mala", "verdict"] == "failed: it"
    assert set(found.errors) == {"mala", "the judging"}
