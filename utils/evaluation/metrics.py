"""Image quality, per image, on RGB with values in [0, 1]."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..colour import luma, to_lab
from .errors import UsageError

_STRIP = 2**20
"""Pixels that are compared at once."""
_LARGEST = 7.0
"""Logarithm of the largest power that is tried, and of the inverse of the smallest."""


def quantise(images: Tensor) -> Tensor:
    """Return `images` as they would be stored: clipped to [0, 1] and rounded to 8 bits, in float32."""
    return images.float().clamp(0, 1).mul(255).round().div(255)


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, `(B,)`, of `(B, 3, H, W)` images; 100 dB where they are equal."""
    error = (images - targets).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error.clamp_min(1e-10))


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Return the structural similarity, `(B,)`, of `(B, C, H, W)` images, the mean over pixels and channels.

    Wang, Bovik, Sheikh, Simoncelli: "Image quality assessment: from error visibility to structural similarity", 2004:
    Gaussian window of 11 px, sigma 1.5, K1 = 0.01, K2 = 0.03; only windows that lie inside the image count.

    Raises:
        ValueError: a side is shorter than 11 px.
    """
    if min(images.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs at least 11x11 px, not {images.shape[-2]}x{images.shape[-1]}")
    rows = max(_STRIP // images.shape[-1], 64)
    height = images.shape[-2] - 10  # of windows
    total = images.new_zeros(images.shape[0], dtype=torch.float32)
    for start in range(0, height, rows):  # in strips: the maps of a large photo take 60 times its memory
        stop = min(start + rows, height)
        strip = slice(start, stop + 10)
        total = total + (stop - start) / height * _ssim(images[:, :, strip].float(), targets[:, :, strip].float())
    return total


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x.square()
    variance_y = _blur(y * y) - mean_y.square()
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x.square() + mean_y.square() + 0.01**2)
    contrast_structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
    return (luminance * contrast_structure).mean(dim=(1, 2, 3))


def ciede2000(images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean colour difference over the pixels, `(B,)`, of `(B, 3, H, W)` sRGB images under D65.

    Sharma, Wu, Dalal: "The CIEDE2000 color-difference formula", 2005, with k_L = k_C = k_H = 1. 0 is equal, about 1
    just noticeable. Computed in float64.
    """
    rows = max(_STRIP // images.shape[-1], 1)
    strips = zip(images.split(rows, dim=2), targets.split(rows, dim=2), strict=True)
    sums = [_ciede2000(*strip).sum(dim=(1, 2)) for strip in strips]
    return (torch.stack(sums).sum(dim=0) / (images.shape[-2] * images.shape[-1])).float()


def _ciede2000(images: Tensor, targets: Tensor) -> Tensor:
    """Return the colour difference of every pixel, `(B, H, W)`."""
    (l1, a1, b1), (l2, a2, b2) = (to_lab(x.double()).unbind(dim=1) for x in (images, targets))
    mean_chroma7 = ((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2) ** 7
    g = 0.5 * (1 - torch.sqrt(mean_chroma7 / (mean_chroma7 + 25.0**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = (torch.rad2deg(torch.atan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    is_grey = c1 * c2 == 0
    turn = h2 - h1
    turn = torch.where(turn > 180, turn - 360, torch.where(turn < -180, turn + 360, turn))
    turn = torch.where(is_grey, 0.0, turn)
    delta_l, delta_c = l2 - l1, c2 - c1
    delta_h = 2 * torch.sqrt(c1 * c2) * torch.sin(torch.deg2rad(turn) / 2)
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    total = h1 + h2
    around = torch.where(total < 360, total + 360, total - 360)
    mean_h = torch.where(is_grey, total, torch.where((h1 - h2).abs() > 180, around, total) / 2)

    def cosine(degrees: Tensor) -> Tensor:
        return torch.cos(torch.deg2rad(degrees))

    t = 1 - 0.17 * cosine(mean_h - 30) + 0.24 * cosine(2 * mean_h)
    t = t + 0.32 * cosine(3 * mean_h + 6) - 0.20 * cosine(4 * mean_h - 63)
    rotation = 60 * torch.exp(-(((mean_h - 275) / 25) ** 2))
    r_t = -torch.sin(torch.deg2rad(rotation)) * 2 * torch.sqrt(mean_c**7 / (mean_c**7 + 25.0**7))
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / torch.sqrt(20 + (mean_l - 50) ** 2)
    s_c, s_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t
    parts = (delta_l / s_l) ** 2 + (delta_c / s_c) ** 2 + (delta_h / s_h) ** 2
    difference = parts + r_t * (delta_c / s_c) * (delta_h / s_h)
    return difference.clamp_min(0).sqrt()


def studio_luma(images: Tensor) -> Tensor:
    """Return the Y channel `(B, 1, H, W)` as MATLAB's rgb2ycbcr: BT.601 in [16, 235] / 255."""
    return (16 + 219 * luma(images)) / 255


def with_mean_of(images: Tensor, targets: Tensor) -> Tensor:
    """Return images scaled so that their mean grey value is that of the targets: "GT-mean".

    It looks at the answer. Figures with it are not comparable with figures without.
    """
    scale = luma(targets).mean(dim=(1, 2, 3)) / luma(images).mean(dim=(1, 2, 3)).clamp_min(1e-6)
    return quantise(images * scale[:, None, None, None])


def with_power_to_mean_of(images: Tensor, targets: Tensor) -> Tensor:
    """Return images raised to the one power that gives them the mean value of the targets: one slider away from right.

    It looks at the answer, as `with_mean_of`. Values are `(B, 3, H, W)` RGB of 8 bits in [0, 1]; where no power gives
    the mean (black and white alone), the nearest does.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    results = []
    for image, target in zip(images, targets, strict=True):
        places = image.mul(255).round().long()
        counts = torch.bincount(places.flatten(), minlength=256).double()
        wanted = target.double().mean().item() * places.numel()
        low, high = -_LARGEST, _LARGEST  # the mean falls as the power grows
        for _ in range(50):
            middle = (low + high) / 2
            is_brighter = (counts * levels ** math.exp(middle)).sum().item() > wanted
            low, high = (middle, high) if is_brighter else (low, middle)
        results.append(quantise(levels ** math.exp((low + high) / 2))[places])
    return torch.stack(results)


def _blur(images: Tensor) -> Tensor:
    channels = images.shape[1]
    position = torch.arange(-5, 6, device=images.device, dtype=images.dtype)
    window = torch.exp(-position.square() / (2 * 1.5**2))
    window = (window / window.sum()).expand(channels, 1, -1)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN may round to TF32, too coarse for a variance
        images = F.conv2d(images, window[:, :, :, None], groups=channels)
        return F.conv2d(images, window[:, :, None, :], groups=channels)


class Metric(NamedTuple):
    """What is measured of an image."""

    meaning: str
    measure: Callable[[Tensor, Tensor], Tensor]
    """Of images and targets `(B, 3, H, W)`, RGB of 8 bits in [0, 1]: `(B,)`."""
    lower_is_better: bool = False


METRICS = {
    "psnr": Metric("peak signal-to-noise ratio in dB over R, G and B of 8 bits; 100 where images are equal", psnr),
    "ssim": Metric(
        "structural similarity (Wang et al. 2004; Gaussian 11, sigma 1.5, valid windows), mean of R, G, B", ssim
    ),
    "ciede2000": Metric(
        "mean CIEDE2000 colour difference of the pixels, sRGB under D65; lower is better", ciede2000, True
    ),
}
"""What is always measured, on each image; tables hold means over images."""

VARIANTS = {
    "psnr_y": Metric(
        "PSNR of the Y channel in [16, 235], as MATLAB's rgb2ycbcr",
        lambda x, y: psnr(studio_luma(x), studio_luma(y)),
    ),
    "ssim_grey": Metric("SSIM of the luma (BT.601)", lambda x, y: ssim(luma(x), luma(y))),
    "psnr_gt_mean": Metric(
        "PSNR after scaling to the target's mean: it looks at the answer",
        lambda x, y: psnr(with_mean_of(x, y), y),
    ),
    "ssim_gt_mean": Metric(
        "SSIM after scaling to the target's mean: it looks at the answer",
        lambda x, y: ssim(with_mean_of(x, y), y),
    ),
    "psnr_matched": Metric(
        "PSNR after the one power that gives the target's mean, one slider away from right: it looks at the answer",
        lambda x, y: psnr(with_power_to_mean_of(x, y), y),
    ),
    "ssim_matched": Metric(
        "SSIM after the one power that gives the target's mean: it looks at the answer",
        lambda x, y: ssim(with_power_to_mean_of(x, y), y),
    ),
}
"""What papers also print, under the same names as the above, and what is left once brightness is out of the game."""

POOLED = "PSNR of the mean squared error of all images together (psnr_pooled, with --variants)"


def lpips_metric() -> dict[str, Metric]:
    """Return LPIPS, if its package and the weights of its network are installed; nothing is downloaded.

    Raises:
        UsageError: they are not.
    """
    try:
        import lpips
    except ImportError:
        raise UsageError("--lpips needs the package lpips: pip install lpips") from None
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(folder.glob("alexnet-*.pth")):
        raise UsageError(f"--lpips needs torchvision's AlexNet weights (alexnet-*.pth) in {folder}")
    network = lpips.LPIPS(net="alex", verbose=False).eval()

    @torch.no_grad()
    def measure(images: Tensor, targets: Tensor) -> Tensor:
        return network(images * 2 - 1, targets * 2 - 1).flatten()

    return {
        "lpips": Metric(
            "LPIPS with AlexNet (Zhang et al. 2018), version 0.1; lower is better", measure, lower_is_better=True
        )
    }
