"""The key `compile`, with backends that take no time: what Inductor makes of the network is another's claim."""

import csv

import pytest
import torch
from test_train import run

from utils.training.checkpoint import load_checkpoint

SMALL = (
    "laplacian_level_count=1",
    "layer_count_of_every_unet=[1]",
    "first_layer_out_channels_of_every_unet=[4]",
    "epochs=1",
    "batch_size=5",
    "seed=1",  # its two steps draw two sizes
    "begin_use_adv_loss_epoch=9",
    "image_size=[32,48]",
    "working_size=32",
    "working_size_spread=1.5",
    "ema_decay=0.9",
)
COMPILE = torch.compile


def curve(folder):
    with open(folder / "metrics.csv") as file:
        return [{name: v for name, v in row.items() if name != "images_per_second"} for row in csv.DictReader(file)]


def compile_with(monkeypatch, backend):
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", lambda network, **options: COMPILE(network, **options, backend=backend))


@pytest.mark.parametrize("conv", ["plain", "daconv"])
def test_a_compiled_run_is_the_same_and_goes_on_without(conv, small_config_path, photos, monkeypatch, capsys):
    sizes = []

    def backend(graph, inputs):
        sizes.extend(x.shape[-2:] for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[-1] > 8)
        return graph.forward

    options = (*SMALL, f"conv={conv}", *([] if conv == "plain" else ["working_size_spread=0"]))
    compile_with(monkeypatch, backend)
    assert run(small_config_path, *options, "compile=true") == 0
    assert len(set(sizes)) > (conv == "plain") and "WARNING" not in capsys.readouterr().err
    compile_with(monkeypatch, None)
    assert run(small_config_path, *options, f"model_save_dir={photos / 'plain'}") == 0
    assert curve(photos / "run") == curve(photos / "plain")
    compiled, plain = (load_checkpoint(photos / name / "last.pt") for name in ("run", "plain"))
    for name in ("generator", "discriminator", "average"):
        torch.testing.assert_close(compiled[name], plain[name], rtol=0, atol=0)
    assert run(small_config_path, *options, "epochs=2", "compile=false") == 0
    assert "resuming in epoch 2" in capsys.readouterr().err and len(curve(photos / "run")) == 2


def stop(gradient):
    raise AssertionError("expected stride 1")


class WrongBackward(torch.nn.Module):
    """A network whose backward pass stops, as compiled ones have done."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        outputs = self.network(x)
        outputs[0].register_hook(stop)
        return outputs


def no_compiler(graph, inputs):
    raise RuntimeError("no C++ compiler\nand a long story")


@pytest.mark.parametrize("way", ["compiler", "backward"])
def test_where_compiling_fails_training_goes_on_the_same(way, small_config_path, photos, monkeypatch, capsys):
    if way == "compiler":
        compile_with(monkeypatch, no_compiler)
    else:
        monkeypatch.setattr(torch, "compile", lambda network, **options: WrongBackward(network))
    assert run(small_config_path, *SMALL, "compile=true") == 0
    reason = "no C++ compiler" if way == "compiler" else "expected stride 1"
    lines = [line for line in capsys.readouterr().err.splitlines() if reason in line]
    assert len(lines) == 1 and lines[0].startswith("WARNING compile = true: ") and "without" in lines[0]
    monkeypatch.undo()
    assert run(small_config_path, *SMALL, f"model_save_dir={photos / 'plain'}") == 0
    assert curve(photos / "run") == curve(photos / "plain")


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (6, 8)])
def test_replicated_borders_have_the_gradients_of_pad(size):
    from models.pyramid import replicate

    image = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    other = image.detach().clone().requires_grad_()
    ours = replicate(image, 1, 7, 0, 2)
    pad = torch.nn.functional.pad(other, (0, 2, 1, 7), mode="replicate")
    weight = torch.rand_like(ours)
    (ours * weight).sum().backward()
    (pad * weight).sum().backward()
    assert torch.equal(ours, pad)
    torch.testing.assert_close(image.grad, other.grad, rtol=1e-12, atol=0)
