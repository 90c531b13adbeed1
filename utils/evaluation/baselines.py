"""What every correction must beat: simple methods without a network, `(H, W, 3)` uint8 sRGB to the same."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from ..colour import from_lab, to_lab

Pixels = npt.NDArray[np.uint8]


def identity(photo: Pixels) -> Pixels:
    """Return the photo as it is."""
    return photo


def gamma_to_mean(photo: Pixels, target: float = 0.45) -> Pixels:
    """Raise every value to the power that takes the photo's mean value (of 1) to `target`."""
    mean = min(max(photo.mean() / 255, 1e-3), 1 - 1e-3)
    table = (np.arange(256) / 255) ** (np.log(target) / np.log(mean))
    return (table * 255).round().astype(np.uint8)[photo]


def auto_levels(photo: Pixels, percent: float = 0.5) -> Pixels:
    """Stretch all channels alike, so that this share of their values is clipped at either end."""
    low, high = np.percentile(photo, (percent, 100 - percent))
    table = (np.arange(256) - low) / max(high - low, 1)
    return (table.clip(0, 1) * 255).round().astype(np.uint8)[photo]


def auto_level_gamma(photo: Pixels) -> Pixels:
    """Stretch all channels alike from least to greatest value, then raise to the power that brings the mean to .5.

    What `convert IN -auto-level -auto-gamma OUT` of ImageMagick 6 does, but for its 16 bits between.
    """
    low, high = int(photo.min()), int(photo.max())
    levels = (np.arange(256) - low).clip(0) / max(high - low, 1)
    mean = float(levels[photo].mean())
    table = levels.clip(0, 1) ** (np.log(0.5) / np.log(min(max(mean, 1e-3), 1 - 1e-3)))
    return (table * 255).round().astype(np.uint8)[photo]


def histogram_equalisation(photo: Pixels) -> Pixels:
    """Equalise the histogram of the luma (Y of YCbCr), and keep the colour differences."""
    y, cb, cr = Image.fromarray(photo).convert("YCbCr").split()
    return np.asarray(Image.merge("YCbCr", (ImageOps.equalize(y), cb, cr)).convert("RGB"))


def clahe(photo: Pixels, limit: float = 2.0, tiles: int = 8) -> Pixels:
    """Contrast-limited adaptive histogram equalisation of L in L*a*b*.

    Zuiderveld: "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994.

    Args:
        photo: `(H, W, 3)` uint8 sRGB.
        limit: largest height of a bin, as a multiple of the mean height; the rest is spread over all bins.
        tiles: along each side.
    """
    lab = to_lab(torch.from_numpy(photo.copy()).permute(2, 0, 1).double() / 255).numpy()  # (3, H, W)
    lightness = (lab[0] * 2.55).round().astype(np.uint8)
    height, width = lightness.shape
    down, across = -(-height // tiles), -(-width // tiles)
    padded = np.pad(lightness, ((0, down * tiles - height), (0, across * tiles - width)), mode="reflect")
    blocks = padded.reshape(tiles, down, tiles, across).swapaxes(1, 2).reshape(tiles, tiles, -1)
    area = down * across
    highest = max(int(limit * area / 256), 1)
    curves = np.empty((tiles, tiles, 256))
    for row in range(tiles):
        for column in range(tiles):
            counts = np.bincount(blocks[row, column], minlength=256)
            excess = np.maximum(counts - highest, 0).sum()
            curves[row, column] = np.cumsum(np.minimum(counts, highest) + excess / 256) * 255 / area
    y = ((np.arange(height) + 0.5) / down - 0.5).clip(0, tiles - 1)
    x = ((np.arange(width) + 0.5) / across - 0.5).clip(0, tiles - 1)
    top, left = y.astype(int), x.astype(int)
    bottom, right = np.minimum(top + 1, tiles - 1), np.minimum(left + 1, tiles - 1)
    y, x = (y - top)[:, None], (x - left)[None]
    upper = curves[top[:, None], left, lightness] * (1 - x) + curves[top[:, None], right, lightness] * x
    lower = curves[bottom[:, None], left, lightness] * (1 - x) + curves[bottom[:, None], right, lightness] * x
    lab[0] = (upper * (1 - y) + lower * y).clip(0, 255) / 2.55
    return (from_lab(torch.from_numpy(lab)) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


BASELINES: dict[str, Callable[[Pixels], Pixels]] = {
    "identity": identity,
    "gamma_to_mean": gamma_to_mean,
    "auto_levels": auto_levels,
    "auto_level_gamma": auto_level_gamma,
    "histogram_equalisation": histogram_equalisation,
    "clahe": clahe,
}
"""By the names that evaluate.py gives them."""
