"""A page to look at what was done: every photo before and after, with a slider between them.

One HTML file that needs nothing else: the pictures are small copies inside it, brought to the screen as they come near.
"""

import base64
import errno
import html
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from ..files import atomic_path

PREVIEW_SIZE = 960
"""Longest side in pixels of the copies in the page."""

_HEAD, _TAIL = Path(__file__).with_name("report.html").read_text(encoding="utf-8").split("<!-- photos -->\n")


class Report:
    """A page that grows with every photo; `Report.open` gives one."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        file.write(_HEAD)

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator["Report"]:
        """Write a page, atomically: it is there when the block ends without an error.

        Raises:
            OSError: the folder is missing, read-only or full; or another page than such a report stands there.
        """
        if path.exists() and path.read_bytes()[: len(_HEAD) // 2] != _HEAD.encode()[: len(_HEAD) // 2]:
            raise FileExistsError(errno.EEXIST, "is not a report of this program: move it away", str(path))
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
            report = cls(file)
            yield report
            file.write(_TAIL)

    def add(self, name: str, size: tuple[int, int], seconds: float, before: Image.Image, after: Image.Image) -> None:
        """Add a photo.

        Args:
            name: for its title.
            size: width and height in pixels.
            seconds: how long it took; 0 if it was there already.
            before: a small copy, "RGB" in sRGB.
            after: the same, corrected.
        """
        facts = {"width": size[0], "height": size[1], "seconds": seconds}
        self._write(name, {**facts, "before": _histogram(before), "after": _histogram(after)}, (before, after))

    def add_failure(self, name: str, reason: str) -> None:
        """Add a photo that could not be corrected, and why."""
        self._write(name, {"reason": reason}, ())

    def _write(self, name: str, facts: dict[str, object], pictures: tuple[Image.Image, ...]) -> None:
        attribute = html.escape(json.dumps({"name": name, **facts}))
        encoded = "\n".join(_encode(picture) for picture in pictures)
        self._file.write(f'<script class="photo" type="text/plain" data-facts="{attribute}">\n{encoded}\n</script>\n')


def _encode(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _histogram(picture: Image.Image) -> list[float]:
    """Return the shares of 64 steps of brightness."""
    counts = np.array(picture.convert("L").histogram(), dtype=float).reshape(64, 4).sum(axis=1)
    return [round(float(share), 5) for share in counts / counts.sum()]
