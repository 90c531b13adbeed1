"""Everything that changes during training, and what a checkpoint of it releases."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from models import Corrector

from ..config import Config


class TrainingState:
    """Both networks, their optimisers, the average of the weights, and how far training has come.

    Args:
        config: of the run.
        generator, discriminator: on the device they are trained on.
        photos: digests of the training and validation folders' lists of photos.
    """

    def __init__(self, config: Config, generator: nn.Module, discriminator: nn.Module, photos: list[str]) -> None:
        self.config = config
        self.generator = generator
        self.discriminator = discriminator
        is_fusable = next(generator.parameters()).device.type in ("cpu", "cuda")  # one kernel instead of a dozen
        self.generator_optimizer = torch.optim.Adam(
            generator.parameters(), lr=config.init_lr, weight_decay=config.weight_decay, fused=is_fusable
        )
        self.discriminator_optimizer = torch.optim.Adam(
            discriminator.parameters(),
            lr=config.discriminator_init_lr,
            weight_decay=config.discriminator_weight_decay,
            fused=is_fusable,
        )
        self.compiled: nn.Module | None = None  # the generator for steps of training, which shares its weights
        self.average = self._new_average()  # None: without
        self.epoch = 1
        self.step = 0  # steps done in this epoch
        self.totals: dict[str, float] = {}  # sums over this epoch's photos
        self.history: list[dict[str, float]] = []
        self.best_psnr = -math.inf
        self.photos = photos

    _MODULES = ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer")
    _VALUES = ("epoch", "step", "totals", "history", "best_psnr")
    ENTRIES = (*_MODULES, *_VALUES, "config", "photos")

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values that `load_state_dict` continues from exactly."""
        modules = {name: getattr(self, name).state_dict() for name in self._MODULES}
        values = {name: getattr(self, name) for name in self._VALUES}
        average = self.average.state_dict() if self.average is not None else None
        return {**modules, **values, "average": average, "config": self.config.to_dict(), "photos": self.photos}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint of a network of the same architecture, with this configuration's settings."""
        for name in self._MODULES:
            getattr(self, name).load_state_dict(_with_own_options(getattr(self, name), state[name]))
        for name in self._VALUES:
            setattr(self, name, state[name])
        self.average = self._new_average()  # of the weights just loaded, where there was none
        if self.average is not None and state.get("average") is not None:
            self.average.load_state_dict(state["average"])

    @property
    def corrector(self) -> Corrector:
        """The correction that is trained, its network compiled if `compiled` is there."""
        network = self.generator if self.compiled is None else self.compiled
        return Corrector(network, self.config.working_size, self.config.least_size)

    @property
    def released(self) -> Corrector:
        """The correction that is validated and exported: with the average, if there is one."""
        network = self.generator if self.average is None else self.average.module
        return Corrector(network, self.config.working_size, self.config.least_size)

    def update_average(self) -> None:
        """Move the average towards the weights of the step just taken, without waiting for the device."""
        if self.average is None:
            return
        count = int(self.average.n_averaged)  # on the CPU
        averages = [p.detach() for p in self.average.module.parameters()]
        weights = [p.detach() for p in self.generator.parameters()]
        # At the start the average must not hang on to the untrained weights.
        share = 1 - min(self.config.ema_decay, (1 + count) / (10 + count)) if count else 1.0
        torch._foreach_lerp_(averages, weights, share)
        self.average.n_averaged += 1

    def restart_average(self) -> None:
        """Let the average begin with the weights of now."""
        self.average = self._new_average()

    def _new_average(self) -> AveragedModel | None:
        return AveragedModel(self.generator) if self.config.ema_decay else None


def _with_own_options(module: nn.Module | torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Return an optimiser's saved state with this run's options: it may have another device or weight decay."""
    if not isinstance(module, torch.optim.Optimizer):
        return saved
    own = [{name: v for name, v in group.items() if name not in ("params", "lr")} for group in module.param_groups]
    groups = [{**old, **new} for old, new in zip(saved["param_groups"], own, strict=True)]
    return {**saved, "param_groups": groups}


def released_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights to export from a checkpoint: the average's, if it has one."""
    average = checkpoint.get("average")
    if average is None:
        return dict(checkpoint["generator"])
    return {name.removeprefix("module."): tensor for name, tensor in average.items() if name != "n_averaged"}
