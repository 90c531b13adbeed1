"""DAConv with the four convolutions that the paper writes down: what models/daconv.py is measured against."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.daconv import CAUnit, DAConv, DAUnit


class LiteralDAConv(DAConv):
    """A `DAConv` that never builds one kernel: W_c * x, (sum W_c) x_c, W_d * x and (sum W_d) x_c, mixed."""

    def forward(self, input: Tensor) -> Tensor:
        contrast = literal_unit(input, self.contrast, 1)
        detail = literal_unit(input, self.detail, -1)
        return self.contrast_theta.sigmoid() * contrast + self.detail_theta.sigmoid() * detail


def literal_unit(x: Tensor, unit: CAUnit | DAUnit, sign: int) -> Tensor:
    """Return W * x + b + sign (sum W) x_c, with two convolutions."""
    if unit.padding == "valid":
        padding = [(0, 0), (0, 0)]
    elif unit.padding == "same":
        totals = [d * (k - 1) for d, k in zip(unit.dilation, unit.kernel_size, strict=True)]
        padding = [(total // 2, total - total // 2) for total in totals]
    else:
        padding = [(int(amount), int(amount)) for amount in unit.padding]
    (top, bottom), (left, right) = padding
    if unit.padding_mode == "zeros" and top == bottom and left == right:
        neighbours = F.conv2d(x, unit.weight, unit.bias, unit.stride, (top, left), unit.dilation, unit.groups)
    else:
        mode = "constant" if unit.padding_mode == "zeros" else unit.padding_mode
        padded = F.pad(x, (left, right, top, bottom), mode=mode)
        neighbours = F.conv2d(padded, unit.weight, unit.bias, unit.stride, 0, unit.dilation, unit.groups)
    height, width = neighbours.shape[-2:]
    own = x[:, :, :: unit.stride[0], :: unit.stride[1]]  # the input at o * stride
    if own.shape[2] < height or own.shape[3] < width:  # outputs beyond the input's end
        mode = "constant" if unit.padding_mode == "zeros" else unit.padding_mode
        padded = F.pad(x, (left, right, top, bottom), mode=mode)
        own = padded[:, :, top :: unit.stride[0], left :: unit.stride[1]]
    own = own[:, :, :height, :width]
    return neighbours + sign * F.conv2d(own, unit.weight.sum((2, 3), keepdim=True), groups=unit.groups)


def literal_copy(layer: DAConv) -> LiteralDAConv:
    """Return the literal form of a layer, on the same parameters."""
    copy = LiteralDAConv.__new__(LiteralDAConv)
    nn.Module.__init__(copy)
    copy.__dict__.update({name: value for name, value in layer.__dict__.items() if name != "_kept"})
    copy._kept = None
    return copy
