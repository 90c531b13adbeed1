"""Carry a correction made on a small copy of a photo to the photo itself, along its edges.

The correction is described, around every pixel of the small copy and for each channel, by an affine function of the
photo's own value, `output = scale * input + offset`, as in the guided filter (He, Sun, Tang: "Guided image filtering",
2013, equations 5, 6 and 8). Both maps are smooth and can be interpolated to any size; the detail comes from the photo.

One thing differs: where the small copy is flat, the guided filter pulls `scale` towards 0 and blurs. Here it is pulled
towards the local gain, the mean of the output over the mean of the input. A darker photo is then not blurred more than
a bright one, and a photo that needs no correction is returned bit for bit.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Deep = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

STRIP_ROWS = 32
"""Rows corrected at a time, so that the floating-point copies stay in the processor's cache."""

MAX_GAIN = 32.0
"""Five stops: a bound on the local gain where the photo is black."""

WHITE_FROM, WHITE_KEPT = 0.95, 0.7
"""Value of the darkest channel from which a pixel counts as white, and how much of its whiteness white keeps."""


def keep_whites(photo: Tensor, corrected: Tensor) -> Tensor:
    """Return `corrected` with what was white in `photo` brought back towards white where it was made darker.

    Where every channel is clipped nothing is known, and the average of what might have been there, which a network
    learns, is a grey sky. Both are `(B, 3, H, W)` in [0, 1].
    """
    whiteness = ((photo.amin(dim=1, keepdim=True) - WHITE_FROM) / (1 - WHITE_FROM)).clamp(0, 1)
    share = WHITE_KEPT * whiteness.square() * (3 - 2 * whiteness)
    return corrected + share * (photo - corrected).clamp_min(0)


def local_affine(guide: Tensor, target: Tensor, radius: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Fit `target = scale * guide + offset` in square windows and average the windows that see a pixel.

    Args:
        guide: `(B, C, H, W)` float, the small photo in [0, 1].
        target: `(B, C, H, W)` float, its correction.
        radius: of the windows, in pixels.
        epsilon: variance of the guide below which the local gain decides rather than the fit.

    Returns:
        `scale` and `offset`, `(B, C, H, W)` each.
    """
    mean_guide, mean_target = _box_mean(guide, radius), _box_mean(target, radius)
    variance = _box_mean(guide * guide, radius) - mean_guide.square()
    covariance = _box_mean(guide * target, radius) - mean_guide * mean_target
    gain = ((mean_target + 1e-3) / (mean_guide + 1e-3)).clamp(0, MAX_GAIN)
    scale = (covariance + epsilon * gain) / (variance.clamp_min(0) + epsilon)
    offset = mean_target - scale * mean_guide
    return _box_mean(scale, radius), _box_mean(offset, radius)


def apply_affine(photo: Image.Image | Deep, scale: Tensor, offset: Tensor) -> None:
    """Replace a photo by `scale * photo + offset`, the two maps interpolated bilinearly to its size.

    The photo is read and written in strips: beside it, memory is bounded by `(2 h + 4 STRIP_ROWS) W C` floats.

    Args:
        photo: an image in mode "L" or "RGB", or an `(H, W, C)` array of uint8 or uint16, of any size.
        scale: `(C, h, w)` on the CPU.
        offset: `(C, h, w)` on the CPU, for values in [0, 1].
    """
    if isinstance(photo, Image.Image):
        (width, height), channels, white, dtype = photo.size, len(photo.getbands()), 255, torch.uint8
    else:
        height, width, channels = photo.shape
        white, dtype = (255, torch.uint8) if photo.dtype == np.uint8 else (65535, torch.uint16)
    maps = torch.stack((scale, offset * white + 0.5)).float()  # (2, C, h, w); the half rounds what is cut below
    maps = F.interpolate(maps, (maps.shape[2], width), mode="bilinear")
    maps = maps.permute(0, 2, 3, 1).reshape(2, -1, width * channels)  # (2, h, W C)
    rows = maps.shape[1]
    position = ((torch.arange(height) + 0.5) * (rows / height) - 0.5).clamp(0, rows - 1)
    above = position.long()
    share = (position - above)[:, None]  # (H, 1)
    starts = torch.cat((torch.tensor([0]), (above.diff() != 0).nonzero()[:, 0] + 1, torch.tensor([height]))).tolist()
    source, gain, value = torch.empty(3, STRIP_ROWS, width * channels).unbind()
    result = torch.empty(STRIP_ROWS, width * channels, dtype=dtype)
    for first, last in zip(starts, starts[1:], strict=False):  # between two rows of the maps
        upper = maps[:, above[first]]
        slope = maps[:, min(int(above[first]) + 1, rows - 1)] - upper
        for top in range(first, last, STRIP_ROWS):
            bottom = min(top + STRIP_ROWS, last)
            x, g, v, r = (buffer[: bottom - top] for buffer in (source, gain, value, result))
            _read(photo, top, x)
            torch.addcmul(upper[0], share[top:bottom], slope[0], out=g)
            torch.addcmul(upper[1], share[top:bottom], slope[1], out=v)
            r.copy_(v.addcmul_(g, x).clamp_(0, white))
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


def _box_mean(image: Tensor, radius: int) -> Tensor:
    """Return the mean over a square window, of the pixels that lie inside the image."""
    size = 2 * radius + 1
    image = F.avg_pool2d(image, (size, 1), stride=1, padding=(radius, 0), count_include_pad=False)
    return F.avg_pool2d(image, (1, size), stride=1, padding=(0, radius), count_include_pad=False)
