"""Zero-DCE: curves estimated for every pixel, trained without a target.

Guo, Li, Guo, Loy, Hou, Kwong, Cong: "Zero-Reference Deep Curve Estimation for Low-Light Image Enhancement", CVPR 2020.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import Architecture, Network

ITERATIONS = 8
COLOUR_WEIGHT = 0.5
SMOOTHNESS_WEIGHT = 20
WELL_EXPOSED = 0.6


class ZeroDCE(Network):
    """Correct the exposure of `(B, 3, H, W)` sRGB in [0, 1], any height and width, by eight quadratic curves a pixel.

    Seven convolutions (DCE-Net, section 3.2; 79,416 parameters) estimate the curves' parameters. `forward` returns the
    corrected photo `(B, 3, H, W)`, in [0, 1], and the parameters `(B, 24, H, W)` in [-1, 1], three per iteration.
    """

    needs_targets = False

    def __init__(self) -> None:
        super().__init__()
        channels = [(3, 32), (32, 32), (32, 32), (32, 32), (64, 32), (64, 32), (64, 3 * ITERATIONS)]
        self.convs = nn.ModuleList(nn.Conv2d(before, after, kernel_size=3, padding=1) for before, after in channels)
        for name, parameter in self.convs.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    @classmethod
    def from_config(cls, config: Architecture) -> "ZeroDCE":
        """Return the untrained network; the paper fixes its layers."""
        return cls()

    def forward(self, photo: Tensor) -> list[Tensor]:
        x1 = F.relu(self.convs[0](photo))
        x2 = F.relu(self.convs[1](x1))
        x3 = F.relu(self.convs[2](x2))
        x4 = F.relu(self.convs[3](x3))
        x5 = F.relu(self.convs[4](torch.cat((x3, x4), dim=1)))
        x6 = F.relu(self.convs[5](torch.cat((x2, x5), dim=1)))
        parameters = self.convs[6](torch.cat((x1, x6), dim=1)).to(photo.dtype).tanh()  # (B, 24, H, W)
        return [curves(photo, parameters), parameters]

    def losses(
        self, photo: Tensor, outputs: Sequence[Tensor], target: Tensor, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the paper's four terms with its weights (section 3.3, equation 8); the target is not used."""
        corrected, parameters = outputs
        return {
            "spatial": spatial_consistency_loss(corrected, photo),
            "exposure": exposure_control_loss(corrected),
            "colour": COLOUR_WEIGHT * colour_constancy_loss(corrected),
            "smoothness": SMOOTHNESS_WEIGHT * illumination_smoothness_loss(parameters),
        }


def curves(photo: Tensor, parameters: Tensor) -> Tensor:
    """Apply the quadratic curves LE_n = LE_(n-1) + A_n LE_(n-1) (1 - LE_(n-1)), equation 3.

    Args:
        photo: `(B, 3, H, W)` in [0, 1].
        parameters: `(B, 3 N, H, W)` in [-1, 1], A_1 to A_N.
    """
    x = photo
    for parameter in parameters.split(3, dim=1):
        x = x + parameter * x * (1 - x)
    return x


def spatial_consistency_loss(corrected: Tensor, photo: Tensor) -> Tensor:
    """Return how far the contrast between neighbouring 4x4 regions has changed: L_spa, equation 4."""
    after, before = (F.avg_pool2d(x.mean(dim=1, keepdim=True), 4) for x in (corrected, photo))  # (B, 1, H/4, W/4)
    down = (after.diff(dim=2).abs() - before.diff(dim=2).abs()).square()
    across = (after.diff(dim=3).abs() - before.diff(dim=3).abs()).square()
    return 2 * (down.sum() + across.sum()) / after.numel()  # each pair of neighbours counts for both


def exposure_control_loss(corrected: Tensor) -> Tensor:
    """Return how far the mean intensity of regions, 16x16 where there is room, is from 0.6: L_exp, equation 5."""
    region = min(16, corrected.shape[2]), min(16, corrected.shape[3])
    return (F.avg_pool2d(corrected.mean(dim=1, keepdim=True), region) - WELL_EXPOSED).abs().mean()


def colour_constancy_loss(corrected: Tensor) -> Tensor:
    """Return how far the means of the channels are from each other: L_col, equation 6."""
    red, green, blue = corrected.mean(dim=(2, 3)).unbind(dim=1)
    return ((red - green).square() + (red - blue).square() + (green - blue).square()).mean()


def illumination_smoothness_loss(parameters: Tensor) -> Tensor:
    """Return how much the curves' parameters `(B, 3 N, H, W)` differ between neighbours: L_tvA, equation 7.

    The mean over pixels and iterations, the sum over the three channels.
    """
    corner = parameters[..., :-1, :-1]
    gradient = (parameters[..., 1:, :-1] - corner).abs() + (parameters[..., :-1, 1:] - corner).abs()
    return 3 * gradient.square().mean()
