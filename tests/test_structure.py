"""The house: nothing imports upwards, and no two files import each other."""

import ast
from functools import cache
from pathlib import Path

import nutfree

ROOT = Path(nutfree.__file__).parent

#: From the ground up. A room may import from rooms below it and from itself; a family
#: of kernels from the rooms below `kernels` and from itself.
FLOORS = (
    "errors",
    "target",
    "facts",
    "registry",
    "numerics",
    "warmup",
    "minibatch",
    "modes",
    "paths",
    "kernels",
    "frontends",
    "diagnostics",
    "hosts",
    "report",
    "cli",
)


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of this package that a module imports, wherever it does so."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relative to itself"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if n[8:] in MODULES else node.module for n in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {n[8:] for n in names if n == "nutfree" or n.startswith("nutfree.")}
    return frozenset(found & set(MODULES) - {module})


def _room(module: str) -> str:
    return module.split(".")[0]


def _family(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _may_import(module: str, other: str) -> bool:
    room, below = _room(module), _room(other)
    if room == below == "kernels":
        return _family(module) == _family(other)
    # kernels and what makes targets know nothing of each other
    if room == "frontends" and below == "kernels":
        return False
    return FLOORS.index(below) <= FLOORS.index(room)


def test_every_module_has_its_floor():
    assert {_room(module) for module in MODULES if module} == set(FLOORS)


def test_nothing_imports_upwards():
    upwards = [
        f"{module} imports {other}"
        for module in MODULES
        if module
        for other in imports(module)
        if not other or not _may_import(module, other)
    ]
    assert not upwards, "\n".join(upwards)


def test_no_files_import_in_a_circle():
    circles = []

    def visit(module: str, trail: tuple[str, ...]):
        if module in trail:
            circles.append(" -> ".join((*trail[trail.index(module) :], module)))
            return
        if module in done:
            return
        for other in imports(module):
            visit(other, (*trail, module))
        done.add(module)

    done: set[str] = set()
    for module in MODULES:
        visit(module, ())
    assert not circles, "\n".join(circles)
