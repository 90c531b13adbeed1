"""PReNet: one small residual network applied again and again, with a convolutional LSTM between the iterations.

Ren, Zuo, Hu, Zhu, Meng: "Progressive Image Deraining Networks: A Better and Simpler Baseline", CVPR 2019.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .losses import reconstruction_loss
from .network import Architecture, Network

ITERATIONS = 6
CHANNELS = 32


class PReNet(Network):
    """Correct the exposure of `(B, 3, H, W)` sRGB in [0, 1], any height and width, in six iterations.

    Every iteration sees the photo and the last estimate, and adds a residual to the photo (168,963 parameters in all).
    `forward` returns the last estimate `(B, 3, H, W)`, unclipped. The last convolution starts at zero: the untrained
    network returns the photo.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entry = _conv(6)
        self.input_gate, self.forget_gate = _conv(2 * CHANNELS), _conv(2 * CHANNELS)
        self.cell_gate, self.output_gate = _conv(2 * CHANNELS), _conv(2 * CHANNELS)
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(CHANNELS), nn.ReLU(inplace=True), _conv(CHANNELS), nn.ReLU(inplace=True))
            for _ in range(5)
        )
        self.exit = nn.Conv2d(CHANNELS, 3, kernel_size=3, padding=1)
        for parameter in self.exit.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def from_config(cls, config: Architecture) -> "PReNet":
        """Return the untrained network; the paper fixes its layers."""
        return cls()

    def forward(self, photo: Tensor) -> list[Tensor]:
        estimate = photo
        hidden = cell = photo.new_zeros(photo.shape[0], CHANNELS, *photo.shape[-2:])
        for _ in range(ITERATIONS):
            x = F.relu(self.entry(torch.cat((photo, estimate), dim=1)))  # (B, 6, H, W) -> (B, 32, H, W)
            hidden, cell = self._remember(x, hidden, cell)
            x = hidden
            for block in self.blocks:
                x = F.relu(block(x) + x)
            estimate = photo + self.exit(x)
        return [estimate]

    def _remember(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Update the state of the convolutional LSTM, `(B, 32, H, W)` each."""
        both = torch.cat((x, hidden), dim=1)
        cell = self.forget_gate(both).sigmoid() * cell + self.input_gate(both).sigmoid() * self.cell_gate(both).tanh()
        return self.output_gate(both).sigmoid() * cell.tanh(), cell

    def losses(
        self, photo: Tensor, outputs: Sequence[Tensor], target: Tensor, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the mean absolute difference of the last estimate.

        The paper supervises the last estimate alone as well, with the negative SSIM: rain leaves brightness alone, and
        exposure is brightness.
        """
        return {"reconstruction": reconstruction_loss(outputs[0], target, weight)}


def _conv(in_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, CHANNELS, kernel_size=3, padding=1)
