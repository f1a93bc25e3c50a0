"""What pyproject.toml says of the package is so."""

import ast
import importlib
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import nutfree

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
#: What the names of packages do not say.
MODULES = {
    "scikit-learn": "sklearn",
    "ott-jax": "ott",
    "mkdocs-material": "material",
    "mkdocstrings-python": "mkdocstrings_handlers",
    "netcdf4": "netCDF4",
    "pytest-xdist": "xdist",
}
#: Modules that come with a package that is declared.
COME_WITH = {
    "arviz_base": "arviz",
    "arviz_plots": "arviz",
    "arviz_stats": "arviz",
    "jaxlib": "jax",
    "numpy": "jax",
    "scipy": "jax",
    "tqdm": "numpyro",
}
#: What is there wherever it is asked for: a notebook runs in it.
IN_NOTEBOOKS = {"IPython"}


def module_of(requirement: str) -> str:
    name = Requirement(requirement).name
    return MODULES.get(name, name.replace("-", "_"))


def installed(requirement: str) -> bool:
    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), True)
    except metadata.PackageNotFoundError:
        return False


def imported(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it, by their first name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_whatever_the_source_imports_is_declared():
    declared = {module_of(r) for r in PROJECT["dependencies"]}
    for extra in EXTRAS.values():
        declared |= {module_of(r) for r in extra}
    source = set()
    for path in (ROOT / "src" / "nutfree").rglob("*.py"):
        source |= imported(path)
    source -= set(sys.stdlib_module_names) | {"nutfree"} | IN_NOTEBOOKS
    assert {COME_WITH.get(name, name) for name in source} <= declared


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_that_is_installed_is_imported(extra):
    present = [r for r in EXTRAS[extra] if installed(r)]
    if not present:
        pytest.skip(f"nothing of {extra} is installed")
    for requirement in present:
        importlib.import_module(module_of(requirement))


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {nutfree.__version__}\n" in citation
    assert PROJECT["version"] == nutfree.__version__
    assert (ROOT / "src" / "nutfree" / "py.typed").exists()
