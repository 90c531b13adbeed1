"""The networks. This package imports torch and nothing of the project."""

from collections.abc import Sequence
from typing import Protocol

from .discriminator import Discriminator
from .generator import Generator

__all__ = ["Architecture", "Discriminator", "Generator", "build_discriminator", "build_generator"]


class Architecture(Protocol):
    """What `build_generator` reads: a configuration, or the architecture stored in a weights file."""

    @property
    def layer_count_of_every_unet(self) -> Sequence[int]:
        """Encoder stages of each level's U-Net, coarsest first."""

    @property
    def first_layer_out_channels_of_every_unet(self) -> Sequence[int]:
        """First-stage channels of each level's U-Net, coarsest first."""


def build_generator(config: Architecture) -> Generator:
    """Return the untrained generator that `config` describes; it starts at the identity."""
    return Generator(config.layer_count_of_every_unet, config.first_layer_out_channels_of_every_unet)


def build_discriminator(config: object = None) -> Discriminator:
    """Return the untrained discriminator. The paper fixes its layers, so `config` has nothing to add."""
    return Discriminator()
