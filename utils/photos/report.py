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
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..files import atomic_path

PREVIEW_SIZE = 960
"""Longest side in pixels of the copies in the page."""
KNOTS = 32
"""Longest side of the maps of the curves in the page."""

_HEAD, _TAIL = Path(__file__).with_name("report.html").read_text(encoding="utf-8").split("<!-- photos -->\n")
_TITLE = b"<title>Exposure correction: before and after</title>"


class Report:
    """A page that grows with every photo; `Report.open` gives one."""

    def __init__(self, file: TextIO, strength: float = 1.0, exposure: float = 0.0, careful: bool = False) -> None:
        self._file = file
        made = json.dumps({"strength": strength, "exposure": exposure, "careful": careful})
        file.write(f'{_HEAD}<script id="made" type="application/json">{made}</script>\n')

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, strength: float = 1.0, exposure: float = 0.0, *, careful: bool = False
    ) -> Iterator["Report"]:
        """Write a page, atomically: it is there when the block ends without an error.

        Args:
            path: the file.
            strength: of the corrections in it, where its slider stands at first.
            exposure: likewise.
            careful: whether they are careful ones, as the curves are then.

        Raises:
            OSError: the folder is missing, read-only or full; or another page than such a report stands there.
        """
        if path.exists() and _TITLE not in path.read_bytes()[:1000]:
            raise FileExistsError(errno.EEXIST, "is not a report of this program: move it away", str(path))
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
            report = cls(file, strength, exposure, careful)
            yield report
            file.write(_TAIL)

    def add(
        self,
        name: str,
        size: tuple[int, int],
        seconds: float,
        before: Image.Image,
        after: Image.Image,
        curves: Tensor | None = None,
    ) -> None:
        """Add a photo.

        Args:
            name: for its title.
            size: width and height in pixels.
            seconds: how long it took; 0 if it was there already.
            before: a small copy, "RGB" in sRGB.
            after: the same, corrected.
            curves: `(3, 1 or 3, h, w)`, as `models.curves.fit` returns them for the copy before; with them, the page's
                sliders act on the photo.
        """
        facts: dict[str, object] = {"width": size[0], "height": size[1], "seconds": seconds}
        facts |= {"before": _histogram(before), "after": _histogram(after)}
        if curves is not None:
            facts |= _encode_curves(curves)
        self._write(name, facts, (before, after))

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


def _encode_curves(curves: Tensor) -> dict[str, object]:
    """Return a small copy of curves as text: 16-bit numbers, little-endian, in 1/10000."""
    _, channels, height, width = curves.shape
    share = min(KNOTS / max(height, width), 1)
    size = max(round(height * share), 1), max(round(width * share), 1)
    small = F.interpolate(curves.float(), size, mode="bilinear", antialias=True)
    numbers = (small * 10_000).round().numpy().astype("<i2").tobytes()
    return {"knots": [channels, *size], "curves": base64.b64encode(numbers).decode("ascii")}


def _histogram(picture: Image.Image) -> list[float]:
    """Return the shares of 64 steps of brightness."""
    counts = np.array(picture.convert("L").histogram(), dtype=float).reshape(64, 4).sum(axis=1)
    return [round(float(share), 5) for share in counts / counts.sum()]
