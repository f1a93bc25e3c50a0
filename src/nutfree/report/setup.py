"""The model, the data and the settings of a comparison, and code that repeats it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Setup:
    """What a comparison was made of.

    Attributes:
        model: name of the model.
        module: name of the module that has it.
        arguments: type and shape of each argument, by name.
        settings: settings of the runs, by name.
    """

    model: str = "model"
    module: str = "__main__"
    arguments: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The model's name, with its module's where that is no script."""
        inside = self.module not in ("__main__", "builtins")
        return f"{self.module}.{self.model}" if inside else self.model

    def code(
        self, names: Mapping[str, str], options: Mapping[str, Mapping[str, Any]]
    ) -> str:
        """Python that repeats the comparison, given the model and its arguments.

        Args:
            names: the name of each kernel, by its label.
            options: the options it ran with, by its label.
        """
        entries = {
            label: f"({name!r}, {dict(options[label])!r})"
            if options.get(label)
            else repr(name)
            for label, name in names.items()
        }
        if all(label == name for label, name in names.items()):
            kernels = f"[{', '.join(entries.values())}]"
        else:
            pairs = (f"{label!r}: {entry}" for label, entry in entries.items())
            kernels = f"{{{', '.join(pairs)}}}"
        lines = ["import nutfree as nf"]
        if self.module != "__main__":
            lines.append(f"from {self.module} import {self.model}")
        passed = [self.model, *(f"{name}={name}" for name in self.arguments)]
        passed.append(f"kernels={kernels}")
        passed += [
            f"{name}={value!r}"
            for name, value in self.settings.items()
            if name != "progress_bar" and value is not None and value is not False
        ]
        body = "".join(f"    {text},\n" for text in passed)
        if self.arguments:
            lines += ["", "# the model's arguments are those whose shapes are above"]
        return "\n".join([*lines, "", f"found = nf.compare(\n{body})"])


def describe(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], settings: Mapping[str, Any]
) -> Setup:
    """Return what a comparison of kernels on this model is made of."""
    try:
        bound = inspect.signature(model).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {f"argument {i + 1}": value for i, value in enumerate(args)} | dict(
            kwargs
        )
    return Setup(
        model=getattr(model, "__name__", type(model).__name__),
        module=getattr(model, "__module__", "__main__"),
        arguments={name: _shape(value) for name, value in bound.items()},
        settings=dict(settings),
    )


def _shape(value: Any) -> str:
    """Type and shape of an argument, for people to read."""
    leaves = jax.tree.leaves(value)
    if isinstance(value, np.ndarray | jax.Array):
        shape = " × ".join(f"{n:,}" for n in value.shape) or "a number"
        return f"{value.dtype}, {shape}"
    if len(leaves) == 1 and leaves[0] is value:
        return repr(value)
    return f"{type(value).__name__} of {len(leaves)} arrays"
