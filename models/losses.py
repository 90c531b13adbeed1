"""Training losses of MSEC (section 3.3), in means over pixels.

The paper sums absolute differences over the pixels of every level and weights level l by 2^(l-2). As the levels shrink
by four, that is a weight *per pixel* of 1, 1, 0.5, 0.25 from the full photo to the coarsest level: the weights of the
means below.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .pyramid import gaussian_expand, gaussian_pyramid


def reconstruction_loss(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean absolute difference of two `(B, 3, H, W)` photos: L_rec, equation 2.

    `weight`, `(B, 1, H, W)`, multiplies every pixel's difference.
    """
    difference = (output - target).abs()
    return (difference if weight is None else weight * difference).mean()


def pyramid_loss(outputs: Sequence[Tensor], target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the weighted mean absolute differences of the coarser levels: L_pyr, equation 3.

    Args:
        outputs: what the generator returns, finest first.
        target: `(B, 3, H, W)`. Its Gaussian levels, brought up by one level with the pyramid's kernel, are the targets.
        weight: `(B, 1, H, W)`, of every pixel's difference; reduced to each level's size.
    """
    levels = gaussian_pyramid(target, len(outputs))
    loss = target.new_zeros(())
    for index, output in enumerate(outputs[1:], start=1):
        size = output.shape[-2:]
        expected = gaussian_expand(levels[index], (size[0], size[1]))
        reduced = None if weight is None else F.interpolate(weight, size, mode="area")
        loss = loss + 0.5 ** (index - 1) * reconstruction_loss(output, expected, reduced)
    return loss


def pixel_weights(inputs: Tensor, targets: Tensor, clipped_weight: float) -> Tensor:
    """Return `(B, 1, H, W)`: `clipped_weight` where an input is black or white and its target is not, 1 elsewhere.

    No network can know what was there; its best guess would be an average, a grey sky for a white one.
    """
    step = 1.5 / 255  # compression moves a clipped pixel by one
    clipped = (inputs.amin(dim=1) > 1 - step) | (inputs.amax(dim=1) < step)
    lost = clipped & ((inputs - targets).abs().amax(dim=1) > step)
    return torch.where(lost, clipped_weight, 1.0)[:, None]


def adversarial_loss(fake_logits: Tensor) -> Tensor:
    """Return the generator's mean of -log S(D(Y)), S the sigmoid: L_adv, equation 4, before its weight.

    The logits must come from the generator's output *with* its graph, or nothing reaches the generator.
    """
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the mean of -log S(D(T)) and -log(1 - S(D(Y))): ln 2 for a discriminator that cannot tell.

    The fake logits should come from a detached output.
    """
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())
