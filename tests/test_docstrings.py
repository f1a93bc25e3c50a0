"""The examples in docstrings run, and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import nutfree

MODULES = [
    module.name for module in pkgutil.walk_packages(nutfree.__path__, "nutfree.")
]
#: Whose examples run a sampler or a search, which compiles for seconds.
LONG = {
    "nutfree.modes.find",
    "nutfree.report.check",
    "nutfree.report.compare",
    "nutfree.report.recommend",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in MODULES],
)
def test_examples_run(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module)
    assert results.failed == 0
