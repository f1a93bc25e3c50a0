"""What can go wrong, each with what to write instead in its message."""

import difflib
import sysconfig
import traceback
import warnings
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

#: Folders whose code stands between a user's line and a warning about it.
_BETWEEN = (
    str(Path(__file__).parent),
    *(
        str(Path(spec.origin).parent)
        for name in ("numpyro", "jax", "blackjax")
        if (spec := find_spec(name)) is not None and spec.origin is not None
    ),
)


#: Folders of installed packages and of Python itself.
_INSTALLED = tuple({sysconfig.get_path(p) for p in ("stdlib", "purelib", "platlib")})


def where_raised(error: BaseException) -> str:
    """Return " (file, line n)" of the user's own code that raised, or nothing."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_absolute() and not frame.filename.startswith(
            (*_BETWEEN, *_INSTALLED)
        ):
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
        # a notebook's cell, or what is typed into an interpreter
        if frame.filename.startswith(("<ipython", "<stdin")):
            return f" (line {frame.lineno})"
    return ""


def warn(message: str) -> None:
    """Warn the user, with the line of the user's that led here."""
    warnings.warn(message, skip_file_prefixes=_BETWEEN)


class NutfreeError(Exception):
    """Base of every exception raised on purpose by nutfree."""


def needed(module: str, what: str, extra: str | None = None) -> Any:
    """Return a module that is no dependency of this package.

    Args:
        what: what needs it, as the subject of a sentence.
        extra: of this package, where it has one for it.

    Raises:
        NutfreeError: if it is not installed, with the way to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        how = f'pip install "nutfree[{extra}]"' if extra else f"pip install {package}"
        raise NutfreeError(
            f"{what} needs {package}, which is not installed: {how}."
        ) from error


class UnknownKernel(NutfreeError, LookupError):
    """No kernel or family has this name; the message suggests the nearest."""


class InvalidOption(NutfreeError, ValueError):
    """A kernel option is misspelt, of the wrong type or out of its range."""


class MissingCapability(NutfreeError):
    """A kernel needs a part that this posterior's `Target` does not have."""


class UnsupportedModel(NutfreeError):
    """The model has a site that no kernel of this library can sample."""


class InvalidData(NutfreeError, ValueError):
    """The data are not finite, or their shapes disagree with the model."""


def refuse_unknown(
    where: str, unknown: Iterable[str], known: Iterable[str], rest: str = ""
) -> None:
    """Refuse arguments that a function does not have, with the nearest that it has.

    Raises:
        InvalidOption: for the first of them.
    """
    known = [name for name in known if name not in ("args", "kwargs", "unknown")]
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"It has {', '.join(known)}."
        raise InvalidOption(f"{where} has no argument '{name}'{rest}. {hint}")


class NoFiniteStart(NutfreeError, RuntimeError):
    """No starting point with a finite log density was found."""


class CheckpointMismatch(NutfreeError, ValueError):
    """A checkpoint is of another run than the one that is to go on from it."""
