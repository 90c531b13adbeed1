"""What training minimises, and the step down its gradient."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses import colour_loss, pixel_weights

from ..config import ConfigError
from ..evaluation.metrics import ssim
from .processes import Processes
from .state import TrainingState


def weighted_losses(state: TrainingState, inputs: Tensor, outputs: list[Tensor], targets: Tensor) -> dict[str, Tensor]:
    """Return the losses of the network, 1 - SSIM and the colour's, each times its weight; without those of 0."""
    config = state.config
    network: Any = state.generator
    weights = {"reconstruction": config.reconstruction_weight, "pyramid": config.pyramid_weight}
    weight = pixel_weights(inputs, targets, config.clipped_weight) if config.clipped_weight < 1 else None
    terms = network.losses(inputs, outputs, targets, weight)
    terms = {name: weights.get(name, 1.0) * term for name, term in terms.items() if weights.get(name, 1.0)}
    if config.ssim_weight:
        terms["ssim"] = config.ssim_weight * (1 - ssim(outputs[0], targets).mean())
    if config.colour_weight:
        terms["colour_cosine"] = config.colour_weight * colour_loss(outputs[0], targets)
    if not any(term.requires_grad for term in terms.values()):
        raise ConfigError(
            f"no loss is left to train {config.model} on: raise reconstruction_weight, pyramid_weight, ssim_weight "
            "or colour_weight"
        )
    return terms


def accumulate(sums: dict[str, Tensor], share: float, parts: dict[str, Tensor]) -> None:
    """Add `share` times `parts` to `sums`."""
    for name, part in parts.items():
        value = share * part.detach()
        sums[name] = sums[name] + value if name in sums else value


def update(optimizer: torch.optim.Optimizer, processes: Processes, max_norm: float) -> Tensor:
    """Take one step down the sum of all processes' gradients, scaled down to `max_norm` if that is not 0.

    Return the norm before scaling. It is not looked at here, which would make a GPU wait: a step down a gradient that
    is not finite is taken, but then `Measured.record` ends the run before anything of it is saved.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    processes.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)
    optimizer.step()
    return norm


def resize(photos: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `(B, 3, H, W)` photos at another size, without aliasing where they shrink."""
    shrinks = photos.shape[-2] > size[0] or photos.shape[-1] > size[1]
    return F.interpolate(photos, size, mode="bilinear", antialias=shrinks)
