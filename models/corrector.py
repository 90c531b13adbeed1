"""The whole correction as one module: small copy, network, curves, photo of any size."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import curves, grain

HELD_BACK = 0.15
"""How far the correction stays behind where the network darkens. Clipped areas hold no detail to bring out, and photos
that are bright on purpose look like those that are so by mistake: by eye, less is better, though not in PSNR."""


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

    Black stays black and white stays white. Shadows that are brightened lose some grain, and colour next to black;
    what is darkened is held back (`HELD_BACK`); a mirror image becomes the mirror image: all this not in training
    steps, but in validation. What a photo is to become does not depend on how it was exposed: a network may be trained
    on small copies of drawn brightness, and is then shown brighter ones (`Network.shown_brighter`).
    """

    def __init__(self, network: nn.Module, working_size: int) -> None:
        super().__init__()
        self.network = network
        self.working_size = working_size

    def forward(self, photo: Tensor, strength: Tensor | float = 1.0, exposure: Tensor | float = 0.0) -> Tensor:
        maps = curves.adjust(self.maps(shrink(photo, self.working_size)), strength, exposure)
        return curves.apply(grain.reduce(photo, maps), maps)

    def maps(self, small: Tensor) -> Tensor:
        """Return the curves `(B, 3, 3, h, w)` of small copies `(B, 3, h, w)`, as `models.curves` has them."""
        corrected = self.corrected(small)
        with torch.autocast(small.device.type, enabled=False):
            return curves.fit(small, corrected)

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
            working_size: longest side of the small copy; None: the corrector's.
            stops: `(B,)`, how much brighter the network is shown the small copies; None: as it is to be.
        """
        small = shrink(photo, working_size or self.working_size)
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
    """Return a network's output for small copies `(B, 3, h, w)`, clipped to [0, 1] and, where darker, short of it."""
    corrected = output.clamp(0, 1)
    return corrected + HELD_BACK * (small - corrected).clamp_min(0)


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
