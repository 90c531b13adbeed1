"""Stop between two steps or photos, not in the middle of one."""

import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

SAME = 1.0
"""Seconds within which a second signal is the first on another way: to the whole job, and passed on by its parent."""


class StopRequest:
    """Remember SIGINT or SIGTERM until what is in progress is done; a second one, later than `SAME`, stops at once.

    A context manager: the previous handlers return with its end.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._when = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread: leave signals to whoever has them
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def raise_it(self) -> None:
        """Raise what the signal asks for, if one came.

        Raises:
            KeyboardInterrupt: it was SIGINT.
            SystemExit: it was SIGTERM; the code is 143, as a shell has it.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal:
            sys.exit(128 + self.signal)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal and time.monotonic() > self._when + SAME:
            sys.exit(128 + number)
        if not self.signal:
            self.signal, self._when = number, time.monotonic()
