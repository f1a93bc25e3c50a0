"""How a package of model files is listed and opened."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType


def names(path: Iterable[str]) -> list[str]:
    """Modules under a package's ``__path__``, without packages and private files."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(path)
        if not module.ispkg and not module.name.startswith("_")
    )


def load(package: str, path: Iterable[str], name: str) -> ModuleType:
    """Import ``package.name``, or say which name was probably meant."""
    known = names(path)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise LookupError(f"{package} has no model {name!r}: {hint}")
    return importlib.import_module(f"{package}.{name}")
