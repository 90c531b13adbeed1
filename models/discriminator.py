"""The discriminator of MSEC (supplementary material): tells normally exposed photos from corrected ones."""

from collections.abc import Sequence

from torch import Tensor, nn

from .batch_norm import BatchNorm2d

MIN_SIZE = 256
"""Smallest height and width, in pixels, that gives at least one logit."""


class Discriminator(nn.Module):
    """Map `(B, 3, H, W)` in [0, 1] to logits `(B, 1, H // 256, W // 256)`, positive for "looks like a real photo".

    256x256 gives one logit, as in the paper; a larger photo gives one logit per patch (fully convolutional).

    Args:
        channels: of the seven convolutions that halve the size.

    Raises:
        ValueError: in `forward`, if a side is shorter than 256 px.
    """

    def __init__(self, channels: Sequence[int] = (8, 16, 32, 64, 128, 128, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block, (before, after) in enumerate(zip((3, *channels), channels, strict=False), start=1):
            layers.append(nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1))
            if block == 2:  # the only normalised block in the paper
                layers.append(BatchNorm2d(after))
            layers.append(nn.LeakyReLU(0.01, inplace=True))
        layers.append(nn.Conv2d(channels[-1], 1, kernel_size=2, stride=2))
        self.layers = nn.Sequential(*layers)

    def forward(self, photo: Tensor) -> Tensor:
        height, width = photo.shape[-2:]
        if min(height, width) < MIN_SIZE:
            raise ValueError(f"the discriminator needs at least {MIN_SIZE}x{MIN_SIZE} px, not {height}x{width}")
        return self.layers(photo)
