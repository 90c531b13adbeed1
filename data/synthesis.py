"""From a batch of views to inputs and targets, on the model's device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.colour import from_linear, luma, to_linear
from utils.device import Arithmetic, places, send
from utils.evaluation.metrics import quantise

from .camera import camera, expose, scene_camera, value_of
from .color_jitter import color_jitter
from .dataset import DEVELOPED, JITTERED, UNTOUCHED, Batch
from .scenes import develop

MEAN = 0.44
"""Mean luma of well-exposed photos: that of the training photos, and nearly that of the targets of real pairs."""


def make_pairs(batch: Batch, arithmetic: Arithmetic, normalise_targets: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return a batch's inputs, real or synthesised, and its targets, `(B, 3, H, W)` in [0, 1] on the device.

    Synthesised inputs are rounded to 8 bits, like the files that the network will meet: what is lost is lost. The
    targets of photos are re-exposed towards one brightness, `normalise_targets` of the way where the error has
    destroyed all evidence of theirs, and less where it has not; this is meant for training alone.
    """
    device = arithmetic.device
    targets = arithmetic.photos(batch.photos)
    inputs = targets
    is_photo = ~batch.is_pair & ~batch.is_scene
    jittered = places(is_photo & (batch.kinds == JITTERED))
    if len(jittered):
        index = send(jittered, device)
        factors, orders = send(batch.factors[jittered], device), send(batch.orders[jittered], device)
        inputs = inputs.index_copy(0, index, quantise(color_jitter(targets[index], factors, orders)))
    developed = places(is_photo & (batch.kinds == DEVELOPED))
    if len(developed):
        index = send(developed, device)
        inputs = inputs.index_copy(0, index, quantise(camera(targets[index], batch.camera[developed])))
    lost = torch.where(batch.kinds == JITTERED, 1.0, value_of(batch.camera, "lost").float())
    misled = places(is_photo & (batch.kinds != UNTOUCHED) & (lost > 0))
    if normalise_targets and len(misled):
        index, share = send(misled, device), send(normalise_targets * lost[misled], device)
        targets = targets.index_copy(0, index, normalise(targets[index], share[:, None, None, None]))
    scenes = places(batch.is_scene)
    if len(scenes):
        index, light = send(scenes, device), send(batch.light[scenes], device).float()
        targets = targets.index_copy(0, index, quantise(develop(light)))
        inputs = inputs.index_copy(0, index, quantise(scene_camera(light, batch.camera[scenes])))
    untouched = send(batch.kinds == UNTOUCHED, device)
    inputs = torch.where(untouched[:, None, None, None], targets, inputs)
    if batch.inputs.numel():
        is_pair = send(batch.is_pair, device)
        inputs = torch.where(is_pair[:, None, None, None], arithmetic.photos(batch.inputs), inputs)
    return inputs.contiguous(memory_format=arithmetic.memory_format), targets


def normalise(photos: Tensor, share: Tensor | float) -> Tensor:
    """Return photos `(B, 3, H, W)` in [0, 1] re-exposed so that their mean luma comes that share of the way to `MEAN`.

    White and black have no say in the mean: a face before a white wall is judged by the face.

    The exposure is that of `camera` with a full shoulder: black stays black and white stays white. It goes no further
    than three stops, which photos that are mostly black or white would need.
    """
    small = F.interpolate(photos, size=(32, 32), mode="area") if min(photos.shape[-2:]) > 32 else photos
    light, level = to_linear(small), _level(luma(small))
    wanted, now, gain = level + share * (MEAN - level), level, torch.ones_like(level)
    for _ in range(8):  # the square: light goes as about the square of its sRGB
        gain = (gain * (wanted / (1 - wanted) * (1 - now) / now) ** 2).clamp(1 / 8, 8)
        now = _level(luma(from_linear(expose(light, gain, 1.0))))
    return from_linear(expose(to_linear(photos), gain, 1.0)).clamp(0, 1)


def _level(brightness: Tensor) -> Tensor:
    """Return the mean `(B, 1, 1, 1)` of the lumas `(B, 1, H, W)` that are neither white nor black."""
    counts = ((brightness < 0.97) & (brightness > 0.02)).to(brightness.dtype) + 1e-3
    return ((counts * brightness).sum(dim=(2, 3), keepdim=True) / counts.sum(dim=(2, 3), keepdim=True)).clamp(
        0.01, 0.99
    )
