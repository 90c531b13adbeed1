"""From a batch of views to inputs and targets, on the model's device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.colour import from_linear, luma, to_linear
from utils.device import Arithmetic
from utils.evaluation.metrics import quantise

from .camera import camera, expose
from .color_jitter import color_jitter
from .dataset import DEVELOPED, UNTOUCHED, Batch

MEAN = 0.44
"""Mean luma of well-exposed photos: that of the training photos, and nearly that of the targets of real pairs."""


def make_pairs(batch: Batch, arithmetic: Arithmetic, normalise_targets: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return a batch's inputs, real or synthesised, and its targets, `(B, 3, H, W)` in [0, 1] on the device.

    Synthesised inputs are rounded to 8 bits, like the files that the network will meet: what is lost is lost. Their
    targets are re-exposed `normalise_targets` of the way to one brightness, which is meant for training alone.
    """
    targets = arithmetic.photos(batch.photos)
    factors, orders = (draws.to(arithmetic.device, non_blocking=True) for draws in (batch.factors, batch.orders))
    inputs = quantise(color_jitter(targets, factors, orders))
    untouched = (batch.kinds == UNTOUCHED).to(arithmetic.device, non_blocking=True)
    inputs = torch.where(untouched[:, None, None, None], targets, inputs)
    developed = ((batch.kinds == DEVELOPED) & ~batch.is_pair).nonzero().flatten()
    if len(developed):
        index = developed.to(arithmetic.device, non_blocking=True)
        inputs = inputs.index_copy(0, index, quantise(camera(targets[index], batch.camera[developed])))
    is_given = untouched  # photos and real pairs stay as they are
    if batch.inputs.numel():
        is_pair = batch.is_pair.to(arithmetic.device, non_blocking=True)
        inputs = torch.where(is_pair[:, None, None, None], arithmetic.photos(batch.inputs), inputs)
        is_given = is_given | is_pair
    if normalise_targets:
        targets = torch.where(is_given[:, None, None, None], targets, normalise(targets, normalise_targets))
    return inputs.contiguous(memory_format=arithmetic.memory_format), targets


def normalise(photos: Tensor, share: float) -> Tensor:
    """Return photos `(B, 3, H, W)` in [0, 1] re-exposed so that their mean luma comes that share of the way to `MEAN`.

    The exposure is that of `camera` with a full shoulder: black stays black and white stays white. It goes no further
    than three stops, which photos that are mostly black or white would need.
    """
    small = F.interpolate(photos, size=(32, 32), mode="area") if min(photos.shape[-2:]) > 32 else photos
    light, level = to_linear(small), luma(small).mean(dim=(2, 3), keepdim=True).clamp(0.01, 0.99)
    wanted, now, gain = level + share * (MEAN - level), level, torch.ones_like(level)
    for _ in range(8):  # the square: light goes as about the square of its sRGB
        gain = (gain * (wanted / (1 - wanted) * (1 - now) / now) ** 2).clamp(1 / 8, 8)
        now = luma(from_linear(expose(light, gain, 1.0))).mean(dim=(2, 3), keepdim=True).clamp(0.01, 0.99)
    return from_linear(expose(to_linear(photos), gain, 1.0)).clamp(0, 1)
