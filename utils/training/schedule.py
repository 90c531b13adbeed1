"""The plan of a training run: its epochs, stage by stage, and the learning rates of its steps."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config
from .state import TrainingState


@dataclass(frozen=True)
class Epoch:
    """Where an epoch stands in the plan of training. All numbers are counted from 1, steps from 0."""

    number: int
    stage: int
    is_adversarial: bool
    first_step: int
    """Steps of all epochs before it."""
    steps: int


def plan_epochs(config: Config, photo_count: int) -> list[Epoch]:
    """Return all epochs of a run with so many training photos."""
    plan: list[Epoch] = []
    first_step = 0
    for number, stage in enumerate(config.schedule, start=1):
        steps = math.ceil(photo_count / stage.batch_size)
        for epoch in range(1, stage.epochs + 1):
            is_adversarial = epoch >= stage.begin_use_adv_loss_epoch
            plan.append(Epoch(len(plan) + 1, number, is_adversarial, first_step, steps))
            first_step += steps
    return plan


def draw_working_size(config: Config, epoch: int, step: int) -> int:
    """Return the longest side of the small copy in a step: the same in every process, and after every resumption."""
    most = 1 + config.working_size_spread
    share = random.Random(f"{config.seed} {epoch} {step}").uniform(1 / most, most)
    drawn = max(round(config.working_size * share / 4) * 4, config.smallest_working_size)
    return drawn if most > 1 else config.working_size


def draw_brightness(config: Config, epoch: int, indices: Sequence[int]) -> Tensor:
    """Return how much brighter the network is shown views, `(B,)`: functions of seed, epoch and view alone."""
    draws = (random.Random(f"brightness {config.seed} {epoch} {index}").uniform(0, 1) for index in indices)
    return 2 * config.shown_brighter * torch.tensor([*draws])


def set_learning_rates(state: TrainingState, plan: list[Epoch], steps_done: int) -> None:
    """Set both learning rates for the step after `steps_done`."""
    config, last = state.config, plan[-1].first_step + plan[-1].steps - 1
    begin = next((epoch.first_step for epoch in plan if epoch.is_adversarial), last)
    for optimizer, first, final, start in (
        (state.generator_optimizer, config.init_lr, config.final_lr, 0),
        (state.discriminator_optimizer, config.discriminator_init_lr, config.discriminator_final_lr, begin),
    ):
        for group in optimizer.param_groups:
            group["lr"] = cosine(first, final, (steps_done - start) / max(last - start, 1))


def cosine(first: float, final: float, progress: float) -> float:
    """Return the value at `progress` on half a cosine from `first`, at 0 and below, to `final`, at 1 and above."""
    progress = min(max(progress, 0), 1)
    return final + (first - final) * (1 + math.cos(math.pi * progress)) / 2
