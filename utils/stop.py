"""Stop between two steps, not in the middle of one."""

import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any


class StopRequest:
    """Remember SIGINT or SIGTERM until the step in progress is done; a second one stops at once.

    A context manager: the previous handlers return with its end.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread: leave signals to whoever has them
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            sys.exit(128 + number)
        self.signal = number
