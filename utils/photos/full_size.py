"""Apply local curves to a photo of any size, in place.

What `models.grain.reduce` and `models.curves.apply` do to tensors, for images and arrays of 8 and 16 bits, in strips
that stay in the processor's cache.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models import curves, grain

Deep = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

STRIP = 160_000
"""Values corrected at a time, in whole rows: their floats stay in the cache, and the calls cost little beside them."""

_HALF = torch.tensor(0.5)


def apply_curves(photo: Image.Image | Deep, maps: Tensor, *, less_grain: bool = False) -> None:
    """Replace a photo by itself under local curves, whose slopes are interpolated bilinearly to its size.

    The result is within half a step, and float32's rounding, of the equations. Beside the photo, memory is bounded by
    some nineteen floats for each value of a strip or row.

    Args:
        photo: an image in mode "L" or "RGB", or an `(H, W, C)` array of uint8 or uint16, of any size.
        maps: `(3, C, h, w)` on the CPU, as `models.curves.fit` returns them for one photo.
        less_grain: reduce grain, and colour next to black, where they lift them, before.
    """
    if isinstance(photo, Image.Image):
        (width, height), channels, white = photo.size, len(photo.getbands()), 255
    else:
        (height, width, channels), white = photo.shape, np.iinfo(photo.dtype).max
    before = None  # the row above a strip, as it was
    with torch.inference_mode():
        strips = _Strips(maps, width, height, channels, white, less_grain)
        for top, bottom in strips.bounds():
            if isinstance(photo, Image.Image):
                data = photo.crop((0, top, width, min(bottom + 1, height))).tobytes()
                read: Deep = np.frombuffer(data, np.uint8).reshape(-1, width * channels)
                rows, after = read[: bottom - top].copy(), read[-1:]
                last = read[bottom - top - 1 :][:1]
            else:
                rows = photo[top:bottom].reshape(bottom - top, -1)  # or a copy, where it must be
                after = photo[min(bottom, height - 1)].reshape(1, -1)
                last = rows[-1:].copy()
            strips.correct(rows, top, rows[:1] if before is None else before, after)
            before = last
            if isinstance(photo, Image.Image):
                strip = Image.frombuffer(photo.mode, (width, bottom - top), rows, "raw", photo.mode, 0, 1)
                photo.paste(strip, (0, top))
            elif not photo.flags.c_contiguous:
                photo[top:bottom] = rows.reshape(bottom - top, width, channels)


class _Strips:
    """What strips are corrected with: maps, and buffers that are allocated once.

    With X = white x of the levelled photo, T = white t and U = 1 - t:
        white x r(t) = (X + (s - 1) X U) / (1 + (s + w - 2) T U / white).
    For 16 bits, U is white times that, which has no difference of nearly equal numbers near white.
    """

    def __init__(self, maps: Tensor, width: int, height: int, channels: int, white: int, less_grain: bool) -> None:
        at_black, at_white = maps[:2].float().exp()  # (C, h, w)
        self.gain = math.exp(maps[2, 0, 0, 0])
        self.is_shallow = white == 255
        self.maps = torch.stack((at_black - 1, (at_black + at_white - 2) / white)) / (1 if self.is_shallow else white)
        self.height, self.width, self.channels = height, width, channels
        self.white = torch.tensor(float(white))
        self.largest = white
        self.noise, self.black, self.coloured = grain.NOISE * white, grain.BLACK * white, grain.COLOURED * white
        self.knots = maps.shape[2]
        lifts = grain.lifts(maps[None].float())[0].expand(channels, -1, -1)
        # For each row of the maps with the one below: between which columns of the photo grain is lifted, and r rises.
        # If it rises nowhere for two pairs of slopes, it does not for pairs between them.
        self.lifts = _spans((lifts > 0) & less_grain, width)
        self.falls = _spans(((at_white > 1) | (at_black * (at_black + at_white - 1) < 1)) & (channels > 1), width)
        if any(self.lifts):
            self.maps = torch.cat((self.maps, lifts[None]))
        position = ((torch.arange(height) + 0.5) * (self.knots / height) - 0.5).clamp(0, self.knots - 1)
        self.above = position.long()  # the row of the maps above a row of the photo
        self.knot = self.above.tolist()
        self.share = (position - self.above)[:, None]  # of the row below
        values = width * channels
        self.count = min(max(STRIP // values, 1), height)  # most rows of a strip
        self.wide, self.wide_from = torch.empty(len(self.maps), 0, values), 0
        self.pair: tuple[int, Tensor, Tensor] | None = None  # a row of the maps, and the one below
        self.ends = torch.ones(2, self.count + 2, values)  # X, and the one of the denominator; a row more on both sides
        self.product, self.curves = torch.empty(self.count, values), torch.empty(len(self.maps), self.count, values)
        self.spare = torch.empty(2, self.count if any(self.falls) or any(self.lifts) else 0, values)
        self.darkest = np.empty((self.count if any(self.falls) else 0, width), np.float32)
        has_colours = any(self.lifts) and channels > 1
        self.colours = torch.empty(6, self.count if has_colours else 0, width)  # a share, two to spare, the channels

    def bounds(self) -> Iterator[tuple[int, int]]:
        """Yield top and bottom of every strip; where rows of the maps lie farther apart, strips end at them."""
        ends = list(range(self.count, self.height, self.count))
        if self.height >= self.count * self.knots:
            ends = [row for row in range(1, self.height) if self.knot[row] != self.knot[row - 1]]
        for first, last in pairwise([0, *ends, self.height]):
            yield from pairwise([*range(first, last, self.count), last])

    def correct(self, rows: Deep, top: int, before: Deep, after: Deep) -> None:
        """Correct `(rows, W C)` in place, which begin at row `top` of the photo, between two others as they were."""
        count = len(rows)
        x = self.ends[0, 1 : count + 1]
        x.numpy()[:] = rows
        upper, lower = self._around(top, top + count)
        maps = torch.lerp(upper, lower, self.share[top : top + count], out=self.curves[:, :count])
        near = range(self.knot[top], self.knot[top + count - 1] + 1)
        if any(self.lifts[row] for row in near):
            self.ends[0, 0].numpy()[:], self.ends[0, count + 1].numpy()[:] = before[0], after[0]
            self._reduce_grain(count, rows)
            if self.channels > 1:
                self._fade(count)
        if self.gain > 1:
            self._level(count)
        part = slice(0)  # the values of a row that may fall with others
        if spans := [span for row in near if (span := self.falls[row])]:
            part = slice(*(self.channels * end for end in (min(spans)[0], max(right for _, right in spans))))
        shared = self._shared(count, part) if spans else None
        product = self.product[:count]
        if self.is_shallow:
            torch.addcmul(x, x, x, value=-1 / 255, out=product)
        else:
            torch.sub(self.white, x, out=product).mul_(x)
        torch.addcmul(self.ends[:, 1 : count + 1], maps[:2], product, out=maps[:2])
        result = torch.addcdiv(_HALF, maps[0], maps[1], out=maps[0])  # the half rounds what is cut here:
        if shared is not None:
            torch.minimum(result[:, part], shared, out=result[:, part])
        np.copyto(rows, result.numpy(), casting="unsafe")

    def _reduce_grain(self, count: int, rows: Deep) -> None:
        """Draw X to its neighbours, as `models.grain.reduce` does."""
        tall, step = self.ends[0, : count + 2], self.channels
        x, (down, mean) = tall[1:-1], self.spare[:, :count]
        torch.add(tall[:-2], tall[2:], out=down).add_(x, alpha=2)
        if self.width > 1:
            torch.add(down[:, : -2 * step], down[:, 2 * step :], out=mean[:, step:-step])
            torch.add(down[:, :step], down[:, step : 2 * step], out=mean[:, :step])
            torch.add(down[:, -step:], down[:, -2 * step : -step], out=mean[:, -step:])
        else:
            torch.mul(down, 2, out=mean)
        mean.add_(down, alpha=2)
        moves = rows >= math.ceil(self.black)
        moves |= mean.numpy() >= np.float32(16 * self.black)
        moves &= rows < self.largest
        difference = torch.add(x, mean, alpha=-1 / 16, out=mean)
        near = torch.clamp(difference, -self.noise, self.noise, out=down)
        near.sub_(difference.sub_(near).clamp_(-self.noise, self.noise))
        np.multiply(near.numpy(), moves, out=near.numpy())
        x.addcmul_(near, self.curves[2, :count], value=-1)

    def _fade(self, count: int) -> None:
        """Take colour from what is next to black, as `models.grain.fade` does."""
        share, away, spare, *colours = self.colours[:, :count]
        pixels = self.ends[0, 1 : count + 1].numpy().reshape(count, -1, 3)
        for channel, values in enumerate(colours):  # side by side, where torch is quick
            np.copyto(values.numpy(), pixels[..., channel])
        red, green, blue = colours
        torch.minimum(red, green, out=away)
        torch.maximum(red, green, out=share)
        torch.maximum(away, torch.minimum(share, blue, out=spare), out=away)  # the median
        torch.maximum(share, blue, out=share)
        share.mul_(-1 / self.coloured).add_(1).clamp_min_(0).square_().div_(2)
        np.multiply(share.numpy(), self.curves[2, :count].numpy()[:, ::3], out=share.numpy())
        away.sub_(green, alpha=2)
        for channel, values in ((0, red), (2, blue)):
            values.sub_(torch.add(values, away, out=spare).mul_(share))
            np.copyto(pixels[..., channel], values.numpy())

    def _level(self, count: int) -> None:
        """Level X, as `models.curves.level` does."""
        x, product = self.ends[0, 1 : count + 1], self.product[:count]
        torch.mul(x, x, out=product)
        share = self.gain**-2
        x.mul_(product.mul_((1 - share) / self.largest**2).add_(share).rsqrt_())

    def _shared(self, count: int, part: slice) -> Tensor:
        """Return white x r(t) + 1/2 in part of the rows."""
        x, maps, one = self.ends[0, 1 : count + 1, part], self.curves[:, :count, part], self.ends[1, :count, part]
        (t, u), pixels = self.spare[:, :count, part], x.numpy().reshape(count, -1, self.channels)
        darkest = self.darkest[:count, : pixels.shape[1]]
        np.minimum(pixels[..., 0], pixels[..., 1], out=darkest)  # quicker here than torch
        np.minimum(darkest, pixels[..., 2], out=darkest)
        for channel in range(self.channels):
            t.numpy()[:, channel :: self.channels] = darkest
        torch.lerp(x, t, curves.SHARED_FALL, out=t)
        scale = 1 / 255 if self.is_shallow else 1.0
        torch.sub(float(self.white) * scale, t, alpha=scale, out=u)
        denominator = torch.addcmul(one, maps[1], t.mul_(u), out=t)
        numerator = torch.addcmul(x, maps[0], u.mul_(x), out=u)
        return torch.addcdiv(_HALF, numerator, denominator, out=u)

    def _around(self, top: int, bottom: int) -> tuple[Tensor, Tensor]:
        """Return the rows of the maps above and below rows of the photo, at its width: `(maps, rows or 1, W C)`."""
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
        wide = wide.view(-1, self.channels, last - first, self.width).permute(0, 2, 3, 1)
        self.wide, self.wide_from = wide.reshape(len(self.maps), last - first, -1), first


def _spans(holds: Tensor, width: int) -> list[tuple[int, int] | None]:
    """Return, for each row of maps `(C, h, w)`, the columns of a photo where something holds in it or the next.

    None: nowhere. A knot of the maps reaches as far as the next one.
    """
    columns = holds.any(dim=0)
    columns = columns | torch.cat((columns[1:], columns[-1:]))
    pitch = width / holds.shape[2]
    spans: list[tuple[int, int] | None] = []
    for row in columns:
        knots = row.nonzero().flatten().tolist()
        left = math.floor((knots[0] - 0.5) * pitch - 0.5) if knots else 0
        right = math.ceil((knots[-1] + 1.5) * pitch + 0.5) if knots else 0
        spans.append((max(left, 0), min(right, width)) if knots else None)
    return spans
