"""The whole correction as one module: small copy, network, curves, photo of any size."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import curves, grain

HELD_BACK = 0.15
"""How far the correction stays behind where the network darkens. Clipped areas hold no detail to bring out, and photos
that are bright on purpose look like those that are so by mistake: by eye, less is better, though not in PSNR."""
LEFT_ALONE, FOLLOWED = 0.3, 0.6
"""Stops of the odds. A photo that would become darker, and change by less than the first, is left as it is; from the
second on, the correction is followed. By eye, good photos gain by a little more light, and show no gain by less."""
SPARED = 0.5
"""How far a careful correction stays behind where `is_right` is 1."""
EXPOSED, CLIPPED = (0.35, 0.6), 0.94
"""From where to where the brightest parts of a photo count as exposed; from where a pixel of it counts as clipped."""

COLOURLESS = 1.5 / 255
"""Largest difference between the channels of a photo without colours."""
LARGEST_FACTOR = 32
"""By which torch shrinks on a GPU: its kernel keeps a pixel's weights in shared memory, which a hundredfold exceeds."""


class Correction(NamedTuple):
    """What became of a batch of photos, and by what."""

    photo: Tensor
    """`(B, 3, H, W)` float32 in [0, 1], corrected."""
    small: Tensor
    """`(B, 3, h, w)`, what the network was given: the small copy, or a brighter one."""
    outputs: list[Tensor]
    """What the network returned: first the corrected small copy, unclipped."""


class Corrector(nn.Module):
    """Correct the exposure of `(B, 3, H, W)` sRGB photos in [0, 1] of any size; the same comes out, in float32.

    Args:
        network: what corrects the small copy, a `Network` or any module whose first output is the corrected copy.
        working_size: longest side in pixels of the small copy; photos are never enlarged.
        least_size: what its short side has at least, or what comes nearest with twice that on the longest: networks
            trained on square views of drawn sizes take sides that they never saw for another brightness.
        careful: correct by half what is probably right as it is: photos whose lights are exposed and not clipped.

    Black stays black and white stays white. Shadows that are brightened lose some grain, and colour next to black; a
    photo to be darkened by little is left as it is (`LEFT_ALONE`), what is darkened is held back (`HELD_BACK`), and a
    mirror image becomes the mirror image: all this not in training steps, but in validation. What a photo is to become
    does not depend on how it was exposed: a network may be trained on small copies of drawn brightness, and is then
    shown brighter ones (`Network.shown_brighter`).
    """

    def __init__(self, network: nn.Module, working_size: int, least_size: int = 0, *, careful: bool = False) -> None:
        super().__init__()
        self.network = network
        self.working_size = working_size
        self.least_size = least_size
        self.careful = careful

    def forward(self, photo: Tensor, strength: Tensor | float = 1.0, exposure: Tensor | float = 0.0) -> Tensor:
        maps = curves.adjust(self.maps(self.small_copy(photo)), strength, exposure)
        return curves.apply(grain.reduce(photo, maps), maps)

    def small_copy(self, photo: Tensor) -> Tensor:
        """Return photos `(B, 3, H, W)` in [0, 1], reduced to what the network is to see."""
        return shrink(photo, self.longest_side(*photo.shape[-2:]))

    def longest_side(self, height: int, width: int) -> int:
        """Return the longest side of the small copy of a photo of this shape, were it large."""
        needed = self.least_size * torch.sym_max(height, width) // torch.sym_min(height, width)
        longest: Any = torch.sym_max(self.working_size, torch.sym_min(needed, 2 * self.least_size))
        return longest  # not by max: exports follow sizes

    def maps(self, small: Tensor) -> Tensor:
        """Return the curves `(B, 3, 3, h, w)` of small copies `(B, 3, h, w)`, as `models.curves` has them."""
        corrected = self.corrected(small)
        with torch.autocast(small.device.type, enabled=False):
            return self.spared(small, curves.fit(small, corrected))

    def spared(self, small: Tensor, maps: Tensor) -> Tensor:
        """Return curves `(B, 3, C, h, w)` of small copies `(B, 3, h, w)`, weaker if the correction is a careful one."""
        return maps * (1 - SPARED * is_right(small))[:, None, None, None, None] if self.careful else maps

    def corrected(self, small: Tensor) -> Tensor:
        """Return small copies `(B, 3, h, w)` as they are to become, in [0, 1]: what the curves are fitted to."""
        return hold_back(small, self.output(self.shown(small)))

    def output(self, given: Tensor) -> Tensor:
        """Return what becomes of small copies `(B, 3, h, w)` as they are shown, unclipped, in float32.

        It is the mean of what the network makes of them and of their mirror images: neither side is the better one.
        """
        count = given.shape[0]
        both = self.network(torch.cat((given, given.flip(3))))[0].float()
        return (both[:count] + both[count:].flip(3)) / 2

    def correct(self, photo: Tensor, working_size: int | None = None, stops: Tensor | None = None) -> Correction:
        """Return corrected photos and what they were made by, for training.

        Args:
            photo: `(B, 3, H, W)` in [0, 1].
            working_size: longest side of the small copy; None: as `small_copy` has it.
            stops: `(B,)`, how much brighter the network is shown the small copies; None: as it is to be.
        """
        small = shrink(photo, working_size) if working_size else self.small_copy(photo)
        given = self.shown(small, stops)
        outputs = self.network(given)
        with torch.autocast(photo.device.type, enabled=False):
            return Correction(curves.apply(photo, curves.fit(small, outputs[0])), given, outputs)

    def shown(self, small: Tensor, stops: Tensor | None = None) -> Tensor:
        """Return what the network is given of small copies `(B, 3, h, w)` in [0, 1]: their odds times 2 to `stops`."""
        if stops is not None:
            return curves.multiply_odds(small, 2 ** stops.to(small.dtype)[:, None, None, None])
        brighter: Any = getattr(self.network, "shown_brighter", 0.0)  # any module may correct small copies
        return curves.multiply_odds(small, 2.0**brighter) if brighter else small


def hold_back(small: Tensor, output: Tensor) -> Tensor:
    """Return small copies `(B, 3, h, w)` as they are to become, in [0, 1], of a network's output for them.

    How much a photo is changed is the mean change of the odds' logarithm, dx / (x (1 - x)), weighted by the square of
    x (1 - x): black and white, which stay, have no say. A photo becomes darker if the sum of its changes is negative:
    wholly, if it is by half of the sum of their amounts. One without colours stays so.
    """
    change = output.clamp(0, 1) - small
    midtones = small * (1 - small)
    sums = (change, change.abs(), midtones)
    net, total, whole = ((midtones * values).mean((1, 2, 3), keepdim=True) + 1e-9 for values in sums)
    followed = ((total / whole / math.log(2) - LEFT_ALONE) / (FOLLOWED - LEFT_ALONE)).clamp(0, 1)
    darker = (-2 * net / total).clamp(0, 1)
    result = small + (1 - darker * (1 - followed)) * (change - HELD_BACK * change.clamp_max(0))
    spread = (small.amax(1, keepdim=True) - small.amin(1, keepdim=True)).amax((2, 3), keepdim=True)
    return torch.where(spread > COLOURLESS, result, result.mean(1, keepdim=True))


def is_right(small: Tensor) -> Tensor:
    """Return whether small copies `(B, 3, h, w)` are probably exposed as they are to be, from 0 to 1: `(B,)`.

    They are if their brightest parts, the mean of the 16th powers of the pixels' largest channels, are exposed, and
    less than a hundredth of them is clipped: the photographer has exposed for the lights.
    """
    largest = small.amax(1)
    brightest = (largest**16).mean((1, 2)) ** (1 / 16)
    clipped = ((largest - CLIPPED) / (1 - CLIPPED)).clamp(0, 1).mean((1, 2))
    exposed = (brightest - EXPOSED[0]) / (EXPOSED[1] - EXPOSED[0])
    return exposed.clamp(0, 1) * (1 - 100 * clipped).clamp(0, 1)


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
    if photo.is_cuda and side > LARGEST_FACTOR * target:
        return shrink_by_products(photo, (size[0], size[1]))
    return F.interpolate(photo, size, mode="bilinear", antialias=True)


def shrink_by_products(photo: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `(B, C, H, W)` at a smaller size, as `F.interpolate` with antialiasing has it, by products of matrices."""
    exact = photo.to(torch.promote_types(photo.dtype, torch.float32))
    down, across = (_triangles(old, new, exact) for old, new in zip(photo.shape[-2:], size, strict=True))
    with torch.autocast(photo.device.type, enabled=False):
        return (down @ (exact @ across.T)).to(photo.dtype)


def _triangles(old: int, new: int, like: Tensor) -> Tensor:
    """Return `(new, old)`: in each row, the weights of the old pixels under the triangle around a new one."""
    centres, pixels = (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5 for count in (new, old))
    weights = (1 - (pixels - centres[:, None] * (old / new)).abs() * (new / old)).clamp_min(0)
    return weights / weights.sum(dim=1, keepdim=True)
