"""Training losses of MSEC (section 3.3), in means over pixels.

The paper sums absolute differences over the pixels of every level and weights level l by 2^(l-2). As the levels shrink
by four, that is a weight *per pixel* of 1, 1, 0.5, 0.25 from the full photo to the coarsest level: the weights of the
means below.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .pyramid import gaussian_expand, gaussian_pyramid


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of two `(B, 3, H, W)` photos: L_rec, equation 2."""
    return F.l1_loss(output, target)


def pyramid_loss(outputs: Sequence[Tensor], target: Tensor) -> Tensor:
    """Return the weighted mean absolute differences of the coarser levels: L_pyr, equation 3.

    Args:
        outputs: what the generator returns, finest first.
        target: `(B, 3, H, W)`. Its Gaussian levels, brought up by one level with the pyramid's kernel, are the targets.
    """
    levels = gaussian_pyramid(target, len(outputs))
    loss = target.new_zeros(())
    for index, output in enumerate(outputs[1:], start=1):
        height, width = output.shape[-2:]
        loss = loss + 0.5 ** (index - 1) * F.l1_loss(output, gaussian_expand(levels[index], (height, width)))
    return loss


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
