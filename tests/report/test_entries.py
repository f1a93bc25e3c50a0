"""The kernels that a comparison is asked for, and what one of them can lose."""

import numpy as np
import pytest
import xarray as xr

import nutfree as nf
from nutfree.report import entries


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
    assert found["mala"] == "failed: RuntimeError: out of memory"
    assert not isinstance(found["nuts"], str)
    assert not isinstance(found["clc"], str)


def test_an_interrupt_ends_the_comparison_with_the_draws_made_so_far(monkeypatch):
    stopped = {"nuts": tree(interrupted=True), "mala": tree(), "clc": tree()}
    found = run_with(monkeypatch, stopped)
    assert not isinstance(found["nuts"], str)
    assert found["mala"].startswith("not run")
    early = {"nuts": tree(), "mala": KeyboardInterrupt(), "clc": tree()}
    found = run_with(monkeypatch, early)
    assert not isinstance(found["nuts"], str)
    assert found["mala"].startswith("not run: interrupted")
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
