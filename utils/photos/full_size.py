"""Apply local curves to a photo of any size, in place.

What `models.curves.apply` does to tensors, for images and arrays of 8 and 16 bits, in strips that stay in the
processor's cache.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Deep = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

STRIP = 98304
"""Values corrected at a time, in whole rows: their floats stay in the cache, and the calls cost little beside them."""
BAND_ROWS = 64
"""Most rows copied at a time from an image, which cannot be corrected in its own memory."""


def apply_curves(photo: Image.Image | Deep, maps: Tensor) -> None:
    """Replace a photo by itself under local curves, whose slopes are interpolated bilinearly to its size.

    The result is within half a step, and float32's rounding, of that equation. Beside the photo, memory is bounded by
    five floats for each value of a strip and eight for each of a row.

    Args:
        photo: an image in mode "L" or "RGB", or a contiguous `(H, W, C)` array of uint8 or uint16, of any size.
        maps: `(2, C, h, w)` on the CPU, as `models.curves.fit` returns them for one photo.
    """
    if isinstance(photo, Image.Image):
        (width, height), channels, white = photo.size, len(photo.getbands()), 255
    else:
        (height, width, channels), white = photo.shape, np.iinfo(photo.dtype).max
    with torch.inference_mode():
        strips = _Strips(maps, width, height, channels, white)
        for top, bottom, knots in _bands(height, maps.shape[2]):
            if isinstance(photo, Image.Image):
                data = photo.crop((0, top, width, bottom)).tobytes()
                rows = np.frombuffer(data, np.uint8).reshape(bottom - top, -1).copy()
                strips.correct(rows, top, knots)
                strip = Image.frombuffer(photo.mode, (width, bottom - top), rows, "raw", photo.mode, 0, 1)
                photo.paste(strip, (0, top))
            else:
                strips.correct(photo[top:bottom].reshape(bottom - top, -1), top, knots)


def _position(height: int, knots: int) -> Tensor:
    """Return where, between the rows of maps, the rows of a photo lie: `(H, 1)`."""
    return (((torch.arange(height) + 0.5) * (knots / height) - 0.5).clamp(0, knots - 1))[:, None]


def _bands(height: int, knots: int) -> list[tuple[int, int, int]]:
    """Return `(top, bottom, knot)` of bands of a photo's rows, each between two rows of its maps, `knot` the upper."""
    above = _position(height, knots).long()[:, 0].tolist()
    starts = [row for row in range(height) if row == 0 or above[row] != above[row - 1]]
    bands = []
    for first, last in pairwise([*starts, height]):
        tops = [*range(first, last, BAND_ROWS), last]
        bands += [(top, bottom, above[first]) for top, bottom in pairwise(tops)]
    return bands


class _Strips:
    """What strips are corrected with: maps, and buffers that are allocated once.

    With X = white x and P = X (1 - x):  white y = (X + (s - 1) P) / (1 + (s + w - 2) P / white).
    """

    def __init__(self, maps: Tensor, width: int, height: int, channels: int, white: int) -> None:
        at_black, at_white = maps.float().exp()  # (C, h, w)
        self.maps = torch.stack((at_black - 1, (at_black + at_white - 2) / white))
        self.shape, self.white = (2, width, channels), white
        position = _position(height, maps.shape[2])
        self.share = position - position.floor()
        values = width * channels
        self.count = min(max(STRIP // values, 1), BAND_ROWS, height)  # rows of a strip
        self.rows: dict[int, Tensor] = {}  # of the maps, at the photo's width: `(2, 1, W C)`
        self.slope = torch.empty(2, 1, values)
        ends = torch.ones(2, self.count, values)  # X, and the one of the denominator
        product, curves = torch.empty(self.count, values), torch.empty(2, self.count, values)
        self.buffers = [
            (ends[:, :n], ends[0, :n], product[:n], curves[:, :n], *(b.numpy() for b in curves[:, :n].unbind()))
            for n in range(1, self.count + 1)
        ]

    def correct(self, rows: Deep, top: int, knot: int) -> None:
        """Correct `(rows, W C)` in place, which begin at row `top` of the photo and row `knot` of the maps."""
        upper, lower = self._at_full_width(knot), self._at_full_width(min(knot + 1, self.maps.shape[2] - 1))
        torch.sub(lower, upper, out=self.slope)
        for first in range(0, len(rows), self.count):
            strip = rows[first : first + self.count]
            ends, x, product, curves, numerator, denominator = self.buffers[len(strip) - 1]
            x.numpy()[:] = strip
            if self.white == 255:
                torch.addcmul(x, x, x, value=-1 / 255, out=product)
            else:  # near white, the difference above has too few digits
                torch.sub(1, x, alpha=1 / self.white, out=product).mul_(x)
            share = self.share[top + first : top + first + len(strip)]
            torch.addcmul(upper, share, self.slope, out=curves)
            torch.addcmul(ends, curves, product, out=curves)
            np.divide(numerator, denominator, out=numerator)
            np.add(numerator, np.float32(0.5), out=numerator)  # rounds what is cut here:
            np.copyto(strip, numerator, casting="unsafe")

    def _at_full_width(self, knot: int) -> Tensor:
        """Return a row of the maps, interpolated to the photo's width."""
        if knot not in self.rows:
            self.rows = {other: row for other, row in self.rows.items() if other == knot - 1}
            _, width, channels = self.shape
            row = F.interpolate(self.maps[:, :, knot].reshape(1, 2 * channels, -1), width, mode="linear")
            self.rows[knot] = row.view(2, channels, width).transpose(1, 2).reshape(2, 1, -1)
        return self.rows[knot]
