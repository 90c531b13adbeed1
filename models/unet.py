"""The U-Net that corrects one level of the pyramid (MSEC, supplementary material and released source)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pyramid import replicate


class UNet(nn.Module):
    """Map `(B, 3, H, W)` of any height and width to `(B, 3, H, W)`, unbounded.

    Args:
        layer_count: encoder stages; the bridge comes on top.
        first_layer_out_channels: channels of the first stage; they double with every stage.

    The output is zero at initialisation, so that a network built on residuals starts at the identity.
    """

    def __init__(self, layer_count: int, first_layer_out_channels: int) -> None:
        super().__init__()
        channels = [first_layer_out_channels * 2**stage for stage in range(layer_count + 1)]
        self.encoder = nn.ModuleList(
            _double_conv(before, after) for before, after in zip([3, *channels[:-2]], channels[:-1], strict=True)
        )
        self.bridge = _double_conv(channels[-2], channels[-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * count, count, kernel_size=2, stride=2) for count in reversed(channels[:-1])
        )
        self.decoder = nn.ModuleList(_double_conv(2 * count, count) for count in reversed(channels[:-1]))
        self.head = nn.Conv2d(channels[0], 3, kernel_size=1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=0.2, mode="fan_in", nonlinearity="leaky_relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every convolution here has a bias
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        step = 2 ** len(self.encoder)
        x = replicate(x, bottom=-height % step, right=-width % step)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)  # (B, C, H, W) -> (B, C, H/2, W/2)
        x = self.bridge(x)
        for up, stage, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = F.relu(up(x), inplace=True)  # (B, 2C, h, w) -> (B, C, 2h, 2w)
            x = stage(torch.cat((skip, x), dim=1))
        return self.head(x)[..., :height, :width]


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
    )
