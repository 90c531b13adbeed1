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
from torch import Tensor

STRIP_PIXELS = 1 << 18
"""Pixels corrected at a time: bounds the memory of the floating-point copies."""

MAX_GAIN = 32.0
"""Five stops: a bound on the local gain where the photo is black."""


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


def apply_affine(pixels: npt.NDArray[np.uint8], scale: Tensor, offset: Tensor) -> npt.NDArray[np.uint8]:
    """Return `scale * pixels + offset`, the two maps interpolated bilinearly to the photo's size.

    Args:
        pixels: `(H, W, C)`, a photo of any size.
        scale: `(C, h, w)` on the CPU.
        offset: `(C, h, w)` on the CPU, for pixels in [0, 1].

    Returns:
        `(H, W, C)`. Works in strips: beside the photos, memory is bounded by `(h + STRIP_PIXELS / W) * W` floats.
    """
    height, width, _ = pixels.shape
    maps = torch.stack((scale, offset * 255)).float()  # (2, C, h, w)
    rows = F.interpolate(maps, (maps.shape[2], width), mode="bilinear").permute(0, 2, 3, 1).contiguous()  # (2, h, W, C)
    position = ((torch.arange(height) + 0.5) * (rows.shape[1] / height) - 0.5).clamp(0, rows.shape[1] - 1)
    above = position.floor().long()
    below = (above + 1).clamp_max(rows.shape[1] - 1)
    weight = (position - above)[:, None, None]  # (H, 1, 1)
    source, result = torch.from_numpy(np.ascontiguousarray(pixels)), torch.empty(pixels.shape, dtype=torch.uint8)
    step = max(STRIP_PIXELS // width, 1)
    for top in range(0, height, step):
        strip = slice(top, top + step)
        gain, shift = (torch.lerp(rows[k, above[strip]], rows[k, below[strip]], weight[strip]) for k in (0, 1))
        result[strip] = shift.addcmul_(gain, source[strip].float()).round_().clamp_(0, 255).to(torch.uint8)
    return result.numpy()


def _box_mean(image: Tensor, radius: int) -> Tensor:
    """Return the mean over a square window, of the pixels that lie inside the image."""
    size = 2 * radius + 1
    image = F.avg_pool2d(image, (size, 1), stride=1, padding=(radius, 0), count_include_pad=False)
    return F.avg_pool2d(image, (1, size), stride=1, padding=(0, radius), count_include_pad=False)
