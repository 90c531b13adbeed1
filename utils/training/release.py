"""The network of a checkpoint, and the weights file that predict.py reads."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import Network, build_generator
from models.daconv import merge_daconv

from ..config import config_of_checkpoint
from ..weights import save_weights
from .state import released_weights

ARCHITECTURE = (
    "model",
    "laplacian_level_count",
    "layer_count_of_every_unet",
    "first_layer_out_channels_of_every_unet",
)
"""Keys of conf.json that describe the network of a weights file. A checkpoint's also depends on `conv`."""


def trained_network(checkpoint: dict[str, Any], source: Path) -> Network:
    """Return the network of a checkpoint with the weights to release; its random draws leave no trace.

    Raises:
        ConfigError: the checkpoint's configuration cannot be used; `source` names it.
        RuntimeError: the checkpoint's tensors do not fit its configuration.
    """
    with torch.random.fork_rng(devices=[]):  # the untrained weights are drawn and thrown away
        network = build_generator(config_of_checkpoint(checkpoint["config"], source=str(source)))
    network.load_state_dict(released_weights(checkpoint))
    return network


def plain_network(checkpoint: dict[str, Any], source: Path) -> nn.Module:
    """Return the network of a checkpoint with the weights to release, its DAConv layers merged.

    Raises:
        ConfigError, RuntimeError: as `trained_network`.
    """
    network = trained_network(checkpoint, source)
    is_plain = config_of_checkpoint(checkpoint["config"], source=str(source)).conv == "plain"
    return network if is_plain else merge_daconv(network)


def export(path: Path, checkpoint: dict[str, Any], plain: nn.Module | None = None, **options: Any) -> None:
    """Write the network of a checkpoint, plain, as the weights file that predict.py reads.

    Args:
        path: NAME.safetensors.
        checkpoint: what `TrainingState.state_dict` returned.
        plain: the checkpoint's network, if the caller has it.
        options: those of `save_weights`.

    Raises:
        RuntimeError: the checkpoint's tensors do not fit its configuration.
        OSError: the folder is missing, read-only or full.
    """
    config = config_of_checkpoint(checkpoint["config"], source=str(path))
    if plain is None:
        plain = plain_network(checkpoint, path)
    shown_brighter: Any = plain.shown_brighter
    values = config.to_dict()
    figures = dict((checkpoint["history"] or [{}])[-1])
    figures.pop("images_per_second", None)  # else no run would make the same file as another
    save_weights(
        path,
        plain.state_dict(),
        architecture={**{name: values[name] for name in ARCHITECTURE}, "shown_brighter": shown_brighter},
        working_size=config.working_size,
        least_size=config.least_size,
        training={"config": values, **figures},
        **options,
    )
