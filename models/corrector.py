"""The whole correction as one module: small copy, network, curves, photo of any size."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import curves

ASIDE = 2.0**1.5
"""Gain of the odds, near a stop and a half, by which one copy that the network sees is brighter and one darker."""


class Correction(NamedTuple):
    """What became of a batch of photos, and by what."""

    photo: Tensor
    """`(B, 3, H, W)` float32 in [0, 1], corrected."""
    small: Tensor
    """`(B, 3, h, w)`, what the network was given."""
    outputs: list[Tensor]
    """What the network returned: first the corrected small copy, unclipped."""


class Corrector(nn.Module):
    """Correct the exposure of `(B, 3, H, W)` sRGB photos in [0, 1] of any size; the same comes out, in float32.

    Args:
        network: what corrects the small copy, a `Network`.
        working_size: longest side in pixels of the small copy; photos are never enlarged.

    The network looks twice, at a darker copy and at a brighter one in the mirror: what a photo is to become does not
    depend on how it was exposed, and two guesses err less than one. Black stays black and white stays white, and a
    photo that the network leaves alone is returned as it was.
    """

    def __init__(self, network: nn.Module, working_size: int) -> None:
        super().__init__()
        self.network = network
        self.working_size = working_size

    def forward(self, photo: Tensor, strength: Tensor | float = 1.0, exposure: Tensor | float = 0.0) -> Tensor:
        maps = self.maps(shrink(photo, self.working_size))
        return curves.apply(photo, curves.adjust(maps, strength, exposure))

    def maps(self, small: Tensor) -> Tensor:
        """Return the curves `(B, 2, 3, h, w)` of small copies `(B, 3, h, w)`, as `models.curves` has them."""
        corrected = self.corrected(small)
        with torch.autocast(small.device.type, enabled=False):
            return curves.fit(small, corrected)

    def corrected(self, small: Tensor) -> Tensor:
        """Return small copies `(B, 3, h, w)` as they are to become, in [0, 1]: what the curves are fitted to."""
        return agreed(self.network(looks(small))[0])

    def correct(self, photo: Tensor, working_size: int | None = None, is_brighter: Tensor | None = None) -> Correction:
        """Return photos corrected by one look at each, for training.

        Args:
            photo: `(B, 3, H, W)` in [0, 1].
            working_size: longest side of the small copy; None: the corrector's.
            is_brighter: `(B,)` bool: whether the network sees the brighter copy of a photo, or the darker one; None: by
                turns.
        """
        small = shrink(photo, working_size or self.working_size)
        if is_brighter is None:
            is_brighter = torch.arange(len(small), device=small.device) % 2 == 1
        gain = torch.where(is_brighter, ASIDE, 1 / ASIDE).to(small.dtype)[:, None, None, None]
        shown = curves.multiply_odds(small, gain)
        outputs = self.network(shown)
        with torch.autocast(photo.device.type, enabled=False):
            return Correction(curves.apply(photo, curves.fit(small, outputs[0])), shown, outputs)


def looks(small: Tensor) -> Tensor:
    """Return what the network is shown of small copies `(B, 3, h, w)` in [0, 1]: `(2 B, 3, h, w)`."""
    return torch.cat((curves.multiply_odds(small, 1 / ASIDE), curves.multiply_odds(small, ASIDE).flip(-1)))


def agreed(guesses: Tensor) -> Tensor:
    """Return what lies between the network's guesses at two looks: the geometric mean of their odds.

    Args:
        guesses: `(2 B, 3, h, w)`, first those at the darker copies, then those at the brighter ones in the mirror, as
            `looks` has them; clipped to [0, 1].

    Returns:
        `(B, 3, h, w)` float32 in [0, 1]; copies that the network left alone come back as they were.
    """
    pairs = guesses.float().clamp(0, 1).unflatten(0, (2, -1))
    first, second = pairs[0], pairs[1].flip(-1)
    above, below = (first * second).sqrt(), ((1 - first) * (1 - second)).sqrt()
    return above / (above + below).clamp_min(1e-6)


def shrink(photo: Tensor, longest: int) -> Tensor:
    """Return `(B, C, H, W)` reduced to a longest side in pixels, without aliasing; small photos as they are."""
    height, width = photo.shape[-2:]
    side = torch.sym_max(height, width)  # not max: exports follow sizes
    target = torch.sym_min(longest, side)
    size = [torch.sym_max(curves.rounded(length * target, side), 1) for length in (height, width)]
    if size == [height, width]:
        return photo
    if size[1] == 1:  # a single column, whose rows torch (2.14) gets wrong
        return F.interpolate(photo.mT, size[::-1], mode="bilinear", antialias=True).mT
    return F.interpolate(photo, size, mode="bilinear", antialias=True)
