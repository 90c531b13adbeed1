"""Record what a module does to its inputs, as a graph of ONNX operators that holds for inputs of every size.

torch has an exporter of its own. It proves things about every size that occurs in a network, which takes it minutes for
a generator whose levels are padded to multiples and cropped again; running the module once and writing down what was
called takes a second. In return, whoever records must try the graph at other sizes (`onnx_file` does):

- where the module asks about a size in an `if`, the answer at the sizes of the example is the one that is recorded;
- sizes must be whole numbers, by operators, `torch.sym_max` and `torch.sym_min`: `max` and `min` choose at once;
- only the first, second to last and last dimension of the inputs may be free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class UnknownOperator(Exception):
    """A module calls something that has no translation. The message names it."""


class Node(NamedTuple):
    """An operator of ONNX with the names of its inputs and outputs."""

    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


class Graph:
    """Operators in the order of their computation, and the constants that they use."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self._known: dict[Any, str] = {}

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Append an operator; return the name of its output, or their names. The same of sizes is appended once."""
        key = (operator, inputs, tuple(sorted(attributes.items()))) if operator in _OF_SIZES else None
        if key in self._known:
            return self._known[key]
        names = [f"{operator}_{len(self.nodes)}" + (f"_{index}" if outputs > 1 else "") for index in range(outputs)]
        self.nodes.append(Node(operator, list(inputs), names, attributes))
        if key is not None:
            self._known[key] = names[0]
        return names if outputs > 1 else names[0]

    def constant(self, value: npt.NDArray[Any], name: str = "") -> str:
        """Return the name of a constant; small ones are kept once."""
        key = (value.dtype.str, value.shape, value.tobytes()) if value.size <= 16 else None
        if key in self._known:
            return self._known[key]
        name = name if name and name not in self.constants else f"constant_{len(self.constants)}"
        self.constants[name] = value
        if key is not None:
            self._known[key] = name
        return name


_OF_SIZES = {"Shape", "Gather", "Add", "Sub", "Mul", "Div", "Mod", "Cast", "Max", "Min", "Concat", "Neg"}


class Size(int):
    """A length in pixels of the example that knows how to compute it for others: a scalar of 64 bits in the graph."""

    graph: Graph
    name: str

    def __new__(cls, value: int, graph: Graph, name: str) -> Size:
        """Return the length of the example with its name in the graph."""
        size = super().__new__(cls, value)
        size.graph, size.name = graph, name
        return size

    def _with(self, operator: str, other: Any, value: int, swapped: bool = False) -> Size:
        if not isinstance(other, int):
            return NotImplemented
        names = [self.name, _integer(self.graph, other)]
        return Size(value, self.graph, self.graph.add(operator, *(reversed(names) if swapped else names)))

    def __add__(self, other: Any) -> Size:
        return self._with("Add", other, int(self) + int(other))

    def __sub__(self, other: Any) -> Size:
        return self._with("Sub", other, int(self) - int(other))

    def __rsub__(self, other: Any) -> Size:
        return self._with("Sub", other, int(other) - int(self), swapped=True)

    def __mul__(self, other: Any) -> Size:
        return self._with("Mul", other, int(self) * int(other))

    def __floordiv__(self, other: Any) -> Size:  # by the rest, as ONNX cuts where Python rounds down
        return (self - self % other)._with("Div", other, int(self) // int(other))

    def __mod__(self, other: Any) -> Size:  # of the divisor's sign in both
        return self._with("Mod", other, int(self) % int(other))

    def __neg__(self) -> Size:
        return Size(-int(self), self.graph, self.graph.add("Neg", self.name))

    __radd__, __rmul__ = __add__, __mul__


def _integer(graph: Graph, value: int) -> str:
    return value.name if isinstance(value, Size) else graph.constant(np.array(value, np.int64))


class Recorder(TorchFunctionMode):
    """Write down in a graph what is called while it is entered, beginning with `inputs` by their names."""

    def __init__(self, inputs: dict[str, Tensor], names_of_constants: dict[int, str]) -> None:
        super().__init__()
        self.graph = Graph()
        self.names_of_constants = names_of_constants
        self._kept: list[Tensor] = []  # so that no other tensor gets its id
        self._names: dict[int, str] = {}
        for name, tensor in inputs.items():
            self.put(tensor, name)

    def put(self, tensor: Tensor, name: str) -> None:
        """Say what a tensor is called in the graph."""
        self._kept.append(tensor)
        self._names[id(tensor)] = name

    def knows(self, value: Any) -> bool:
        """Tell whether a value depends on the inputs."""
        if isinstance(value, tuple | list):
            return any(map(self.knows, value))
        if isinstance(value, slice):
            return self.knows((value.start, value.stop, value.step))
        return isinstance(value, Size) or (isinstance(value, Tensor) and id(value) in self._names)

    def name(self, value: Any, like: Tensor | None = None) -> str:
        """Return the name of a value; numbers become scalars of the type of `like`."""
        if isinstance(value, Tensor):
            if id(value) not in self._names:
                constant = value.detach().cpu().numpy()
                self.put(value, self.graph.constant(constant, self.names_of_constants.get(id(value), "")))
            return self._names[id(value)]
        if isinstance(value, Size):
            if like is None or like.dtype == torch.int64:
                return value.name
            return self.graph.add("Cast", value.name, to=_type(like))
        dtype = like.dtype if like is not None else torch.float32
        return self.graph.constant(torch.tensor(value, dtype=dtype).numpy())

    def shape(self, tensor: Tensor, axis: int) -> Size:
        """Return a tensor's length along an axis."""
        axis = axis % tensor.ndim
        shape = self.graph.add("Shape", self.name(tensor))
        name = self.graph.add("Gather", shape, self.graph.constant(np.array(axis, np.int64)), axis=0)
        return Size(tensor.size(axis), self.graph, name)

    def list(self, sizes: Sequence[int]) -> str:
        """Return the name of a list of integers."""
        if not any(isinstance(size, Size) for size in sizes):
            return self.graph.constant(np.array(sizes, np.int64))
        one = self.graph.constant(np.array([0], np.int64))
        names = [self.graph.add("Unsqueeze", _integer(self.graph, size), one) for size in sizes]
        return self.graph.add("Concat", *names, axis=0)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch and write down what it is."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            attribute = getattr(func, "__self__", None)
            if attribute is Tensor.shape and self.knows(args[0]):
                return tuple(self.shape(args[0], axis) for axis in range(args[0].ndim))
            value = func(*args, **kwargs)
            if attribute in (Tensor.T, Tensor.mT) and self.knows(args[0]):
                axes = [*range(args[0].ndim - 2), args[0].ndim - 1, args[0].ndim - 2]
                self.put(value, self.graph.add("Transpose", self.name(args[0]), perm=axes))
            return value
        result = func(*args, **kwargs)
        if not (self.knows(args) or self.knows([*kwargs.values()])) or name in _SILENT:
            return result
        if name in ("sym_max", "sym_min"):
            first = next(value for value in args if isinstance(value, Size))
            other = args[1] if first is args[0] else args[0]
            return first._with("Max" if name == "sym_max" else "Min", other, int(result))
        if isinstance(result, Tensor) and any(result is arg for arg in args) and name in _SAME:
            return result
        translation = _TRANSLATIONS.get(name)
        if translation is None:
            raise UnknownOperator(f"{name} has no translation to ONNX: add it to utils/exports/recording.py")
        outputs = translation(self, result, *args, **kwargs)
        if isinstance(result, Tensor):
            self.put(result, outputs)
        else:
            for tensor, output in zip(result, outputs, strict=True):
                self.put(tensor, output)
        return result


_SILENT = {"dim", "is_floating_point", "numel", "size", "is_complex", "__len__", "get_device"}
_SAME = {"to", "float", "double", "contiguous", "as_tensor", "type_as", "expand", "expand_as", "detach"}


def _type(tensor: Tensor) -> int:
    """Return ONNX's number of a tensor's type."""
    return {torch.float32: 1, torch.int64: 7, torch.bool: 9, torch.float16: 10, torch.float64: 11}[tensor.dtype]


def _elementwise(operator: str, swapped: bool = False) -> Callable[..., str]:
    def translate(r: Recorder, out: Tensor, a: Any, b: Any, **options: Any) -> str:
        _check(not options, operator, options)
        tensors = [value for value in (a, b) if isinstance(value, Tensor)]
        floats = [value for value in tensors if value.is_floating_point()]
        like = (floats or tensors)[0]
        names = [
            r.graph.add("Cast", r.name(value), to=_type(like))
            if isinstance(value, Tensor) and value.dtype != like.dtype
            else r.name(value, like)
            for value in ((b, a) if swapped else (a, b))
        ]
        return r.graph.add(operator, *names)

    return translate


def _unary(operator: str) -> Callable[..., str]:
    return lambda r, out, x, *rest, **options: r.graph.add(operator, r.name(x))


def _check(holds: bool, name: str, what: Any) -> None:
    if not holds:
        raise UnknownOperator(f"{name} with {what} has no translation to ONNX: add it to utils/exports/recording.py")


def _square(r: Recorder, out: Tensor, x: Tensor) -> str:
    return r.graph.add("Mul", r.name(x), r.name(x))


def _clamp(r: Recorder, out: Tensor, x: Tensor, min: Any = None, max: Any = None) -> str:
    name = r.name(x)
    if min is not None:
        name = r.graph.add("Max", name, r.name(min, x))
    return name if max is None else r.graph.add("Min", name, r.name(max, x))


def _exp2(r: Recorder, out: Tensor, x: Tensor) -> str:
    return r.graph.add("Pow", r.name(2.0, x), r.name(x))


def _logit(r: Recorder, out: Tensor, x: Tensor) -> str:
    name = r.name(x)
    return r.graph.add("Log", r.graph.add("Div", name, r.graph.add("Sub", r.name(1.0, x), name)))


def _cast(r: Recorder, out: Tensor, x: Tensor, *rest: Any, **options: Any) -> str:
    return r.graph.add("Cast", r.name(x), to=_type(out))


def _same(r: Recorder, out: Tensor, x: Tensor, *rest: Any, **options: Any) -> str:
    return r.name(x)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [*value]


def _conv(
    r: Recorder,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> str:
    options: dict[str, Any] = {"strides": _pair(stride), "dilations": _pair(dilation), "group": groups}
    if isinstance(padding, str):
        options["auto_pad"] = {"same": "SAME_UPPER", "valid": "VALID"}[padding]
    else:
        options["pads"] = _pair(padding) * 2
    names = [r.name(tensor) for tensor in (input, weight, bias) if tensor is not None]
    return r.graph.add("Conv", *names, kernel_shape=[*weight.shape[2:]], **options)


def _conv_transpose(
    r: Recorder,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> str:
    names = [r.name(tensor) for tensor in (input, weight, bias) if tensor is not None]
    return r.graph.add(
        "ConvTranspose",
        *names,
        kernel_shape=[*weight.shape[2:]],
        strides=_pair(stride),
        pads=_pair(padding) * 2,
        output_padding=_pair(output_padding),
        dilations=_pair(dilation),
        group=groups,
    )


def _pool(operator: str) -> Callable[..., str]:
    def translate(
        r: Recorder, out: Tensor, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *rest: Any,
        **options: Any,
    ) -> str:  # fmt: skip
        defaults = (1, False, False, True, None)
        _check(all(value in defaults for value in (*rest, *options.values())), operator, options)
        size = _pair(kernel_size)
        strides = _pair(stride) if stride else size
        extra = {"count_include_pad": 1} if operator == "AveragePool" else {}
        return r.graph.add(
            operator, r.name(input), kernel_shape=size, strides=strides, pads=_pair(padding) * 2, **extra
        )

    return translate


def _leaky_relu(r: Recorder, out: Tensor, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> str:
    return r.graph.add("LeakyRelu", r.name(input), alpha=negative_slope)


def _cat(r: Recorder, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> str:
    return r.graph.add("Concat", *map(r.name, tensors), axis=dim)


def _stack(r: Recorder, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> str:
    axis = r.graph.constant(np.array([dim % out.ndim], np.int64))
    return r.graph.add("Concat", *(r.graph.add("Unsqueeze", r.name(tensor), axis) for tensor in tensors), axis=dim)


def _pad(
    r: Recorder, out: Tensor, input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> str:
    before = [0] * (input.ndim - len(pad) // 2) + [*pad[-2::-2]]
    after = [0] * (input.ndim - len(pad) // 2) + [*pad[-1::-2]]
    modes = {"constant": "constant", "replicate": "edge", "reflect": "reflect"}
    return r.graph.add("Pad", r.name(input), r.list(before + after), r.name(value or 0.0, input), mode=modes[mode])


def _interpolate(
    r: Recorder,
    out: Tensor,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> str:
    _check(mode == "bilinear" and not align_corners and scale_factor is None, "interpolate", mode)
    lengths = r.list([r.shape(input, 0), r.shape(input, 1), *_pair(size)])
    how: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    if antialias:
        how |= {"antialias": 1, "exclude_outside": 1}
    return r.graph.add("Resize", r.name(input), "", "", lengths, **how)


def _arange(r: Recorder, out: Tensor, *bounds: Any, **options: Any) -> str:
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    _check(out.dtype == torch.int64, "arange", out.dtype)
    return r.graph.add("Range", *(_integer(r.graph, value) for value in (start, end, step)))


def _cumsum(r: Recorder, out: Tensor, x: Tensor, dim: int, **options: Any) -> str:
    _check(not options, "cumsum", options)
    return r.graph.add("CumSum", r.name(x), r.graph.constant(np.array(dim, np.int64)))


def _index_select(r: Recorder, out: Tensor, x: Tensor, dim: int, index: Tensor) -> str:
    return r.graph.add("Gather", r.name(x), r.name(index), axis=dim % x.ndim)


def _split_into(r: Recorder, x: Tensor, dim: int, lengths: list[int]) -> list[str]:
    _check(dim % x.ndim == 1 or x.ndim == 1, "splitting", f"dim={dim}, which is free")
    names = r.graph.add("Split", r.name(x), r.list(lengths), outputs=len(lengths), axis=dim % x.ndim)
    return names if len(lengths) > 1 else [names]


def _chunk(r: Recorder, out: Sequence[Tensor], x: Tensor, chunks: int, dim: int = 0) -> list[str]:
    return _split_into(r, x, dim, [part.size(dim) for part in out])


def _unbind(r: Recorder, out: Sequence[Tensor], x: Tensor, dim: int = 0) -> list[str]:
    axis = r.graph.constant(np.array([dim % x.ndim], np.int64))
    return [r.graph.add("Squeeze", name, axis) for name in _split_into(r, x, dim, [1] * len(out))]


def _reshape(r: Recorder, x: Tensor, lengths: Sequence[int]) -> str:
    return r.graph.add("Reshape", r.name(x), r.list(lengths))


def _flatten(r: Recorder, out: Tensor, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> str:
    lengths: list[int] = [r.shape(x, axis) for axis in range(x.ndim)]
    first, last = start_dim % x.ndim, end_dim % x.ndim
    return _reshape(r, x, [*lengths[:first], math.prod(lengths[first : last + 1]), *lengths[last + 1 :]])


def _unflatten(r: Recorder, out: Tensor, x: Tensor, dim: int, sizes: Sequence[int]) -> str:
    lengths: list[int] = [r.shape(x, axis) for axis in range(x.ndim)]
    axis = dim % x.ndim
    return _reshape(r, x, [*lengths[:axis], *sizes, *lengths[axis + 1 :]])


def _reduce(operator: str) -> Callable[..., str]:
    def translate(r: Recorder, out: Tensor, x: Tensor, dim: Any = None, keepdim: bool = False, **options: Any) -> str:
        _check(not options, operator, options)
        if dim is None:
            return r.graph.add(operator, r.name(x), keepdims=0)
        axes = [axis % x.ndim for axis in ([dim] if isinstance(dim, int) else dim)]
        return r.graph.add(operator, r.name(x), r.list(axes), keepdims=int(keepdim))

    return translate


def _expand_as(r: Recorder, out: Tensor, x: Tensor, other: Tensor) -> str:
    return r.graph.add("Expand", r.name(x), r.graph.add("Shape", r.name(other)))


def _where(r: Recorder, out: Tensor, condition: Tensor, a: Any, b: Any) -> str:
    return r.graph.add("Where", r.name(condition), r.name(a, out), r.name(b, out))


def _filled(value: float) -> Callable[..., str]:
    def translate(r: Recorder, out: Tensor, x: Tensor, *sizes: Any, **options: Any) -> str:
        lengths = sizes[0] if isinstance(sizes[0], tuple | list) else sizes
        return r.graph.add("Expand", r.name(value, out), r.list(lengths))

    return translate


def _narrow(r: Recorder, out: Tensor, x: Tensor, dim: int, start: int, length: int) -> str:
    return _slices(r, r.name(x), [(dim % x.ndim, start, start + length, 1)])


def _flip(r: Recorder, out: Tensor, x: Tensor, *dims: Any) -> str:
    axes = dims[0] if isinstance(dims[0], tuple | list) else dims
    return _slices(r, r.name(x), [(axis % x.ndim, -1, -(2**62), -1) for axis in axes])  # to before the first


def _slices(r: Recorder, name: str, cuts: list[tuple[int, int, int, int]]) -> str:
    axes, starts, ends, steps = (list(values) for values in zip(*cuts, strict=True))
    return r.graph.add("Slice", name, *map(r.list, (starts, ends, axes, steps)))


def _getitem(r: Recorder, out: Tensor, x: Tensor, index: Any) -> str:
    entries = [*index] if isinstance(index, tuple) else [index]
    if len(entries) == 1 and isinstance(entries[0], list):
        return r.graph.add("Gather", r.name(x), r.list(entries[0]), axis=0)
    if Ellipsis in entries:
        place = entries.index(Ellipsis)
        missing = x.ndim - sum(entry is not None for entry in entries) + 1
        entries[place : place + 1] = [slice(None)] * missing
    cuts, squeezed, added, axis = [], [], [], 0
    for position, entry in enumerate(entries):
        if entry is None:
            added.append(position - sum(isinstance(other, int) for other in entries[:position]))
            continue
        if isinstance(entry, slice):
            start, stop, step = entry.start or 0, entry.stop, entry.step or 1
            if (start, step) != (0, 1) or stop is not None:
                cuts.append((axis, start, 2**62 if stop is None else stop, step))
        else:
            _check(isinstance(entry, int), "indexing", type(entry).__name__)
            cuts.append((axis, entry, entry + 1 if entry != -1 else 2**62, 1))
            squeezed.append(axis)
        axis += 1
    name = _slices(r, r.name(x), cuts) if cuts else r.name(x)
    if squeezed:
        name = r.graph.add("Squeeze", name, r.list(squeezed))
    return r.graph.add("Unsqueeze", name, r.list(added)) if added else name


_TRANSLATIONS: dict[str, Callable[..., Any]] = {
    **{
        f"{prefix}{name}{suffix}": _elementwise(operator, swapped=prefix == "__r")
        for name, operator in {
            "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "truediv": "Div", "pow": "Pow", "matmul": "MatMul",
            "maximum": "Max", "minimum": "Min",
        }.items()
        for prefix, suffix in (("", ""), ("__", "__"), ("__r", "__"), ("__i", "__"))
    },
    **{f"__{name}__": _elementwise(operator) for name, operator in {
        "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "eq": "Equal"}.items()},
    **{name: _elementwise(operator) for name, operator in {
        "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "eq": "Equal"}.items()},
    **{name: _unary(operator) for name, operator in {
        "neg": "Neg", "__neg__": "Neg", "abs": "Abs", "log": "Log", "exp": "Exp", "sqrt": "Sqrt", "sigmoid": "Sigmoid",
        "tanh": "Tanh", "relu": "Relu", "relu_": "Relu"}.items()},
    "square": _square, "clamp": _clamp, "exp2": _exp2, "logit": _logit, "where": _where,
    "rsub": _elementwise("Sub", swapped=True),
    "clamp_min": lambda r, out, x, min: _clamp(r, out, x, min),
    "clamp_max": lambda r, out, x, max: _clamp(r, out, x, None, max),
    "float": _cast, "double": _cast, "to": _cast, "as_tensor": _cast, "contiguous": _same, "detach": _same,
    "conv2d": _conv, "conv_transpose2d": _conv_transpose,
    "max_pool2d": _pool("MaxPool"), "avg_pool2d": _pool("AveragePool"),
    "leaky_relu": _leaky_relu, "cat": _cat, "stack": _stack, "pad": _pad, "interpolate": _interpolate,
    "arange": _arange, "cumsum": _cumsum, "index_select": _index_select,
    "chunk": _chunk, "split": _chunk, "unbind": _unbind,
    "flatten": _flatten, "unflatten": _unflatten, "expand_as": _expand_as,
    "mean": _reduce("ReduceMean"), "sum": _reduce("ReduceSum"), "amax": _reduce("ReduceMax"),
    "amin": _reduce("ReduceMin"),
    "new_zeros": _filled(0.0), "new_ones": _filled(1.0),
    "narrow": _narrow, "flip": _flip, "__getitem__": _getitem,
}  # fmt: skip
"""What writes each function of torch, by its name: it takes the recorder, the result and the arguments."""


def record(module: nn.Module, inputs: dict[str, Tensor]) -> tuple[Graph, str]:
    """Run a module once and return the graph of what it did and the name of its result.

    Args:
        module: takes the inputs by position and returns a tensor.
        inputs: an example of each, by the name that it gets in the graph.

    Raises:
        UnknownOperator: something that it calls has no translation.
    """
    names = {id(tensor): name for name, tensor in _constants_of(module)}
    with torch.no_grad(), Recorder(inputs, names) as recorder:
        result = module(*inputs.values())
    return recorder.graph, recorder.name(result)


def _constants_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
