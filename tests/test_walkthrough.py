"""The kernel that CONTRIBUTING.md walks through does what every kernel promises."""

import re
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from nutfree import registry
from tests import test_contract as contract
from tests.contract import Program

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The kernel of a package with the page's files, found by its entry point."""
    site = tmp_path_factory.mktemp("site")
    kernel, test = blocks("python")
    (toml,) = blocks("toml")
    (group, entries), *_ = tomllib.loads(toml)["project"]["entry-points"].items()
    (site / "mypackage").mkdir()
    (site / "mypackage" / "leimkuhler.py").write_text(kernel)
    (site / "mypackage" / "its_test.py").write_text(test)
    info = site / "mypackage-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: mypackage\nVersion: 1.0\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(site), *sys.path])
        found = {e.name: e for e in entry_points(group=registry.GROUP)}
        yield Program(registry.register(found["leimkuhler"].load()))
        del registry._registered["leimkuhler"]
        for name in [n for n in sys.modules if n.split(".")[0] == "mypackage"]:
            del sys.modules[name]


@pytest.mark.parametrize("check", contract.ON_ONE_PROGRAM, ids=lambda f: f.__name__[5:])
def test_it_keeps_the_contract(check, program):
    check(program)


@pytest.mark.optimised
def test_its_own_test_passes(program):
    from mypackage import its_test

    (test,) = [v for n, v in vars(its_test).items() if n.startswith("test_")]
    test()


def test_it_is_short(program):
    kernel, _ = blocks("python")
    code = kernel[kernel.index("@dataclass") :]
    assert len([line for line in code.splitlines() if line]) <= 80
