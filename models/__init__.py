"""The networks. This package imports torch and nothing of the project."""

from .daconv import to_daconv
from .discriminator import Discriminator
from .generator import Generator
from .network import Architecture, Network
from .prenet import PReNet
from .zero_dce import ZeroDCE

__all__ = ["NETWORKS", "Architecture", "Network", "UnknownNetworkError", "build_discriminator", "build_generator"]

NETWORKS: dict[str, type[Network]] = {
    "msec": Generator,
    "zero_dce": ZeroDCE,
    "prenet": PReNet,
}
"""The networks by the names that conf.json and weights files give them."""


class UnknownNetworkError(ValueError):
    """A name that is not in `NETWORKS`."""


def build_generator(config: Architecture) -> Network:
    """Return the untrained network that `config` describes.

    Its convolutions are plain, or DAConv if `config.conv` is "daconv". Both compute the same function before training:
    DAConv starts from the plain network's kernels. What is not said is "msec" and "plain".

    Raises:
        UnknownNetworkError: there is no network of this name.
    """
    name = getattr(config, "model", "msec")
    if name not in NETWORKS:
        raise UnknownNetworkError(f'model = "{name}": allowed are {", ".join(NETWORKS)}')
    network = NETWORKS[name].from_config(config)
    if getattr(config, "conv", "plain") == "plain":
        return network
    converted, _ = to_daconv(network, keep_function=True)
    assert isinstance(converted, Network)
    return converted


def build_discriminator(config: object = None) -> Discriminator:
    """Return the untrained discriminator. The paper fixes its layers, so `config` has nothing to add."""
    return Discriminator()
