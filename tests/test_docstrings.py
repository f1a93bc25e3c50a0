"""The examples in docstrings run, and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import nutfree

MODULES = [
    module.name for module in pkgutil.walk_packages(nutfree.__path__, "nutfree.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module)
    assert results.failed == 0
