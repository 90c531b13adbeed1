"""Colour spaces: sRGB, linear light, luma and CIE L*a*b*, of `(..., 3, H, W)` tensors in the input's precision."""

import torch
from torch import Tensor

_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)  # D65


def to_linear(srgb: Tensor) -> Tensor:
    """Return sRGB in [0, 1] as linear light in [0, 1] (IEC 61966-2-1)."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def from_linear(light: Tensor) -> Tensor:
    """Return linear light in [0, 1] as sRGB in [0, 1] (IEC 61966-2-1)."""
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def luma(srgb: Tensor) -> Tensor:
    """Return the luma `(..., 1, H, W)` of sRGB in [0, 1], with the weights of ITU-R BT.601."""
    return _weigh(srgb, 0.299, 0.587, 0.114)


def luminance(light: Tensor) -> Tensor:
    """Return the luminance `(..., 1, H, W)` of linear light in [0, 1], with the weights of ITU-R BT.709."""
    return _weigh(light, 0.2126, 0.7152, 0.0722)


def to_lab(srgb: Tensor) -> Tensor:
    """Return sRGB in [0, 1] as CIE L*a*b* under D65: L in [0, 100] (CIE 15)."""
    ratio = _mix(_TO_XYZ, to_linear(srgb)) / srgb.new_tensor(_WHITE)[:, None, None]
    x, y, z = torch.where(ratio > 0.008856, ratio.clamp_min(0) ** (1 / 3), 7.787 * ratio + 16 / 116).unbind(dim=-3)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-3)


def from_lab(lab: Tensor) -> Tensor:
    """Return CIE L*a*b* under D65 as sRGB, clipped to [0, 1]."""
    lightness, a, b = lab.unbind(dim=-3)
    y = (lightness + 16) / 116
    f = torch.stack((y + a / 500, y, y - b / 200), dim=-3)
    ratio = torch.where(f > 6 / 29, f**3, (f - 16 / 116) / 7.787)
    xyz = ratio * lab.new_tensor(_WHITE)[:, None, None]
    to_rgb = torch.linalg.inv(torch.tensor(_TO_XYZ, dtype=torch.float64)).tolist()
    return from_linear(_mix(to_rgb, xyz).clamp(0, 1))


def _mix(matrix: object, channels: Tensor) -> Tensor:
    """Return the matrix's products with the channels of every pixel."""
    return torch.einsum("ij,...jhw->...ihw", channels.new_tensor(matrix), channels)


def _weigh(channels: Tensor, first: float, second: float, third: float) -> Tensor:
    return first * channels[..., :1, :, :] + second * channels[..., 1:2, :, :] + third * channels[..., 2:, :, :]
