"""Apply local curves to a photo of any size, in place.

What `models.curves.apply` does to tensors, for images and arrays of 8 and 16 bits, in strips that stay in the
processor's cache.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Deep = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

STRIP = 160_000
"""Values corrected at a time, in whole rows: their floats stay in the cache, and the calls cost little beside them."""

_HALF = torch.tensor(0.5)


def apply_curves(photo: Image.Image | Deep, maps: Tensor) -> None:
    """Replace a photo by itself under local curves, whose slopes are interpolated bilinearly to its size.

    The result is within half a step, and float32's rounding, of that equation. Beside the photo, memory is bounded by
    some twelve floats for each value of a strip or row.

    Args:
        photo: an image in mode "L" or "RGB", or an `(H, W, C)` array of uint8 or uint16, of any size.
        maps: `(2, C, h, w)` on the CPU, as `models.curves.fit` returns them for one photo.
    """
    if isinstance(photo, Image.Image):
        (width, height), channels, white = photo.size, len(photo.getbands()), 255
    else:
        (height, width, channels), white = photo.shape, np.iinfo(photo.dtype).max
    with torch.inference_mode():
        strips = _Strips(maps, width, height, channels, white)
        for top, bottom in strips.bounds():
            if isinstance(photo, Image.Image):
                data = photo.crop((0, top, width, bottom)).tobytes()
                rows = np.frombuffer(data, np.uint8).reshape(bottom - top, -1).copy()
                strips.correct(rows, top)
                strip = Image.frombuffer(photo.mode, (width, bottom - top), rows, "raw", photo.mode, 0, 1)
                photo.paste(strip, (0, top))
            else:
                view: Deep = photo[top:bottom].reshape(bottom - top, -1)  # or a copy, where it must be
                strips.correct(view, top)
                if not photo.flags.c_contiguous:
                    photo[top:bottom] = view.reshape(bottom - top, width, channels)


class _Strips:
    """What strips are corrected with: maps, and buffers that are allocated once.

    With X = white x and P = X (1 - x):  white y = (X + (s - 1) P) / (1 + (s + w - 2) P / white). For 16 bits, P is
    white times that, which has no difference of nearly equal numbers near white.
    """

    def __init__(self, maps: Tensor, width: int, height: int, channels: int, white: int) -> None:
        at_black, at_white = maps.float().exp()  # (C, h, w)
        self.is_shallow = white == 255
        self.maps = torch.stack((at_black - 1, (at_black + at_white - 2) / white)) / (1 if self.is_shallow else white)
        self.height, self.width, self.channels = height, width, channels
        self.white = torch.tensor(float(white))
        self.knots = maps.shape[2]
        position = ((torch.arange(height) + 0.5) * (self.knots / height) - 0.5).clamp(0, self.knots - 1)
        self.above = position.long()  # the row of the maps above a row of the photo
        self.knot = self.above.tolist()
        self.share = (position - self.above)[:, None]  # of the row below
        values = width * channels
        self.count = min(max(STRIP // values, 1), height)  # most rows of a strip
        self.wide, self.wide_from = torch.empty(2, 0, values), 0
        self.pair: tuple[int, Tensor, Tensor] | None = None  # a row of the maps, and the one below
        self.ends = torch.ones(2, self.count, values)  # X, and the one of the denominator
        self.product, self.curves = torch.empty(self.count, values), torch.empty(2, self.count, values)
        self.views: dict[int, Sequence[Any]] = {}  # of these, for strips of so many rows

    def bounds(self) -> Iterator[tuple[int, int]]:
        """Yield top and bottom of every strip; where rows of the maps lie farther apart, strips end at them."""
        ends = list(range(self.count, self.height, self.count))
        if self.height >= self.count * self.knots:
            ends = [row for row in range(1, self.height) if self.knot[row] != self.knot[row - 1]]
        for first, last in pairwise([0, *ends, self.height]):
            yield from pairwise([*range(first, last, self.count), last])

    def correct(self, rows: Deep, top: int) -> None:
        """Correct `(rows, W C)` in place, which begin at row `top` of the photo."""
        count = len(rows)
        if count not in self.views:
            views = self.ends[:, :count], self.product[:count], self.curves[:, :count]
            x, result = self.ends[0, :count], self.curves[0, :count]
            self.views[count] = *views, x, x.numpy(), result, self.curves[1, :count], result.numpy()
        ends, product, curves, x, values, numerator, denominator, result = self.views[count]
        values[:] = rows
        if self.is_shallow:
            torch.addcmul(x, x, x, value=-1 / 255, out=product)
        else:
            torch.sub(self.white, x, out=product).mul_(x)
        upper, lower = self._around(top, top + count)
        torch.lerp(upper, lower, self.share[top : top + count], out=curves)
        torch.addcmul(ends, curves, product, out=curves)
        torch.addcdiv(_HALF, numerator, denominator, out=numerator)  # the half rounds what is cut here:
        np.copyto(rows, result, casting="unsafe")

    def _around(self, top: int, bottom: int) -> tuple[Tensor, Tensor]:
        """Return the rows of the maps above and below rows of the photo, at its width: `(2, rows or 1, W C)` each."""
        first, last = self.knot[top], self.knot[bottom - 1]
        if self.pair and self.pair[0] == first == last:
            return self.pair[1:]
        if first < self.wide_from or last + 2 > self.wide_from + self.wide.shape[1]:
            self._widen(first, last + 2)
        if first == last:
            self.pair = first, *self.wide[:, first - self.wide_from :][:, :2].split(1, dim=1)
            return self.pair[1:]
        index = self.above[top:bottom] - self.wide_from
        return self.wide.index_select(1, index), self.wide.index_select(1, index + 1)

    def _widen(self, first: int, last: int) -> None:
        """Interpolate rows of the maps, `last` not among them, and some that come next, to the photo's width."""
        last = max(last, first + self.count)
        maps = self.maps[:, :, first:last]
        maps = torch.cat((maps, self.maps[:, :, -1:].expand(-1, -1, last - first - maps.shape[2], -1)), dim=2)
        wide = F.interpolate(maps.reshape(1, -1, maps.shape[3]), self.width, mode="linear")
        wide = wide.view(2, self.channels, last - first, self.width).permute(0, 2, 3, 1)
        self.wide, self.wide_from = wide.reshape(2, last - first, -1), first
