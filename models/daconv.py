"""DAConv: a convolution split into a contrast-aware and a detail-aware unit that merges into a plain one.

Wang, Xu, Fu, Liu, et al.: "Decoupling-and-Aggregating for Image Exposure Correction", CVPR 2023. With x_c the input at
the output pixel's own position and W_i the kernel's taps,

    contrast-aware unit:  y = sum_i W_i (x_i + x_c) = W * x + (sum_i W_i) x_c
    detail-aware unit:    y = sum_i W_i (x_i - x_c) = W * x - (sum_i W_i) x_c
    layer:                y = s(theta_c) CA(x) + s(theta_d) DA(x), s the sigmoid.

All of it is linear in x, so one kernel does the same: K = s(theta_c) (W_c + d S_c) + s(theta_d) (W_d - d S_d), where S
is the sum over a kernel's taps and d is 1 at the tap that reads x_c and 0 elsewhere. The layers below build K and
convolve once, in training as in inference, and `merge_daconv` stores the same K in a plain `nn.Conv2d`. K spans exactly
the ordinary kernels: DAConv changes how a kernel is learned, not what it can express.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _CentredConv2d(nn.Conv2d):
    """A convolution whose every tap reads x_i + sign * x_c. See `CAUnit` and `DAUnit`."""

    sign: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own_tap = own_tap(self)

    def kernel(self) -> Tensor:
        """Return the plain kernel of the same function, of the shape of `weight`."""
        (top, left), (height, width) = self.own_tap, self.kernel_size
        total = self.weight.sum(dim=(2, 3), keepdim=True).to(self.weight.dtype)  # autocast sums in float32
        return self.weight + self.sign * F.pad(total, (left, width - 1 - left, top, height - 1 - top))

    def forward(self, input: Tensor) -> Tensor:
        return convolve(input, self, self.kernel(), self.bias)


class CAUnit(_CentredConv2d):
    """Contrast-aware unit: y = sum_i W_i (x_i + x_c) + b. Arguments, shapes and state are those of `nn.Conv2d`.

    Raises:
        ValueError: no tap reads the output pixel's own position, or the kernel has a single tap.
    """

    sign = 1


class DAUnit(_CentredConv2d):
    """Detail-aware unit: y = sum_i W_i (x_i - x_c) + b. Arguments, shapes and state are those of `nn.Conv2d`.

    Raises:
        ValueError: no tap reads the output pixel's own position, or the kernel has a single tap.
    """

    sign = -1


class _Aggregation(torch.autograd.Function):
    """K = s(theta_c) (W_c + d S_c) + s(theta_d) (W_d - d S_d), in as few passes over the kernels as there are.

    Autograd's own backward of the same line reads and writes the kernels several times more often: for large layers on
    small pictures that costs as much as the convolution.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(contrast: Tensor, detail: Tensor, theta_c: Tensor, theta_d: Tensor, tap: tuple[int, int]) -> Tensor:
        return _aggregate(contrast, detail, theta_c.sigmoid(), theta_d.sigmoid(), tap)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.tap = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        contrast, detail, theta_c, theta_d = ctx.saved_tensors
        share_c, share_d = theta_c.sigmoid(), theta_d.sigmoid()
        own = gradient[:, :, ctx.tap[0], ctx.tap[1], None, None]  # through S, every tap also enters K at the own tap
        of_contrast = torch.addcmul(share_c * own, gradient, share_c)
        of_detail = torch.addcmul(-share_d * own, gradient, share_d)
        # dK/dtheta is (1 - s(theta)) of the unit's share in K, and K is linear in the weights.
        of_theta_c = (1 - share_c) * _inner(of_contrast, contrast)
        of_theta_d = (1 - share_d) * _inner(of_detail, detail)
        return of_contrast, of_detail, of_theta_c, of_theta_d, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        values = ctx.saved_tensors
        of_contrast, of_detail, of_theta_c, of_theta_d = (
            torch.zeros_like(value) if tangent is None else tangent
            for value, tangent in zip(values, tangents, strict=False)
        )
        share_c, share_d = values[2].sigmoid(), values[3].sigmoid()
        slope_c, slope_d = share_c * (1 - share_c) * of_theta_c, share_d * (1 - share_d) * of_theta_d
        weights = _aggregate(of_contrast, of_detail, share_c, share_d, ctx.tap)
        return weights + _aggregate(values[0], values[1], slope_c, slope_d, ctx.tap)


def _aggregate(contrast: Tensor, detail: Tensor, a: Tensor, b: Tensor, tap: tuple[int, int]) -> Tensor:
    """Return a W_c + b W_d with (a S_c - b S_d) added at the own tap, for the units' shares a and b."""
    kernel = torch.mul(contrast, a).addcmul_(detail, b)
    kernel[:, :, tap[0], tap[1]] += a * contrast.sum(dim=(2, 3)) - b * detail.sum(dim=(2, 3))
    return kernel


@torch.fx.wrap
def _aggregation(contrast: Tensor, detail: Tensor, theta_c: Tensor, theta_d: Tensor, tap: tuple[int, int]) -> Tensor:
    """Return K; a step of its own for `torch.fx`, which does not look into it."""
    return cast(Tensor, _Aggregation.apply(contrast, detail, theta_c, theta_d, tap))


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum of products of two kernels, without a copy where they lie in memory alike."""
    if not first.is_contiguous():
        first, second = first.permute(0, 2, 3, 1), second.permute(0, 2, 3, 1)  # channels last
    return torch.dot(first.reshape(-1), second.reshape(-1))


class _Kept(NamedTuple):
    """A merged kernel and what it was made from."""

    parameters: list[nn.Parameter]
    state: list[int]
    merged: tuple[Tensor, Tensor | None]


def _is_uncounted(parameter: Tensor) -> bool:
    """Tell whether changes of a parameter go uncounted: one of inference mode, or a stand-in such as `torch.vmap`'s."""
    return parameter.is_inference() or torch._C._functorch.is_functorch_wrapped_tensor(parameter)


def _of_contrast(name: str) -> property:
    """Return a property that reads an attribute of the contrast-aware unit, and cannot be set."""
    return property(lambda layer: getattr(layer.contrast, name), doc=f"As `nn.Conv2d.{name}`; read-only.")


class DAConv(nn.Module):
    """The decoupled convolution: a contrast-aware and a detail-aware unit, mixed by two learned scalars.

    Arguments and shapes are those of `nn.Conv2d`: `(B, in_channels, H, W)` to `(B, out_channels, H', W')`. The
    parameters are weight and bias of both units and the two scalars theta, which start at 1 as in the paper; `merge`
    returns the kernel and bias that they make. The units' own `forward` is not called: hooks on them do not run.

    Outside training, and where no gradients are recorded, the kernel is built once and kept until a parameter is
    changed, replaced or moved, or the layer is run with gradients. Writing through `parameter.data`, and the step of a
    fused optimizer in between, go unnoticed until `train()` or `eval()` is called. For `torch.jit.script`, merge first.

    Raises:
        ValueError: as `nn.Conv2d`; or no tap reads the output pixel's own position; or the kernel has a single tap,
            where the detail-aware unit is zero whatever its weight.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.contrast = CAUnit(*args, **kwargs)
        self.detail = DAUnit(*args, **kwargs)
        self.contrast_theta = nn.Parameter(self.contrast.weight.new_ones(()))
        self.detail_theta = nn.Parameter(self.contrast.weight.new_ones(()))
        self._kept: _Kept | None = None

    in_channels = _of_contrast("in_channels")
    out_channels = _of_contrast("out_channels")
    kernel_size = _of_contrast("kernel_size")
    stride = _of_contrast("stride")
    padding = _of_contrast("padding")
    dilation = _of_contrast("dilation")
    groups = _of_contrast("groups")
    padding_mode = _of_contrast("padding_mode")

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):  # code that initialises these would change a copy, without a word
            raise AttributeError(
                f"DAConv has no {name} of its own: initialise contrast.{name} and detail.{name}, read merge()"
            )
        return super().__getattr__(name)

    def merge(self) -> tuple[Tensor, Tensor | None]:
        """Return kernel and bias of the plain convolution with the same function, with their gradients' graph."""
        kernel = _aggregation(
            self.contrast.weight, self.detail.weight, self.contrast_theta, self.detail_theta, self.contrast.own_tap
        )
        if self.contrast.bias is None or self.detail.bias is None:
            return kernel, None
        contrast, detail = self.contrast_theta.sigmoid(), self.detail_theta.sigmoid()
        return kernel, contrast * self.contrast.bias + detail * self.detail.bias

    def forward(self, input: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept = None  # an optimizer's step may follow, and a fused one leaves no trace
            kernel, bias = self.merge()
        else:
            kernel, bias = self._merge_once()
        return convolve(input, self.contrast, kernel, bias)

    def _merge_once(self) -> tuple[Tensor, Tensor | None]:
        parameters = list(self.parameters())
        if any(map(_is_uncounted, parameters)):
            return self.merge()
        state = [number for parameter in parameters for number in (parameter._version, parameter.data_ptr())]
        state.append(torch.is_inference_mode_enabled())
        kept = self._kept
        if kept is None or kept.state != state or not all(map(operator.is_, kept.parameters, parameters)):
            merged = self.merge()
            if type(merged[0]) is not Tensor:  # a stand-in, of a tracer
                return merged
            kept = self._kept = _Kept(parameters, state, merged)
        return kept.merged

    def _apply(self, *args: Any, **kwargs: Any) -> "DAConv":
        self._kept = None  # to(), half(), cuda() and the like exchange the parameters' data behind their backs
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> "DAConv":
        """Switch between training and inference, and forget the kept kernel."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def extra_repr(self) -> str:
        """Return the arguments, as `nn.Conv2d` shows them."""
        return str(self.contrast.extra_repr())  # type: ignore[no-untyped-call]


GEOMETRY = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
"""What a convolution is made of, beside its parameters: names of arguments and attributes of `nn.Conv2d`."""


def decouple_conv_layer(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> DAConv | nn.Conv2d:
    """Return the layer to write in place of `nn.Conv2d(...)`: a `DAConv`, or for a 1x1 kernel an `nn.Conv2d`.

    A 1x1 kernel has no neighbours to be compared with: its detail-aware unit would be zero.

    Raises:
        ValueError: as `DAConv`.
    """
    is_single = kernel_size == 1 or (not isinstance(kernel_size, int) and tuple(kernel_size) == (1, 1))
    layer = nn.Conv2d if is_single else DAConv
    rest: dict[str, Any] = {"padding_mode": padding_mode, "device": device, "dtype": dtype}
    return layer(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **rest)


@dataclass
class Conversion:
    """What `to_daconv` did, by the modules' names."""

    replaced: list[str] = field(default_factory=list)
    """Convolutions that are a `DAConv` now."""
    left: dict[str, str] = field(default_factory=dict)
    """Convolutions that stayed as they were, and why."""


def to_daconv(module: nn.Module, *, keep_function: bool = False) -> tuple[nn.Module, Conversion]:
    """Return a copy of a network with its convolutions replaced by `DAConv`, and a report.

    Args:
        module: any network, or a single convolution.
        keep_function: start from the function of the replaced layers (both units at half their kernel), so that a
            trained network can be continued; else the new layers are freshly initialised.

    Left as they are: 1x1 kernels, kernels of which no tap reads the output pixel's own position, subclasses of
    `nn.Conv2d`, convolutions whose weight or bias is computed (spectral norm) or shared with another module, those with
    hooks, added parts or patched methods, and those of other dimensions or transposed. A convolution that is used in
    several places is replaced by one.

    Raises:
        ValueError: nothing can be replaced, or the network cannot be copied.
    """
    tied = _tied_parameters(module)
    report = Conversion()

    def replacement(name: str, child: nn.Module) -> nn.Module | None:
        if isinstance(child, DAConv):
            report.left[name] = "decoupled already"
        if not isinstance(child, _ANY_CONV):
            return None
        reason = _reason_to_leave(child, tied)
        if reason or not isinstance(child, nn.Conv2d):
            report.left[name] = reason
            return None
        report.replaced.append(name)
        return _decouple(child, keep_function)

    converted = _replaced(module, replacement)
    if not report.replaced:
        found = "; ".join(f"{name or 'itself'}: {reason}" for name, reason in report.left.items())
        raise ValueError(f"no convolution to replace in {type(module).__name__} ({found or 'it has none'})")
    return converted, report


def merge_daconv(module: nn.Module) -> nn.Module:
    """Return a copy of a network with every `DAConv`, `CAUnit` and `DAUnit` merged into a plain `nn.Conv2d`.

    The copy is the plain network: the same classes, the same state-dict keys, the same function.

    Raises:
        ValueError: there is nothing to merge; or a layer to merge has hooks, or shares a parameter with another module;
            or the network cannot be copied.
    """
    merged: list[str] = []
    tied = _tied_parameters(module)

    def replacement(name: str, child: nn.Module) -> nn.Module | None:
        if isinstance(child, DAConv | _CentredConv2d):
            if any(id(parameter) in tied for parameter in child.parameters()):
                raise ValueError(f"{name} shares a parameter with another module: merging would separate them")
            if any(_has_hooks(part) for part in child.modules()):
                raise ValueError(f"{name} has hooks, which merging would lose: remove them first")
        if isinstance(child, DAConv):
            merged.append(name)
            return _plain((child.contrast, child.detail), *child.merge())
        if isinstance(child, _CentredConv2d):
            merged.append(name)
            return _plain((child,), child.kernel(), child.bias)
        return None

    with torch.no_grad():
        plain = _replaced(module, replacement)
    if not merged:
        raise ValueError(f"{type(module).__name__} holds no DAConv: it is a plain network already")
    return plain


def own_tap(conv: nn.Conv2d) -> tuple[int, int]:
    """Return row and column of the kernel's tap that reads the output pixel's own input position.

    Output o reads input o * stride - padding + tap * dilation, so the tap is padding / dilation.

    Raises:
        ValueError: there is no such tap, or it is the only one.
    """
    taps = []
    if conv.kernel_size == (1, 1):
        raise ValueError("a 1x1 kernel has no neighbours: its detail-aware unit is zero; use nn.Conv2d")
    for axis, (before, _) in enumerate(_padding(conv)):
        size, dilation = conv.kernel_size[axis], conv.dilation[axis]
        if before % dilation or before // dilation >= size:
            raise ValueError(
                f"no tap reads the output pixel's own position: padding {conv.padding}, dilation {conv.dilation}, "
                f"kernel {conv.kernel_size}: padding must be a multiple of dilation below dilation * kernel_size"
            )
        taps.append(before // dilation)
    return taps[0], taps[1]


def convolve(input: Tensor, like: nn.Conv2d, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with `kernel` and the stride, padding, dilation and groups of `like`."""
    if like.padding_mode == "zeros":
        return F.conv2d(input, kernel, bias, like.stride, like.padding, like.dilation, like.groups)
    (top, bottom), (left, right) = _padding(like)
    padded = F.pad(input, (left, right, top, bottom), mode=like.padding_mode)
    return F.conv2d(padded, kernel, bias, like.stride, 0, like.dilation, like.groups)


def _padding(conv: nn.Conv2d) -> list[tuple[int, int]]:
    """Return rows and columns added before and after the input."""
    if isinstance(conv.padding, str):
        totals = [
            d * (k - 1) if conv.padding == "same" else 0 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
        ]
        return [(total // 2, total - total // 2) for total in totals]
    amounts = (conv.padding, conv.padding) if isinstance(conv.padding, int) else conv.padding  # set by hand
    return [(amount, amount) for amount in amounts]


_ANY_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _tied_parameters(module: nn.Module) -> set[int]:
    """Return the ids of parameters that several modules hold."""
    seen: set[int] = set()
    tied = set()
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            if id(parameter) in seen:
                tied.add(id(parameter))
            seen.add(id(parameter))
    return tied


def _reason_to_leave(conv: nn.Module, tied: set[int]) -> str:
    if isinstance(conv, _CentredConv2d):
        return "decoupled already"
    if not isinstance(conv, nn.Conv2d):
        return f"{type(conv).__name__} is not a two-dimensional convolution"
    if type(conv) is not nn.Conv2d:
        return f"{type(conv).__name__} is a subclass of nn.Conv2d"
    if dict(conv.named_parameters(recurse=False)).keys() | {"bias"} != {"weight", "bias"} or dict(conv.named_buffers()):
        return "its weight or bias is computed"
    if _has_hooks(conv):
        return "it has hooks, which would be lost"
    if changed := sorted(conv.__dict__.keys() - _PLAIN_ATTRIBUTES) + list(conv._modules):
        return f"it was given {', '.join(changed)}, which would be lost"
    if any(id(parameter) in tied for parameter in conv.parameters()):
        return "its weight is shared with another module"
    try:
        own_tap(conv)
    except ValueError as error:
        return str(error)
    return ""


_PLAIN_ATTRIBUTES = nn.Conv2d(1, 1, 1).__dict__.keys()


def _has_hooks(module: nn.Module) -> bool:
    on_parameters = any(parameter._backward_hooks for parameter in module.parameters(recurse=False))
    return on_parameters or any(value for name, value in module.__dict__.items() if name.endswith("_hooks") and value)


def _arguments(conv: nn.Conv2d) -> dict[str, Any]:
    arguments = {name: getattr(conv, name) for name in GEOMETRY}
    return {**arguments, "bias": conv.bias is not None, "device": conv.weight.device, "dtype": conv.weight.dtype}


def _decouple(conv: nn.Conv2d, keep_function: bool) -> DAConv:
    layer = DAConv(**_arguments(conv))
    if not conv.weight.is_contiguous():
        layer = layer.to(memory_format=torch.channels_last)
    if keep_function:
        with torch.no_grad():
            # K = s (W_c + d S_c) + s (W_d - d S_d) is W for W_c = W_d = W / 2s.
            for unit in (layer.contrast, layer.detail):
                unit.weight.copy_(conv.weight / (2 * layer.contrast_theta.sigmoid()))
                if unit.bias is not None and conv.bias is not None:
                    unit.bias.copy_(conv.bias / (2 * layer.contrast_theta.sigmoid()))
    layer.requires_grad_(conv.weight.requires_grad)
    for unit in (layer.contrast, layer.detail):
        if unit.bias is not None and conv.bias is not None:
            unit.bias.requires_grad_(conv.bias.requires_grad)
    return layer.train(conv.training)


def _plain(units: Sequence[nn.Conv2d], kernel: Tensor, bias: Tensor | None) -> nn.Conv2d:
    like = units[0]
    conv = nn.utils.skip_init(nn.Conv2d, **_arguments(like))
    assert isinstance(conv, nn.Conv2d)
    conv.weight = nn.Parameter(kernel.detach().clone())  # in its memory format
    if conv.bias is not None and bias is not None:
        conv.bias.copy_(bias)
        conv.bias.requires_grad_(any(unit.bias is not None and unit.bias.requires_grad for unit in units))
    conv.weight.requires_grad_(any(unit.weight.requires_grad for unit in units))
    return conv.train(like.training)


def _replaced(module: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Return a copy of `module` in which each sub-module for which `replacement` returns another is that other."""
    news: dict[int, nn.Module] = {}
    inside: set[int] = set()  # parts of what is replaced as a whole
    for name, child in module.named_modules():
        if id(child) in inside:
            continue
        new = replacement(name, child)
        if new is not None or isinstance(child, DAConv):
            inside |= {id(part) for part in child.modules()}
        if new is not None:
            news[id(child)] = new
    try:
        return copy.deepcopy(module, memo=dict(news))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({error}): computed tensors that it keeps, as pruning and the "
            "older weight norm do, must be made permanent first"
        ) from None
