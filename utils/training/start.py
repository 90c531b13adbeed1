"""Where a run begins: with untrained weights, with given ones, or where it was stopped."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from models import Network, build_discriminator, build_generator
from models.daconv import merge_daconv, to_daconv

from ..config import Config, ConfigError, config_of_checkpoint
from ..device import Arithmetic
from ..weights import is_whole, load_weights
from .checkpoint import CheckpointError, load_checkpoint, load_newest_checkpoint
from .processes import Processes
from .release import ARCHITECTURE, export, trained_network
from .schedule import Epoch
from .state import TrainingState


def new_state(
    config: Config, arithmetic: Arithmetic, photos: Sequence[str] = (), *, is_warm: bool = True
) -> TrainingState:
    """Return the state before the first step; its weights are those of `config.init_weights`, if `is_warm`."""
    torch.manual_seed(config.seed)
    generator = warm_start(config) if config.init_weights and is_warm else build_generator(config)
    discriminator = build_discriminator(config)
    return TrainingState(config, arithmetic.place(generator), arithmetic.place(discriminator), list(photos))


def warm_start(config: Config) -> Network:
    """Return the network of `config` with the function of the weights or checkpoint `config.init_weights`.

    Plain and DAConv layers become one another through `to_daconv` and `merge_daconv`.

    Raises:
        ConfigError: the file is missing, or of another network.
        WeightsError, CheckpointError: it is damaged.
    """
    path = Path(config.init_weights)
    if not path.is_file():
        raise ConfigError(f'init_weights = "{path}": there is no such file')
    if path.suffix == ".pt":
        checkpoint = load_checkpoint(path, TrainingState.ENTRIES)
        source: Any = config_of_checkpoint(checkpoint["config"], source=str(path))
        require_same_network(config, source, path)
        network = shown_as(config, trained_network(checkpoint, path))
        if source.conv == config.conv:
            return network
        if source.conv == "daconv":
            return cast(Network, merge_daconv(network))
    else:
        weights = load_weights(path)
        require_same_network(config, weights.architecture, path)
        network = shown_as(config, build_generator(weights.architecture))
        network.load_state_dict(weights.state)
    return cast(Network, to_daconv(network, keep_function=True)[0]) if config.conv == "daconv" else network


def shown_as(config: Config, network: Network) -> Network:
    """Return a network that goes on as the configuration shows it photos, whatever it has seen before."""
    if network.needs_targets:
        network.shown_brighter = config.shown_brighter
    return network


def require_same_network(config: Config, source: Any, path: Path) -> None:
    """Raise `ConfigError` if weights are of another network than the one to train."""
    for name in ARCHITECTURE:
        there, here = (getattr(values, name, None) for values in (source, config))
        there, here = (list(value) if isinstance(value, tuple) else value for value in (there, here))
        if there is not None and there != here:
            raise ConfigError(f'init_weights = "{path}" has {name} = {there}, not {here}: train the same network')


def read_checkpoint(
    config: Config, photos: list[str], folder: Path, plan: list[Epoch], *, is_dry: bool = False
) -> dict[str, Any] | None:
    """Return the newest whole checkpoint of a folder, with what has to begin anew reset; say what has changed.

    None if there is none. Lost weights are written again, from best.pt or of the last epoch, unless `is_dry`.

    Raises:
        CheckpointError: all are damaged, or it holds another architecture.
    """
    try:
        saved, path, damages = load_newest_checkpoint(folder / "last.pt", TrainingState.ENTRIES)
    except FileNotFoundError:
        return None
    for damage in damages:
        print(f"WARNING {damage}; going on from {path}", file=sys.stderr)
    new, old = config.to_dict(), config_of_checkpoint(saved["config"], source=str(path)).to_dict()
    changed = {name for name in new if new[name] != old[name]}
    for name in sorted(changed):
        print(f"changed since the checkpoint: {name} = {old[name]} -> {new[name]}", file=sys.stderr)
        if name in (*ARCHITECTURE, "conv"):
            raise CheckpointError(
                f"{path}: made with {name} = {old[name]}, not {new[name]}: "
                "give model_save_dir another folder, or move this one away"
            )
    is_over, is_between = saved["epoch"] > len(plan), saved["step"] == 0  # epochs
    of_training = {"batch_size", "stages", "seed", "train_data_dir", "train_pairs", "scene_share", "views_per_photo"}
    has_new_order = of_training & changed or saved["photos"][0] != photos[0]
    has_new_order = has_new_order or is_over or saved["step"] > plan[saved["epoch"] - 1].steps
    has_new_losses = any(name == "begin_use_adv_loss_epoch" or name.endswith("_weight") for name in changed)
    if saved["step"] and (has_new_order or has_new_losses):  # its means would be of both
        what = "its photos or their order" if has_new_order else "the losses"
        print(f"epoch {saved['epoch']} starts again: {what} have changed", file=sys.stderr)
        saved["step"], saved["totals"] = 0, {}
    of_validation = {name for name in new if name.startswith(("color_jitter_", "camera_", "degradation"))}
    of_validation |= {"ema_decay", "hdri_dir", "image_size", "jitter_share", "shown_brighter", "working_size"}
    of_validation |= {"valid_data_dir", "valid_pairs", "working_size_spread"}
    if not is_over and (of_validation & changed or saved["photos"][1] != photos[1]):
        print("validation has changed: the best epoch is looked for anew", file=sys.stderr)
        saved["best_psnr"] = -math.inf
    best, weights = folder / "best.pt", folder / "best.safetensors"
    if not is_whole(weights) and best.exists() and not is_dry:  # a kill came between the two
        export(weights, load_checkpoint(best, TrainingState.ENTRIES))
    elif not is_whole(weights) and not best.exists() and saved["best_psnr"] > -math.inf:
        looked_for = "the last epoch counts as the best" if is_between else "the best epoch is looked for anew"
        print(f"WARNING {best} and {weights} are gone: {looked_for}", file=sys.stderr)
        saved["best_psnr"] = saved["history"][-1]["valid_psnr"] if is_between else -math.inf
        if is_between and not is_dry:
            export(weights, saved)
    print(f"resuming in epoch {saved['epoch']} after step {saved['step']} from {path}", file=sys.stderr)
    return saved


def share_weights(state: TrainingState, processes: Processes) -> None:
    """Let all processes begin with the weights of the first."""
    if processes.count > 1:
        for network in (state.generator, state.discriminator):
            network.load_state_dict(processes.share({name: t.cpu() for name, t in network.state_dict().items()}))
        state.restart_average()
