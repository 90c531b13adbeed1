"""Image quality, per image, on RGB with values in [0, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    x, y = images.float(), targets.float()
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x.square()
    variance_y = _blur(y * y) - mean_y.square()
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x.square() + mean_y.square() + 0.01**2)
    contrast_structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
    return (luminance * contrast_structure).mean(dim=(1, 2, 3))


def _blur(images: Tensor) -> Tensor:
    channels = images.shape[1]
    position = torch.arange(-5, 6, device=images.device, dtype=images.dtype)
    window = torch.exp(-position.square() / (2 * 1.5**2))
    window = (window / window.sum()).expand(channels, 1, -1)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN may round to TF32, too coarse for a variance
        images = F.conv2d(images, window[:, :, :, None], groups=channels)
        return F.conv2d(images, window[:, :, None, :], groups=channels)
