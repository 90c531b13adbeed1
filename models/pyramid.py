"""Gaussian and Laplacian pyramids with signed float bands (Burt & Adelson, 1983).

Every function works on `(B, C, H, W)` tensors of any size down to 1x1 and computes in float32 (float64 input stays
float64), whatever the input's precision and whether or not autocast is on: the inverse is then exact to rounding.
Only elementwise operations are used, so CPU and GPU agree and both memory formats are kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The 5-tap kernel of MSEC is (.05, .25, .4, .25, .05): the Burt-Adelson family with a = 0.4.
OUTER, INNER, CENTRE = 0.05, 0.25, 0.4


def gaussian_reduce(image: Tensor) -> Tensor:
    """Blur with the 5-tap kernel and keep every second pixel.

    `(B, C, H, W)` -> `(B, C, ceil(H/2), ceil(W/2))`. Borders are replicated. Burt & Adelson's REDUCE.
    """
    return _reduce(_reduce(_at_least_float32(image), dim=2), dim=3)


def gaussian_expand(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate to twice the size, cropped to `size` (height, width), with the same kernel.

    `(B, C, h, w)` -> `(B, C, *size)`. Borders are replicated. Burt & Adelson's EXPAND.

    Raises:
        ValueError: `size` is not one that `gaussian_reduce` shrinks to `(h, w)`.
    """
    height, width = image.shape[-2:]
    if ((size[0] + 1) // 2, (size[1] + 1) // 2) != (height, width):
        raise ValueError(f"cannot expand {height}x{width} to {size[0]}x{size[1]}: expected about twice the size")
    return _expand(_expand(_at_least_float32(image), dim=2, length=size[0]), dim=3, length=size[1])


def gaussian_pyramid(image: Tensor, level_count: int) -> list[Tensor]:
    """Return `level_count` ever smaller copies of `image` `(B, C, H, W)`, finest first, the first one the image."""
    levels = [_at_least_float32(image)]
    for _ in range(level_count - 1):
        levels.append(gaussian_reduce(levels[-1]))
    return levels


def laplacian_pyramid(image: Tensor, level_count: int) -> list[Tensor]:
    """Split `image` `(B, C, H, W)` into `level_count - 1` signed detail bands, finest first, and a low-pass rest."""
    levels = gaussian_pyramid(image, level_count)
    bands = [fine - gaussian_expand(coarse, _size(fine)) for fine, coarse in zip(levels, levels[1:], strict=False)]
    return [*bands, levels[-1]]


def reconstruct(bands: list[Tensor]) -> Tensor:
    """Invert `laplacian_pyramid`: return the `(B, C, H, W)` image whose bands, finest first, are given."""
    image = _at_least_float32(bands[-1])
    for band in reversed(bands[:-1]):
        image = gaussian_expand(image, _size(band)) + band
    return image


def _at_least_float32(image: Tensor) -> Tensor:
    return image if image.dtype == torch.float64 else image.float()


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def replicate(image: Tensor, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> Tensor:
    """Return `(B, C, H, W)` with so many copies of its outermost rows and columns, `(B, C, top + H + bottom, ...)`.

    What has a gradient is concatenated: the backward pass of `F.pad` is several times slower in channels_last, and
    PyTorch (2.14) compiles it for the CPU with wrong strides, in either memory format.
    """
    if not image.requires_grad:
        return F.pad(image, (left, right, top, bottom), mode="replicate")
    for dim, before, after in ((2, top, bottom), (3, left, right)):
        if before or after:
            first, last = image.narrow(dim, 0, 1), image.narrow(dim, image.shape[dim] - 1, 1)
            image = torch.cat((*[first] * before, image, *[last] * after), dim)
    return image


def _pad(image: Tensor, dim: int, amount: int) -> Tensor:
    """Replicate the borders of one spatial dimension (2 or 3)."""
    return replicate(image, amount, amount) if dim == 2 else replicate(image, left=amount, right=amount)


def _reduce(image: Tensor, dim: int) -> Tensor:
    count = (image.shape[dim] + 1) // 2
    padded = _pad(image, dim, 2)
    # An odd length has one sample less to the right of its last centre: the taps below never read past it.
    first, second, third, fourth, fifth = (_every_second(padded, dim, start, count) for start in range(5))
    return CENTRE * third + INNER * (second + fourth) + OUTER * (first + fifth)


def _every_second(image: Tensor, dim: int, start: int, count: int) -> Tensor:
    index = slice(start, start + 2 * count - 1, 2)
    return image[:, :, index] if dim == 2 else image[:, :, :, index]


def _expand(image: Tensor, dim: int, length: int) -> Tensor:
    """Interpolate along `dim`: the kernel's even taps (times 2) make even samples, its odd taps the odd ones."""
    count = image.shape[dim]
    padded = _pad(image, dim, 1)
    before, centre, after = (padded.narrow(dim, start, count) for start in range(3))
    even = 2 * OUTER * (before + after) + 2 * CENTRE * centre
    odd = 2 * INNER * (centre + after)
    return torch.stack((even, odd), dim=dim + 1).flatten(dim, dim + 1).narrow(dim, 0, length)
