"""Synthesis of mis-exposure by colour jitter: brightness, saturation and contrast of a whole batch, per-photo draws.

The three operations and their ranges are those of torchvision's ColorJitter (without hue), applied in random order.
"""

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS, SATURATION, CONTRAST = range(3)
_LUMA = (0.2989, 0.587, 0.114)


def draw_jitter(rng: np.random.Generator, amounts: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Draw one photo's jitter.

    Args:
        rng: source of the draw.
        amounts: of brightness, saturation and contrast, each in [0, 1]; the factor is uniform in [1 - a, 1 + a].

    Returns:
        Three factors (brightness, saturation, contrast) as float32 `(3,)`, and the order in which the three operations
        are applied as int64 `(3,)`.
    """
    factors = [rng.uniform(1 - amount, 1 + amount) for amount in amounts]
    return torch.tensor(factors, dtype=torch.float32), torch.from_numpy(rng.permutation(3))


def color_jitter(photos: Tensor, factors: Tensor, orders: Tensor) -> Tensor:
    """Mis-expose a batch, each photo by its own factors in its own order.

    Args:
        photos: `(B, 3, H, W)` sRGB in [0, 1].
        factors: `(B, 3)`, of brightness, saturation and contrast.
        orders: `(B, 3)`; `orders[b, k]` is the operation that photo b undergoes in step k.

    Returns:
        `(B, 3, H, W)` in [0, 1]. Each step blends the photo with black (brightness), its luma (saturation) or the mean
        of its luma (contrast) and clips, as torchvision's functional `adjust_*` do.
    """
    for step in range(3):
        operation = orders[:, step]
        factor = factors.gather(1, operation[:, None])[:, :, None, None]  # (B, 1, 1, 1)
        red, green, blue = photos.unbind(dim=1)
        luma = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]  # (B, 1, H, W)
        operation = operation[:, None, None, None]
        other = torch.where(operation == CONTRAST, luma.mean(dim=(1, 2, 3), keepdim=True), luma)
        other = torch.where(operation == BRIGHTNESS, 0.0, other)
        photos = (factor * photos + (1 - factor) * other).clamp(0, 1)
    return photos
