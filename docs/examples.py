"""The reference shows an `Example:` of a docstring as code, as it does `Examples:`."""

from typing import Any

from griffe import Extension


class Examples(Extension):
    """Called by Griffe for each object that it has read."""

    def on_object(self, *, obj: Any, **rest: Any) -> None:
        del rest
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = text.replace("Example:\n", "Examples:\n")
