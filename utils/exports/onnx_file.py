"""The correction as an ONNX file: a photo in, the photo out; or a small copy in, its curves out."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models import Corrector, curves
from models.corrector import shrink

from ..colour import from_linear, to_linear
from ..files import atomic_path
from .recording import UnknownOperator, record

OPSET = 18
"""The first version of ONNX's operators whose Resize reduces without aliasing."""
NEEDED = ("onnx", "onnxruntime")
FREE = ("batch", 3, "height", "width")
LARGEST_DIFFERENCE = 1 / 255
"""By how much a written file may differ from the network where it is tried, in a photo's values."""


class ExportError(Exception):
    """A network that cannot be written as ONNX, or a package that is missing. The message says what to do."""


class Report(NamedTuple):
    """What was tried on a written file."""

    size: int
    """Bytes of the file."""
    difference: float
    """Largest difference from the network, of a photo's values in [0, 1]."""


def require_packages() -> None:
    """Check that the packages are there that write and try ONNX files.

    Raises:
        ExportError: one is missing.
    """
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ExportError(f"{name} is not installed: pip install -r requirements-export.txt") from None


class CurvesOfColours(nn.Module):
    """The curves of small copies in colours of other primaries than sRGB's, with its transfer function: Display P3.

    The network sees sRGB; the change is brought into the copy's own colours, and the curves are fitted there. A copy
    without colours gets one curve for all channels, so that it stays without.
    """

    def __init__(self, corrector: Corrector) -> None:
        super().__init__()
        self.corrector = corrector

    def forward(self, small: Tensor, to_srgb: Tensor) -> Tensor:
        """Return curves `(B, 3, 3, h, w)`, as `models.curves.fit` has them.

        Args:
            small: `(B, 3, h, w)` in [0, 1].
            to_srgb: `(3, 3)`, from the linear light of its primaries to that of sRGB's; a unit matrix for sRGB.
        """
        seen = _in_primaries(small, to_srgb)
        corrected = self.corrector.corrected(seen)
        from_srgb = _inverse(to_srgb)
        change = _in_primaries(corrected, from_srgb) - _in_primaries(seen, from_srgb)
        return curves.fit(small, small + change)


def _in_primaries(photo: Tensor, matrix: Tensor) -> Tensor:
    """Return `(B, 3, h, w)` in other primaries, clipped to [0, 1]."""
    light = to_linear(photo).flatten(2)  # (B, 3, h w)
    return from_linear((matrix @ light).clamp(0, 1)).unflatten(2, photo.shape[-2:])


def _inverse(matrix: Tensor) -> Tensor:
    """Return the inverse of a `(3, 3)` matrix, by cross products: ONNX has no operator for it."""
    first, second, third = matrix[0], matrix[1], matrix[2]
    columns = torch.stack((_cross(second, third), _cross(third, first), _cross(first, second)), dim=1)
    return columns / (first * columns[:, 0]).sum()


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[[1, 2, 0]] * b[[2, 0, 1]] - a[[2, 0, 1]] * b[[1, 2, 0]]


class Curves(nn.Module):
    """A corrector's curves of small copies in sRGB: `(B, 3, h, w)` in [0, 1] to `(B, 3, 3, h, w)`."""

    def __init__(self, corrector: Corrector) -> None:
        super().__init__()
        self.corrector = corrector

    def forward(self, small: Tensor) -> Tensor:
        """Return `Corrector.maps`."""
        return self.corrector.maps(small)


def write_onnx(path: Path, module: nn.Module, facts: dict[str, Any], *, half: bool = False) -> Report:
    """Write a correction as an ONNX file, check it, and try it beside the network.

    Args:
        path: NAME.onnx.
        module: what to write, on the CPU: a `Corrector` takes `photo`, `strength` and `exposure` and gives `corrected`;
            `Curves` takes `small` and gives `curves`; `CurvesOfColours` takes `to_srgb` besides.
        facts: what the file is to tell of itself, as its metadata.
        half: store the network's weights in 16 bits; the arithmetic stays in 32.

    Raises:
        ExportError: a package is missing, or the network cannot be written: it calls something that has no translation,
            or what ONNX makes of it is something else.
        OSError: the folder is missing, read-only or full.
    """
    require_packages()
    import onnx

    module = module.eval()
    side = _corrector_of(module).working_size
    try:
        model = _model(module, _inputs(module, 2, 2 * side + 5, 3 * side + 9))
    except UnknownOperator as error:
        raise ExportError(str(error)) from None
    if half:
        _halve(model)
    model.doc_string = "Exposure correction by local curves. Colours are sRGB in [0, 1]; black and white stay."
    onnx.helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    difference = _largest_difference(data, module, side)
    if not difference <= LARGEST_DIFFERENCE:
        raise ExportError(f"what ONNX makes of this network differs from it by {difference:.2g}: it is not written")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return Report(len(data), difference)


def _corrector_of(module: nn.Module) -> Corrector:
    corrector = module if isinstance(module, Corrector) else module.corrector
    assert isinstance(corrector, Corrector)
    return corrector


def _inputs(module: nn.Module, count: int, height: int, width: int) -> dict[str, Tensor]:
    """Return noise on ramps, of a size, as what a module takes."""
    draw = torch.Generator().manual_seed(height)
    photo = torch.rand(count, 3, height, width, generator=draw).lerp(torch.linspace(0, 1, width), 0.7)
    if isinstance(module, Corrector):
        return {"photo": photo, "strength": torch.tensor(0.9), "exposure": torch.tensor(0.5)}
    small = shrink(photo, _corrector_of(module).working_size)
    return {"small": small, "to_srgb": torch.eye(3)} if isinstance(module, CurvesOfColours) else {"small": small}


def _model(module: nn.Module, inputs: dict[str, Tensor]) -> Any:
    """Return an ONNX model of a module, for any number of photos of any size."""
    from onnx import TensorProto, helper, numpy_helper

    graph, name = record(module, inputs)
    given = [
        helper.make_tensor_value_info(key, TensorProto.FLOAT, FREE if value.ndim == 4 else [*value.shape])
        for key, value in inputs.items()
    ]
    output, shape = ("corrected", FREE) if "photo" in inputs else ("curves", (FREE[0], 3, *FREE[1:]))
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
    nodes = [helper.make_node(node.operator, node.inputs, node.outputs, **node.attributes) for node in graph.nodes]
    nodes.append(helper.make_node("Identity", [name], [output]))
    constants = [numpy_helper.from_array(value, key) for key, value in graph.constants.items()]
    whole = helper.make_graph(nodes, "correction", given, [result], constants)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _halve(model: Any) -> None:
    """Store a model's weights in 16 bits, and widen them where they are used."""
    import onnx

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or not tensor.dims:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halved = values.astype(np.float16)
        if not np.isfinite(halved).all():
            raise ExportError(f"{tensor.name} has values of up to {abs(values).max():.2g}: too large for 16 bits")
        casts.append(onnx.helper.make_node("Cast", [tensor.name + ".half"], [tensor.name], to=onnx.TensorProto.FLOAT))
        tensor.CopyFrom(onnx.numpy_helper.from_array(halved, tensor.name + ".half"))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _largest_difference(data: bytes, module: nn.Module, side: int) -> float:
    """Return the largest difference between a model and its module: of photos, or of photos under their curves."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    differences = []
    for height, width in ((side // 2 + 3, side // 3 + 1), (side * 2 + 1, side + 7), (side + 10, side * 3 + 5)):
        inputs = _inputs(module, 1, height, width)
        (result,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        actual = torch.from_numpy(result)
        with torch.inference_mode():
            expected = module(*inputs.values())
            if "small" in inputs:
                actual, expected = (curves.apply(inputs["small"], maps) for maps in (actual, expected))
        differences.append((actual - expected).abs().max().item())
    return float(np.max(differences))  # NaN if one is
