"""The kernels that a comparison is asked for, and what one of them can lose."""

from concurrent.futures import (
    BrokenExecutor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from multiprocessing import get_context

import cloudpickle
import numpy as np
import pytest
import xarray as xr

import nutfree as nf
from nutfree.report import entries
from nutfree.report.setup import Setup


def tree(interrupted=False):
    stats = xr.Dataset(attrs={"interrupted": int(interrupted)})
    draws = xr.Dataset({"x": (("chain", "draw"), np.zeros((1, 3)))})
    return xr.DataTree.from_dict({"posterior": draws, "sample_stats": stats})


def run_with(monkeypatch, results):
    """What three kernels leave, each result a tree or an exception."""

    def sample(kernel, **settings):
        result = results[kernel]
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr("nutfree.hosts.sample.sample", sample)
    monkeypatch.setattr(entries, "build", lambda entry, model: entry)
    jobs = {name: (None, name, (), {}) for name in results}
    return entries.one_by_one(jobs)


def test_a_kernel_that_crashes_does_not_take_the_draws_of_others(monkeypatch):
    crash = RuntimeError("out of memory")
    found = run_with(monkeypatch, {"nuts": tree(), "mala": crash, "clc": tree()})
    assert found["mala"].reason == "failed: RuntimeError: out of memory"
    assert "Traceback" in found["mala"].traceback
    assert isinstance(found["nuts"], xr.DataTree)
    assert isinstance(found["clc"], xr.DataTree)


def test_an_interrupt_ends_the_comparison_with_the_draws_made_so_far(monkeypatch):
    stopped = {"nuts": tree(interrupted=True), "mala": tree(), "clc": tree()}
    found = run_with(monkeypatch, stopped)
    assert isinstance(found["nuts"], xr.DataTree)
    assert found["mala"].reason.startswith("not run")
    early = {"nuts": tree(), "mala": KeyboardInterrupt(), "clc": tree()}
    found = run_with(monkeypatch, early)
    assert isinstance(found["nuts"], xr.DataTree)
    assert found["mala"].reason.startswith("not run: interrupted")
    with pytest.raises(KeyboardInterrupt):
        run_with(monkeypatch, {"nuts": KeyboardInterrupt(), "mala": tree()})


@pytest.mark.parametrize("kernels", [(), 3, (3,), [("mala", 0.1)], {"a": 3}])
def test_kernels_that_are_none_say_what_to_write(kernels):
    with pytest.raises(nf.InvalidOption, match="write names"):
        nf.compare(lambda: None, kernels=kernels)


def test_a_single_kernel_need_not_be_in_a_list():
    kernel = nf.kernel("mala", lambda: None)
    assert entries.labelled(kernel) == {"mala": kernel}
    assert entries.labelled("nuts") == {"nuts": "nuts"}


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        (ThreadPoolExecutor(1), "ProcessPoolExecutor"),
        (ProcessPoolExecutor(1, mp_context=get_context("fork")), "spawn"),
        ("dask", "executor is a str"),
    ],
)
def test_executors_that_cannot_run_kernels_are_refused_in_words(executor, said):
    with pytest.raises(nf.InvalidOption, match=said):
        entries.run_all({}, executor)


def test_only_an_executors_kernels_can_time_out():
    with pytest.raises(nf.InvalidOption, match="timeout is for"):
        entries.run_all({}, timeout=1.0)


class Later:
    """An executor whose futures are as its kernels say."""

    def submit(self, run, job):
        future = Future()
        outcome = cloudpickle.loads(job)[1]
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        elif outcome is not None:
            future.set_result(outcome)
        return future


def test_a_worker_that_dies_or_is_late_has_its_row_and_the_others_go_on():
    outcomes = {"nuts": "its draws", "mala": BrokenExecutor("killed"), "clc": None}
    jobs = {name: (None, outcome, (), {}) for name, outcome in outcomes.items()}
    found = entries.run_all(jobs, Later(), timeout=0.1)
    assert found["nuts"] == "its draws"
    assert "BrokenExecutor: killed" in found["mala"].reason
    assert found["clc"].reason == "failed: no result within 0.1 s"


def test_code_that_repeats_a_comparison_has_what_was_chosen():
    settings = {"seed": 0, "coords": None, "prior": 500, "log_likelihood": False}
    code = Setup(settings=settings).code({"nuts": "nuts"}, {})
    assert "    kernels=['nuts'],\n    seed=0,\n    prior=500,\n)" in code
