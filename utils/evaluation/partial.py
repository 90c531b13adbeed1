"""The rows of an evaluation in progress, kept for the next run if this one is interrupted."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import write_text

Row = dict[str, Any]
"""What is measured of one pair with one method."""
Key = tuple[str, str, str]
"""Input, target and method of a row."""


class PartialResults:
    """A file of rows, one JSON object a line, below the settings that they depend on.

    Args:
        path: taken over if its settings are the same, else begun anew; None keeps nothing.
        settings: all that the rows depend on.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.rows: dict[Key, Row] = {} if path is None else _read(path, settings)
        self._file: Any = None
        if path is not None:
            is_new = not self.rows
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w" if is_new else "a", encoding="utf-8")  # noqa: SIM115  # closed in __exit__
            if is_new:
                self._write(settings)

    def __enter__(self) -> "PartialResults":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows[row["input"], row["target"], row["method"]] = row
        self._write(row)

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def _read(path: Path, settings: dict[str, Any]) -> dict[Key, Row]:
    """Return the rows that an interrupted run with the same settings has left; whole lines only."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")  # a damaged line is no row
    except FileNotFoundError:
        return {}
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = {}
    with suppress(ValueError, KeyError, IndexError):
        if json.loads(lines[0]) != settings:
            return {}
        for line in lines[1:]:
            row = json.loads(line)
            rows[row["input"], row["target"], row["method"]] = row
    if rows and not text.endswith("\n"):  # cut in the middle of a line
        write_text(path, "\n".join(lines) + "\n")
    return rows
