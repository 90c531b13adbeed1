"""What train.py, export.py and predict.py ask of a network."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class Architecture(Protocol):
    """What networks are built from: a configuration, or the architecture stored in a weights file."""

    @property
    def model(self) -> str:
        """Name of the network, as `models.NETWORKS` lists it."""

    @property
    def layer_count_of_every_unet(self) -> Sequence[int]:
        """Encoder stages of each level's U-Net, coarsest first."""

    @property
    def first_layer_out_channels_of_every_unet(self) -> Sequence[int]:
        """First-stage channels of each level's U-Net, coarsest first."""

    @property
    def shown_brighter(self) -> float:
        """How much brighter than the photo the network is shown it; older weights files lack it, which means 0."""


class Network(nn.Module):
    """A network that corrects the exposure of photos. A new one defines these three and is listed in `models.NETWORKS`.

    `forward` maps `(B, 3, H, W)` sRGB in [0, 1] of any height and width to a list of tensors in float32: first the
    corrected photos `(B, 3, H, W)`, unclipped, then whatever else the losses need.
    """

    needs_targets = True
    """Whether it is trained on targets: if not, by losses of its own alone."""
    shown_brighter: float = 0.0
    """How much brighter than the photo a `Corrector` shows it the small copy: the odds x / (1 - x) times 2 to this."""

    @classmethod
    def from_config(cls, config: Architecture) -> "Network":
        """Return the untrained network that `config` describes."""
        raise NotImplementedError

    def forward(self, photo: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def losses(
        self, photo: Tensor, outputs: Sequence[Tensor], target: Tensor, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted terms of the training loss, which is their sum.

        Args:
            photo: `(B, 3, H, W)`, what the network was given.
            outputs: what it returned.
            target: `(B, 3, H, W)`, the well-exposed photo. A network trained without targets leaves it alone.
            weight: `(B, 1, H, W)`, how much each pixel's difference from the target counts; None: 1.
        """
        raise NotImplementedError
