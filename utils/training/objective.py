"""What training minimises, and the step down its gradient."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models import Correction
from models.corrector import shrink
from models.losses import pixel_weights, reconstruction_loss

from ..config import ConfigError
from ..evaluation.metrics import ssim
from .processes import Processes
from .state import TrainingState


def weighted_losses(state: TrainingState, inputs: Tensor, done: Correction, targets: Tensor) -> dict[str, Tensor]:
    """Return the losses of the corrected photo and of the network's own output, each times its weight, but none of 0.

    Args:
        state: what is trained.
        inputs: `(B, 3, H, W)`, the mis-exposed photos.
        done: their correction. The network's own losses are at the size of its small copy.
        targets: `(B, 3, H, W)`.

    Raises:
        ConfigError: all weights are 0.
    """
    config = state.config
    network: Any = state.generator
    weights = {"reconstruction": config.reconstruction_weight, "pyramid": config.pyramid_weight}
    weight = pixel_weights(inputs, targets, config.clipped_weight) if config.clipped_weight < 1 else None
    longest = max(done.small.shape[-2:])
    small_weight = None if weight is None else shrink(weight, longest)
    terms = network.losses(done.small, done.outputs, shrink(targets, longest), small_weight)
    terms = {name: weights.get(name, 1.0) * term for name, term in terms.items() if weights.get(name, 1.0)}
    if config.corrected_weight and network.needs_targets:
        terms["corrected"] = config.corrected_weight * reconstruction_loss(done.photo, targets, weight)
    if config.ssim_weight and network.needs_targets:
        terms["ssim"] = config.ssim_weight * (1 - ssim(done.photo, targets).mean())
    if not any(term.requires_grad for term in terms.values()):
        raise ConfigError(
            f"no loss is left to train {config.model} on: raise corrected_weight, reconstruction_weight, "
            "pyramid_weight or ssim_weight"
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
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    optimizer.step()
    return norm


def resize(photos: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `(B, 3, H, W)` photos at another size, without aliasing where they shrink."""
    shrinks = photos.shape[-2] > size[0] or photos.shape[-1] > size[1]
    return F.interpolate(photos, size, mode="bilinear", antialias=shrinks)
