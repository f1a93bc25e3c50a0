"""The house: nothing imports upwards, and no two files import each other."""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import nutfree
from nutfree.kernels import BUILTIN
from nutfree.registry import DRAWS

ROOT = Path(nutfree.__file__).parent

#: From the ground up. A room may import from rooms below it and from itself; a family
#: of kernels from the rooms below `kernels` and from itself.
FLOORS = (
    "errors",
    "target",
    "facts",
    "options",
    "listing",
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
    "cli_federated",
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


def _literals(node: ast.AST) -> set[str]:
    """The strings that a comparison, a pattern or a table's key is made with."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return set().union(*map(_literals, node.elts))
    return set()


def _decided_by(node: ast.AST) -> set[str]:
    """String literals on which the course of the program depends at this node."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return set().union(*map(_literals, sides))
    if isinstance(node, ast.MatchValue):
        return _literals(node.value)
    if isinstance(node, ast.Dict):
        return set().union(*(_literals(key) for key in node.keys if key))
    if getattr(getattr(node, "func", None), "attr", "") in ("startswith", "get"):
        return set().union(*map(_literals, node.args[:1]))
    return set()


def branches(
    source: str, names: frozenset[str], families: frozenset[str] = frozenset()
) -> list[str]:
    """Where a program does something else for one of these names, or for a prefix.

    A family's name is an ordinary word too, and counts where a family is spoken of.
    """
    names |= {name.split(".")[0] + "." for name in names if "." in name}
    return [
        f"line {node.lineno}: {literal!r}"
        for node in ast.walk(ast.parse(source))
        for literal in _decided_by(node)
        if literal in names or (literal in families and "family" in ast.dump(node))
    ]


def _home(module: str) -> str:
    """The family's room, `kernels.<family>`, or nothing for code of other rooms."""
    return _family(module) if _room(module) == "kernels" else ""


def test_no_code_outside_a_kernels_room_branches_on_its_name():
    names: dict[str, set[str]] = {}
    families: dict[str, set[str]] = {}
    for entry in BUILTIN:
        module = import_module(f"nutfree.kernels.{entry}")
        room = f"kernels.{entry.split('.')[0]}"
        for spec in getattr(module, "SPECS", None) or (module.SPEC,):
            # the draws of a kernel may be called an ensemble, and so is a kernel
            names.setdefault(room, set()).update({spec.name} - set(DRAWS))
            families.setdefault(room, set()).add(spec.family)

    def of_others(named, module):
        return frozenset().union(*named.values()) - named.get(_home(module), set())

    found = [
        f"{module} {branch}"
        for module, path in MODULES.items()
        for branch in branches(
            path.read_text(), of_others(names, module), of_others(families, module)
        )
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "if spec.name == 'mala': pass",
        "if name in ('nuts', 'mala'): pass",
        "match name:\n    case 'mala': pass",
        "cost = {'mala': 1}[name]",
        "if name.startswith('blackjax.'): pass",
        "x = 1 if 'sgld' != family else 2",
    ],
)
def test_a_branch_on_a_name_is_found(source):
    names, families = frozenset({"mala", "nuts", "blackjax.nuts"}), frozenset({"sgld"})
    assert branches(source, names, families)
    assert not branches(source, frozenset({"clc"}), frozenset({"chain"}))
