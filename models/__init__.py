"""The networks. This package imports torch and nothing of the project."""

import difflib

from .corrector import Correction, Corrector
from .daconv import to_daconv
from .discriminator import Discriminator
from .generator import Generator
from .network import Architecture, Network
from .prenet import PReNet
from .zero_dce import ZeroDCE

__all__ = [
    "NETWORKS",
    "Architecture",
    "Correction",
    "Corrector",
    "Network",
    "NetworkError",
    "build_discriminator",
    "build_generator",
    "network_class",
]

NETWORKS: dict[str, type[Network]] = {
    "msec": Generator,
    "zero_dce": ZeroDCE,
    "prenet": PReNet,
}
"""The networks by the names that conf.json and weights files give them."""


class NetworkError(ValueError):
    """A configuration of which no network can be built. The message names the key and what is allowed."""


def network_class(name: str) -> type[Network]:
    """Return the network of a name.

    Raises:
        NetworkError: there is none.
    """
    if name not in NETWORKS:
        nearest = difflib.get_close_matches(name.lower(), NETWORKS, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise NetworkError(f'model = "{name}" is unknown: {hint}networks are {", ".join(NETWORKS)}')
    return NETWORKS[name]


def build_generator(config: Architecture) -> Network:
    """Return the untrained network that `config` describes.

    Its convolutions are plain, or DAConv if `config.conv` is "daconv". Both compute the same function before training:
    DAConv starts from the plain network's kernels. What is not said is "msec" and "plain".

    Raises:
        NetworkError: there is no network of this name, or no convolution in it that DAConv could replace.
    """
    name = getattr(config, "model", "msec")
    network = network_class(name).from_config(config)
    if network.needs_targets:  # others cannot learn not to mind
        network.shown_brighter = getattr(config, "shown_brighter", 0.0)
    if getattr(config, "conv", "plain") == "plain":
        return network
    try:
        converted, _ = to_daconv(network, keep_function=True)
    except ValueError as error:
        raise NetworkError(f'conv = "daconv" does not suit model = "{name}": {error}') from None
    assert isinstance(converted, Network)
    return converted


def build_discriminator(config: object = None) -> Discriminator:
    """Return the untrained discriminator. The paper fixes its layers, so `config` has nothing to add."""
    return Discriminator()
