"""The files that an evaluation leaves: results.csv, a row for each image, and results.json, what they mean."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import fingerprint, write_text
from .errors import UsageError
from .partial import Row

_TEXT = ("input", "target", "method", "group", "target_group")
_ALIKE = ("dataset", "longest", "metrics", "files")
"""What two runs must have in common to be compared."""


@dataclass(frozen=True)
class Run:
    """A finished evaluation."""

    path: Path
    """Its results.json."""
    facts: dict[str, Any]
    rows: list[Row]


def fingerprints(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Return digests of files by their paths below `root`, equal for copies."""
    return {path.relative_to(root).as_posix(): fingerprint(path)[:16] for path in sorted(set(paths))}


def write_run(folder: Path, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write results.csv and results.json, which carries the digest of the other."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    table = text.getvalue().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    write_text(folder / "results.csv", table)
    write_text(folder / "results.json", json.dumps({**facts, "rows": _digest(table)}, indent=2) + "\n")


def read_run(path: Path) -> Run:
    """Read what `write_run` wrote.

    Args:
        path: results.json, with results.csv beside it.

    Raises:
        UsageError: a file is missing, or is not what was written.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        table = path.with_name("results.csv").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--against {path}: results.json of another run, and its results.csv beside it: {error}"
        ) from None
    missing = [key for key in (*_ALIKE, "rows") if not isinstance(facts, dict) or key not in facts]
    if missing:
        raise UsageError(f"--against {path}: has no {', '.join(missing)}: make it again with this version")
    if facts["rows"] != _digest(table):
        raise UsageError(f"--against {path}: results.csv beside it is of another run, or was changed")
    rows = [
        {name: value if name in _TEXT else float(value) for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(table))
    ]
    return Run(path, facts, rows)


def require_alike(here: dict[str, Any], run: Run) -> None:
    """Raise unless the facts of two runs allow a comparison.

    Raises:
        UsageError: they are of different files, metrics or sizes. The message says which.
    """
    reasons = []
    for key in ("dataset", "longest"):
        if here[key] != run.facts[key]:
            reasons.append(f"{key} is {here[key] or 'not given'} here, {run.facts[key] or 'not given'} there")
    for key, noun in (("metrics", "another definition"), ("files", "other contents")):
        own, other = here[key], run.facts[key]
        for names, what in (
            (own.keys() - other.keys(), "only here"),
            (other.keys() - own.keys(), "only there"),
            ({name for name in own.keys() & other.keys() if own[name] != other[name]}, f"with {noun}"),
        ):
            if names:
                example = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
                reasons.append(f"{len(names)} {key} {what} ({example})")
    if reasons:
        raise UsageError(f"--against {run.path} cannot be compared with this run: {'; '.join(reasons)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
