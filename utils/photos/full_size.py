"""Apply local curves to a photo of any size, in place.

What `models.curves.apply` does to tensors, for images and arrays of 8 and 16 bits, in strips that stay in the
processor's cache.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Deep = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

STRIP_ROWS = 16
"""Rows corrected at a time, so that the floating-point copies stay in the processor's cache."""


def apply_curves(photo: Image.Image | Deep, maps: Tensor) -> None:
    """Replace a photo by itself under local curves, whose slopes are interpolated bilinearly to its size.

    The photo is read and written in strips: beside it, memory is bounded by `(2 h + 6 STRIP_ROWS) W C` floats.

    Args:
        photo: an image in mode "L" or "RGB", or an `(H, W, C)` array of uint8 or uint16, of any size.
        maps: `(2, C, h, w)` on the CPU, as `models.curves.fit` returns them for one photo.
    """
    if isinstance(photo, Image.Image):
        (width, height), channels, white, dtype = photo.size, len(photo.getbands()), 255, torch.uint8
    else:
        height, width, channels = photo.shape
        white, dtype = (255, torch.uint8) if photo.dtype == np.uint8 else (65535, torch.uint16)
    at_black, at_white = maps.float().exp()  # (C, h, w)
    # With X = white x and P = X (white - X):  white y = (X + P (s - 1) / white) / (1 + P (s + w - 2) / white²)
    maps = torch.stack(((at_black - 1) / white, (at_black + at_white - 2) / white**2))
    maps = F.interpolate(maps, (maps.shape[2], width), mode="bilinear")
    maps = maps.permute(0, 2, 3, 1).reshape(2, -1, width * channels)  # (2, h, W C)
    rows = maps.shape[1]
    position = ((torch.arange(height) + 0.5) * (rows / height) - 0.5).clamp(0, rows - 1)
    above = position.long()
    share = (position - above)[:, None]  # (H, 1)
    starts = torch.cat((torch.tensor([0]), (above.diff() != 0).nonzero()[:, 0] + 1, torch.tensor([height]))).tolist()
    buffers = torch.empty(4, STRIP_ROWS, width * channels).unbind()
    result = torch.empty(STRIP_ROWS, width * channels, dtype=dtype)
    one = torch.ones(())
    for first, last in zip(starts, starts[1:], strict=False):  # between two rows of the maps
        upper = maps[:, above[first]]
        slope = maps[:, min(int(above[first]) + 1, rows - 1)] - upper
        for top in range(first, last, STRIP_ROWS):
            bottom = min(top + STRIP_ROWS, last)
            x, product, numerator, denominator = (buffer[: bottom - top] for buffer in buffers)
            _read(photo, top, x)
            torch.sub(white, x, out=product).mul_(x)
            torch.addcmul(upper[0], share[top:bottom], slope[0], out=numerator)
            torch.addcmul(x, numerator, product, out=numerator)
            torch.addcmul(upper[1], share[top:bottom], slope[1], out=denominator)
            torch.addcmul(one, denominator, product, out=denominator)
            r = result[: bottom - top]
            r.copy_(numerator.div_(denominator).add_(0.5))  # the half rounds what is cut here
            _write(photo, top, r)


def _read(photo: Image.Image | Deep, top: int, rows: Tensor) -> None:
    """Copy rows of a photo into floats, `(rows, W C)`."""
    if isinstance(photo, Image.Image):
        strip = photo.crop((0, top, photo.width, top + len(rows))).tobytes()
        rows.numpy()[:] = np.frombuffer(strip, np.uint8).reshape(len(rows), -1)
    else:
        rows.numpy()[:] = photo[top : top + len(rows)].reshape(len(rows), -1)


def _write(photo: Image.Image | Deep, top: int, rows: Tensor) -> None:
    if isinstance(photo, Image.Image):
        size = (photo.width, len(rows))
        photo.paste(Image.frombuffer(photo.mode, size, rows.numpy(), "raw", photo.mode, 0, 1), (0, top))
    else:
        photo[top : top + len(rows)] = rows.numpy().reshape(-1, *photo.shape[1:])
