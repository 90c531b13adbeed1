"""Synthesis of mis-exposure by colour jitter of a whole batch, with per-photo draws.

Brightness, saturation and contrast have the operations and ranges of torchvision's ColorJitter (without hue). A fourth
operation, gamma, is off unless asked for: the other three make every dark photo one whose whites are grey, where a real
one keeps its lamps and windows white. All are applied in random order.
"""

import math

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS, SATURATION, CONTRAST, GAMMA = range(4)
_LUMA = (0.2989, 0.587, 0.114)


def draw_jitter(rng: np.random.Generator, amounts: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    """Draw one photo's jitter.

    Args:
        rng: source of the draw.
        amounts: of brightness, saturation and contrast, each in [0, 1], whose factors are uniform in [1 - a, 1 + a];
            and of gamma, at least 0, whose exponent is log-uniform in [1 / (1 + a), 1 + a].

    Returns:
        The three factors and the exponent as float32 `(4,)`, and the order of the four operations as int64 `(4,)`.
    """
    stops = math.log(1 + amounts[GAMMA])
    factors = [rng.uniform(1 - amount, 1 + amount) for amount in amounts[:GAMMA]]
    factors.append(math.exp(rng.uniform(-stops, stops)))
    return torch.tensor(factors, dtype=torch.float32), torch.from_numpy(rng.permutation(4).astype(np.int64))


def color_jitter(photos: Tensor, factors: Tensor, orders: Tensor) -> Tensor:
    """Mis-expose a batch, each photo by its own factors in its own order.

    Args:
        photos: `(B, 3, H, W)` sRGB in [0, 1].
        factors: `(B, 4)`, of brightness, saturation, contrast and the exponent gamma.
        orders: `(B, 4)`; `orders[b, k]` is the operation that photo b undergoes in step k.

    Returns:
        `(B, 3, H, W)` in [0, 1]. A step blends the photo with black (brightness), its luma (saturation) or the mean of
        its luma (contrast) and clips, or raises it to a power (gamma), as torchvision's functional `adjust_*` do.
    """
    for step in range(orders.shape[1]):
        operation = orders[:, step, None, None, None]  # (B, 1, 1, 1)
        factor = factors.gather(1, orders[:, step, None])[:, :, None, None]
        red, green, blue = photos.unbind(dim=1)
        luma = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]  # (B, 1, H, W)
        other = torch.where(operation == CONTRAST, luma.mean(dim=(1, 2, 3), keepdim=True), luma)
        other = torch.where(operation == BRIGHTNESS, 0.0, other)
        blended = (factor * photos + (1 - factor) * other).clamp(0, 1)
        photos = torch.where(operation == GAMMA, photos.pow(factor), blended)
    return photos
