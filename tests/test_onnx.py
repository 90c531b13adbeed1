import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from torch import nn

import export
from models import NETWORKS, Corrector, Network, build_generator, curves, grain
from models.corrector import shrink
from utils.exports.onnx_file import CurvesOfColours, ExportError, write_onnx
from utils.exports.recording import record
from utils.exports.site import find_runtime
from utils.files import sha256
from utils.photos.predictor import Predictor
from utils.photos.reading import from_srgb, to_srgb
from utils.training.checkpoint import save_checkpoint
from utils.weights import save_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZES = [
    (1, 1),
    (1, 9),
    (7, 1),
    (2, 3),
    (31, 47),
    (48, 48),
    (48, 21),
    (49, 47),
    (64, 300),
    (333, 250),
    (1000, 3),
    (801, 1203),
]


def network_of(model, conv="plain"):
    """A network that changes photos, each channel in its own way."""
    torch.manual_seed(1)
    architecture = {"model": model, "conv": conv, "layer_count_of_every_unet": [2, 1]}
    architecture |= {"first_layer_out_channels_of_every_unet": [4, 4], "shown_brighter": 1.5}
    network = build_generator(SimpleNamespace(**architecture)).eval()
    with torch.no_grad():
        last = {"zero_dce": "convs.6", "prenet": "exit"}.get(model)
        for head in [network.get_submodule(last)] if last else [unet.head for unet in network.unets]:
            parts = [head.contrast, head.detail] if hasattr(head, "contrast") else [head]
            for part in parts:
                part.weight.normal_(std=0.15)
                part.bias.copy_(torch.linspace(-0.15, 0.3, len(part.bias)))
    return network, architecture


def weights_of(path, model="msec"):
    network, architecture = network_of(model)
    sizes = {"working_size": 48, "least_size": 32}
    save_weights(path, network.state_dict(), architecture=architecture, training={}, **sizes)
    return path


@functools.lru_cache(maxsize=2)
def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(path, **inputs):
    return session(path).run(None, {name: np.asarray(value, np.float32) for name, value in inputs.items()})[0]


def photo_of(height, width, count=1):
    draw = torch.Generator().manual_seed(height * width)
    return torch.rand(count, 3, height, width, generator=draw).lerp(torch.linspace(0, 1, width), 0.5)


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.usefixtures("thin_prenet")
def test_photos_of_every_size_as_the_predictor_makes_them(model, tmp_path, capsys):
    weights, path = weights_of(tmp_path / "w.safetensors", model), tmp_path / "new" / "photo.onnx"
    assert export.main([str(weights), "-o", str(path), "--half"]) == 0
    assert f"{path}: {model}, ONNX opset 18" in capsys.readouterr().out
    onnx.checker.check_model(str(path), full_check=True)
    facts = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    assert (facts["working_size"], facts["least_size"]) == ("48", "32")
    assert facts["weights_sha256"] == sha256(weights) and facts["licence"] == "MIT"
    predictor = Predictor.from_weights(weights, "cpu")
    for size in [*SIZES, (4000, 400)] if model == "msec" else SIZES:
        photo = photo_of(*size)
        result = run(path, photo=photo, strength=0.7, exposure=-0.4)
        expected = predictor.correct(photo, 0.7, -0.4).numpy()
        assert result.shape == expected.shape and np.abs(result - expected).max() < 1e-4, size
        assert size < (4, 4) or np.abs(result - photo.numpy()).max() > 0.02
    photos = photo_of(80, 60, count=3)
    assert np.abs(run(path, photo=photos, strength=1, exposure=0) - predictor.correct(photos).numpy()).max() < 1e-4


def test_curves_for_programs_that_apply_them_themselves(tmp_path):
    weights, whole, half = weights_of(tmp_path / "w.safetensors"), tmp_path / "curves.onnx", tmp_path / "half.onnx"
    assert export.main([str(weights), "-o", str(whole), "--curves"]) == 0
    assert export.main([str(weights), "-o", str(half), "--curves", "--half"]) == 0
    count = sum(parameter.numel() for parameter in network_of("msec")[0].parameters())
    assert whole.stat().st_size - half.stat().st_size > 1.5 * count  # bytes; biases stay whole
    predictor, photo = Predictor.from_weights(weights, "cpu"), photo_of(150, 100)
    small = shrink(photo, 48)
    for path in (whole, half):
        maps = torch.from_numpy(run(path, small=small))
        assert maps.shape == (1, 3, 3, 48, 32)
        applied = curves.apply(grain.reduce(photo, maps), maps)
        assert (applied - predictor.correct(photo)).abs().max() < 1e-4


def test_curves_in_other_colours_are_those_of_the_predictor(tmp_path):
    from test_page import p3_profile

    corrector = Corrector(network_of("msec")[0], 48)
    path, profile = tmp_path / "colours.onnx", p3_profile()
    write_onnx(path, CurvesOfColours(corrector), {})
    with Image.open(REPOSITORY / "data" / "examples" / "painted_house_+1.5ev.jpg") as example:
        wide = from_srgb(example.convert("RGB").resize((48, 40)), profile, "RGB")
    to_srgb_ = [[1.2249401, -0.2249402, 0], [-0.0420569, 1.0420571, 0], [-0.0196376, -0.0786361, 1.0982735]]
    small = torch.from_numpy(np.array(wide)).permute(2, 0, 1)[None].float() / 255
    maps = torch.from_numpy(run(path, small=small, to_srgb=to_srgb_))
    expected = Predictor(corrector.network, 48).fit(wide, profile)[None]
    assert (curves.apply(small, maps) - curves.apply(small, expected)).abs().quantile(0.99) < 2 / 255
    plain = Predictor(corrector.network, 48).fit(to_srgb(wide, profile))[None]
    assert (curves.apply(small, plain) - curves.apply(small, expected)).abs().quantile(0.99) > 4 / 255  # not the same
    same = torch.from_numpy(run(path, small=small, to_srgb=np.eye(3)))
    assert (curves.apply(small, same) - curves.apply(small, corrector.maps(small))).abs().max() < 1e-4
    grey = small.mean(dim=1, keepdim=True).expand_as(small).contiguous()
    maps = run(path, small=grey, to_srgb=np.eye(3))
    assert (maps[:, :, 0] == maps[:, :, 1]).all() and np.abs(maps).max() > 0.1


@pytest.mark.parametrize("model", NETWORKS)
def test_a_checkpoint_of_daconv_is_merged(model, tmp_path, small_config):
    network, architecture = network_of(model, "daconv")
    state = {"config": {**small_config, **architecture, "laplacian_level_count": 2, "working_size": 48}, "history": []}
    from utils.training.state import TrainingState

    checkpoint = {**dict.fromkeys(TrainingState.ENTRIES), **state, "generator": network.state_dict()}
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    path = tmp_path / "photo.onnx"
    assert export.main([str(tmp_path / "best.pt"), "-o", str(path)]) == 0
    photo = photo_of(70, 90)
    expected = Corrector(network, 48)(photo).detach().numpy()
    assert np.abs(run(path, photo=photo, strength=1, exposure=0) - expected).max() < 1e-4
    kernels = {node.input[1] for node in onnx.load(str(path)).graph.node if node.op_type == "Conv"}
    assert len(kernels) == sum(isinstance(module, nn.Conv2d) for module in network_of(model)[0].modules())


class Strange(Network):
    """A network that does what has no translation, or what depends on a size in Python."""

    def __init__(self, does):
        super().__init__()
        self.does = does

    def forward(self, photo):
        return [self.does(photo)]


def test_what_cannot_be_written_is_said_and_not_written(tmp_path):
    path = tmp_path / "x.onnx"
    with pytest.raises(ExportError, match="erfinv has no translation"):
        write_onnx(path, Corrector(Strange(lambda x: x.erfinv()), 48), {})
    with pytest.raises(ExportError, match="differs from it by 0."):
        write_onnx(path, Corrector(Strange(lambda x: x * (0.5 if x.shape[-1] > x.shape[-2] else 1)), 48), {})
    large = Corrector(network_of("msec")[0], 48)
    with torch.no_grad():
        large.network.unets[0].head.weight.fill_(1e5)
    with pytest.raises(ExportError, match="too large for 16 bits"):
        write_onnx(path, large, {}, half=True)
    assert not list(tmp_path.iterdir())


def test_photos_turned_over_are_followed(tmp_path):
    for does in (lambda x: x.flip(2).sqrt(), lambda x: x.flip((2, -1)).sqrt(), lambda x: torch.flip(x, [-2]).sqrt()):
        assert write_onnx(tmp_path / "x.onnx", Corrector(Strange(does), 48), {}).difference < 1e-4


def test_sizes_are_computed_as_python_computes_them():
    class Sizes(nn.Module):
        def forward(self, photo):
            height, width = photo.shape[-2:]
            longest = torch.sym_max(height, width)
            sizes = [
                -(-height // 3),
                (width + 3) % 5,
                curves.rounded(height, 2),
                curves.rounded(width * 7, longest),
                100 - width,
                2 * height,
            ]
            return photo.new_zeros(torch.sym_min(sizes[0], 50), *[size + 1 for size in sizes[1:]])

    graph, name = record(Sizes(), {"photo": torch.rand(1, 3, 17, 13)})
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node(node.operator, node.inputs, node.outputs, **node.attributes) for node in graph.nodes]
    given = helper.make_tensor_value_info("photo", kind, [1, 3, "height", "width"])
    constants = [onnx.numpy_helper.from_array(value, key) for key, value in graph.constants.items()]
    result = helper.make_tensor_value_info(name, kind, None)
    whole = helper.make_graph(nodes, "sizes", [given], [result], constants)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for height, width in ((17, 13), (3, 3), (5, 11), (9, 2), (1, 7), (7, 14)):
        expected = Sizes()(torch.rand(1, 3, height, width)).shape
        assert session.run(None, {"photo": np.zeros((1, 3, height, width), np.float32)})[0].shape == tuple(expected)


def test_usage_and_what_is_missing(tmp_path, capsys, monkeypatch):
    weights = weights_of(tmp_path / "w.safetensors")
    (tmp_path / "site").mkdir()
    for words, error in (
        ([], "say what to write"),
        (["-o", "x.onnx", "--page", "site"], "say what to write"),
        (["-o", "x.pb"], "must end in .safetensors or .onnx"),
        (["-o", "x.safetensors", "--curves"], "a weights file already"),
        (["--page", str(tmp_path / "new"), "--half"], "for NAME.onnx"),
        (["--page", str(tmp_path / "site")], "--overwrite"),
    ):
        with pytest.raises(SystemExit, match="2"):
            export.main([str(weights), *words])
        assert error in capsys.readouterr().err
    with pytest.raises(ExportError, match="npm ci --prefix page"):
        find_runtime(tmp_path / "page")
    monkeypatch.setattr("utils.exports.onnx_file.NEEDED", ("onnx", "nothing_of_this_name"))
    assert export.main([str(weights), "-o", str(tmp_path / "x.onnx")]) == 1
    assert (
        "ERROR nothing_of_this_name is not installed: pip install -r requirements-export.txt" in capsys.readouterr().err
    )
    assert not (tmp_path / "x.onnx").exists()


def test_the_page_is_assembled(tmp_path):
    from utils.exports.site import RUNTIMES, write_site

    source = tmp_path / "page"
    runtime = source / "node_modules" / "onnxruntime-web" / "dist"
    runtime.mkdir(parents=True)
    runtimes = {name for names in RUNTIMES.values() for name in names}
    for name in runtimes:
        (runtime / name).write_text(name)
    for path in (REPOSITORY / "page").glob("*.*"):
        if path.is_file():
            (source / path.name).write_bytes(path.read_bytes())
    corrector, facts = Corrector(network_of("zero_dce")[0], 48), {"model": "zero_dce", "working_size": 48}
    versions = []
    for _ in range(2):
        size = write_site(tmp_path / "site", source, corrector, facts)
        files = {path.name for path in (tmp_path / "site").iterdir()}
        assert size == sum((tmp_path / "site" / name).stat().st_size for name in files)
        assert {"index.html", "model.onnx", "files.js", *runtimes} <= files and "package.json" not in files
        told = json.loads((tmp_path / "site" / "model.json").read_text())
        assert len(told.pop("trial")["means"]) == 9 and told == facts
        version, listed, _ = (tmp_path / "site" / "files.js").read_text().splitlines()
        kept = set(json.loads(listed.removeprefix("self.FILES = ").removesuffix(";")))
        assert kept == files - {"index.html", "service-worker.js", "files.js", *runtimes} | {"./"}
        versions.append(version)
        (source / "style.css").write_text("/* changed */")
    assert versions[0] != versions[1]  # else browsers would keep the old page
