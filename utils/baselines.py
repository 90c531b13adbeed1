"""What every correction must beat: simple methods without a network, `(H, W, 3)` uint8 sRGB to the same."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

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
    lab = np.array(_to_lab(photo))
    lightness = lab[..., 0]
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
    lab[..., 0] = (upper * (1 - y) + lower * y).round().clip(0, 255)
    return _to_rgb(lab)


def _to_lab(photo: Pixels) -> Pixels:
    return (_LAB.forward(photo)).round().clip(0, 255).astype(np.uint8)


def _to_rgb(lab: Pixels) -> Pixels:
    return (_LAB.backward(lab.astype(np.float64)) * 255).round().clip(0, 255).astype(np.uint8)


class _Lab:
    """8-bit L*a*b* under D65: L * 255 / 100, a + 128, b + 128."""

    matrix = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    white = np.array([0.950456, 1.0, 1.088754])

    def forward(self, photo: Pixels) -> npt.NDArray[np.float64]:
        levels = np.arange(256) / 255
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)[photo]
        ratio = linear @ self.matrix.T / self.white
        f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
        x, y, z = np.moveaxis(f, -1, 0)
        return np.stack(((116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128), axis=-1)

    def backward(self, lab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        y = (lab[..., 0] / 2.55 + 16) / 116
        f = np.stack((y + (lab[..., 1] - 128) / 500, y, y - (lab[..., 2] - 128) / 200), axis=-1)
        ratio = np.where(f > 6 / 29, f**3, (f - 16 / 116) / 7.787)
        linear = (ratio * self.white @ np.linalg.inv(self.matrix).T).clip(0, 1)
        return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


_LAB = _Lab()

BASELINES: dict[str, Callable[[Pixels], Pixels]] = {
    "identity": identity,
    "gamma_to_mean": gamma_to_mean,
    "auto_levels": auto_levels,
    "histogram_equalisation": histogram_equalisation,
    "clahe": clahe,
}
"""By the names that evaluate.py gives them."""
