"""Ctrl-C and SIGTERM ask a run to stop, and do not tear it apart."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

#: The signals, each with the handler that is replaced; another is its owner's.
_DEFAULTS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


class Interrupts:
    """A context in which the first signal is noted, and a second one acts at once.

    Before `hold` a signal acts at once, too: there is nothing to keep. Outside of the
    main thread, and where somebody else handles a signal, it does nothing.

    Attributes:
        received: the signal that was noted, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._held = False
        self._replaced: list[int] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number, default in _DEFAULTS.items():
                if signal.getsignal(number) is default:
                    signal.signal(number, self._note)
                    self._replaced.append(number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in self._replaced:
            signal.signal(number, _DEFAULTS[number])

    def hold(self) -> None:
        """From here on there is something to keep."""
        self._held = True

    def _note(self, number: int, frame: object) -> None:
        if self._held and self.received is None:
            self.received = number
        else:
            raise stopped_by(number)


def stopped_by(number: int | None) -> BaseException:
    """Return what a signal raises where nothing catches it."""
    if number == signal.SIGTERM:
        return SystemExit(128 + number)
    return KeyboardInterrupt()
