"""Grain: what lifting the shadows of a photo brings up with them.

Curves that brighten by stops multiply the noise of a file, and the steps of its 8 bits, as they multiply its detail.
Before they do, what differs from its neighbours by no more than noise does is drawn to them; what differs by more, an
edge or a texture, is left alone. Then what is nearly black loses colour: there it is that of noise, of compression and
of the camera's own black, and becomes purple or green fog. What is not brightened by more than a stop is left alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LIFT = 1.0
"""Stops by which curves brighten before grain is reduced; a stop more, and all of it is."""
NOISE = 1.5 / 255
"""Largest difference from the neighbourhood that is taken for grain: by twice as much, nothing is."""
BLACK = 0.3 / 255
"""What is darker, and is so with its neighbours on average, is black: the end of a ramp is, not a speck in noise."""
COLOURED = 24 / 255
"""Brightness of a pixel's brightest channel from which on its colour is left alone."""


def lifts(maps: Tensor) -> Tensor:
    """Return by how much grain is to be reduced, `(B, 1, h, w)` from 0 to 1, under curves `(B, 3, C, h, w)`."""
    at_black, at_white, gain = maps.mean(dim=2).unbind(dim=1)
    stops = ((at_black - at_white) / 2 + gain) / math.log(2)  # of the odds
    return (stops - LIFT).clamp(0, 1)[:, None]


def reduce(photo: Tensor, maps: Tensor) -> Tensor:
    """Return a photo `(B, C, H, W)` in [0, 1] with less of the grain that curves `(B, 3, C, h, w)` lift, in float32.

    Each channel's difference from its mean over 3 × 3 pixels, weighted (1, 2, 1) both ways, is removed: all of it up to
    `NOISE`, none from twice that on, and as much of this as `lifts` says. White stays, and so does black, unless it is
    a speck among what is brighter. Then colour next to black fades (`fade`).
    """
    x = photo.float()
    lift = lifts_at(maps, x)
    wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]
    mean = (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 16
    difference = x - mean
    grain = difference.clamp(-NOISE, NOISE)
    less = x - lift * (grain - (difference - grain).clamp(-NOISE, NOISE))
    return fade(torch.where(torch.maximum(x, mean) >= BLACK, torch.where(x < 1, less, x), x), lift)


def lifts_at(maps: Tensor, photo: Tensor) -> Tensor:
    """Return `lifts` of curves for every pixel of a photo `(B, C, H, W)`: `(B, 1, H, W)`."""
    lift = lifts(maps.float())
    return lift if lift.shape[-2:] == photo.shape[-2:] else F.interpolate(lift, photo.shape[-2:], mode="bilinear")


def fade(photo: Tensor, lift: Tensor) -> Tensor:
    """Return a photo `(B, C, H, W)` in [0, 1] with less colour next to black.

    What red and blue share, magenta or green, goes, and half of what is left, warm or cool: (1 - m / `COLOURED`)² of
    this, m being the brightest channel, and as much of that as `lift`, `(B, 1, H, W)`, says. Green stays: it has the
    least noise. With d = red - green, what both share is the median of d, that of blue, and 0.
    """
    if photo.shape[1] == 1:
        return photo
    share = lift * (1 - photo.amax(dim=1, keepdim=True) / COLOURED).clamp_min(0).square()
    red, green, blue = photo.unbind(dim=1)
    median = torch.maximum(torch.minimum(red, green), torch.minimum(torch.maximum(red, green), blue))
    none = green - green  # zeros, as exports can follow them
    away = torch.stack((2 * green - red - median, none, 2 * green - blue - median), dim=1)
    return photo + share / 2 * away
