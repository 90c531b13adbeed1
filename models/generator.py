"""The generator: a Laplacian pyramid, one U-Net per level, coarse to fine.

Afifi, Derpanis, Ommer, Brown: "Learning Multi-Scale Photo Exposure Correction", CVPR 2021.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from .losses import pyramid_loss, reconstruction_loss
from .network import Architecture, Network
from .pyramid import gaussian_expand, laplacian_pyramid
from .unet import UNet


class Generator(Network):
    """Correct the exposure of `(B, 3, H, W)` sRGB in [0, 1], any height and width.

    Args:
        layer_counts: encoder stages of each level's U-Net, coarsest first.
        first_layer_out_channels: first-stage channels of each level's U-Net, coarsest first.

    `forward` returns one tensor per level, finest first: the corrected photo `(B, 3, H, W)`, then each coarser level's
    correction brought up to the size of the level above it: `(B, 3, H, W)`, `(B, 3, ceil(H/2), ceil(W/2))`, ... All are
    float32 and unclipped. These are the Y_l of MSEC's equations 2 and 3.

    Two choices differ from the released source and are measured in docs/design.md. Each U-Net predicts a residual of
    its own input (the wiring of the paper's figure), and the learned 2x2 up-convolution between levels starts at zero
    on top of the pyramid's own interpolation: the untrained network returns the photo.
    """

    def __init__(self, layer_counts: Sequence[int], first_layer_out_channels: Sequence[int]) -> None:
        super().__init__()
        if len(layer_counts) != len(first_layer_out_channels) or not layer_counts:
            raise ValueError(f"one entry per level in both lists, not {layer_counts} and {first_layer_out_channels}")
        self.unets = nn.ModuleList(
            UNet(depth, channels) for depth, channels in zip(layer_counts, first_layer_out_channels, strict=True)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(3, 3, kernel_size=2, stride=2) for _ in layer_counts[1:])
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def from_config(cls, config: Architecture) -> "Generator":
        """Return the untrained generator; it starts at the identity."""
        return cls(config.layer_count_of_every_unet, config.first_layer_out_channels_of_every_unet)

    def forward(self, photo: Tensor) -> list[Tensor]:
        *bands, x = laplacian_pyramid(photo, len(self.unets))  # finest first; x: the low-pass rest
        x = x + self.unets[0](x)
        outputs = []
        for unet, up, band in zip(self.unets[1:], self.up, reversed(bands), strict=True):
            height, width = band.shape[-2:]
            x = gaussian_expand(x, (height, width)) + up(x)[..., :height, :width]
            outputs.append(x)
            x = x + band
            x = x + unet(x)
        outputs.append(x)
        return outputs[::-1]

    def losses(
        self, photo: Tensor, outputs: Sequence[Tensor], target: Tensor, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return L_rec and L_pyr (equations 2 and 3)."""
        return {
            "reconstruction": reconstruction_loss(outputs[0], target, weight),
            "pyramid": pyramid_loss(outputs, target, weight),
        }
