import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, picture
from PIL import Image
from torch import nn

import export
import models
import predict
import train
from models import NETWORKS, Network, build_generator
from models.daconv import DAConv
from models.losses import reconstruction_loss
from utils.training.checkpoint import load_checkpoint, save_checkpoint
from utils.weights import load_weights, save_weights


def run(path, *overrides):
    return train.main(["--config", str(path), *(word for override in overrides for word in ("--set", override))])


pytestmark = pytest.mark.usefixtures("thin_discriminator")


class Fourth(Network):
    """What CONTRIBUTING.md asks of a new network, and nothing else."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    @classmethod
    def from_config(cls, config):
        return cls()

    def forward(self, photo):
        return [photo + self.conv(photo)]

    def losses(self, photo, outputs, target, weight=None):
        return {"reconstruction": reconstruction_loss(outputs[0], target, weight)}


@pytest.mark.parametrize("model", [*NETWORKS, "fourth"])
@pytest.mark.usefixtures("thin_prenet")
def test_train_export_and_predict_with_every_network(model, small_config_path, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.NETWORKS, "fourth", Fourth)
    assert (
        run(
            small_config_path,
            f"model={model}",
            "conv=daconv",
            "begin_use_adv_loss_epoch=9",
            "epochs=2",
            "shown_brighter=1.5",
        )
        == 0
    )
    merged = tmp_path / "new" / "merged.safetensors"
    assert export.main([str(photos / "run" / "best.pt"), "-o", str(merged)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert 0 < float(re.search(r"random input (\S+),", line)[1]) < 1e-5  # against float64: never 0

    weights = load_weights(merged)
    plain = build_generator(weights.architecture).eval()
    assert not any(isinstance(module, DAConv) for module in plain.modules())
    plain.load_state_dict(weights.state)
    checkpoint = load_checkpoint(photos / "run" / "best.pt")
    trained = build_generator(SimpleNamespace(**checkpoint["config"])).eval()
    trained.load_state_dict(checkpoint["generator"])
    brighter = 0 if model == "zero_dce" else 1.5  # without targets it cannot learn not to mind
    assert weights.architecture.shown_brighter == plain.shown_brighter == trained.shown_brighter == brighter
    photo = torch.rand(1, 3, 40, 51)
    with torch.no_grad():
        assert (plain(photo)[0] - trained(photo)[0]).abs().max() < 1e-5
    released = load_weights(photos / "run" / "best.safetensors")  # what train.py wrote is merged as well
    assert released.architecture == weights.architecture and released.state.keys() == weights.state.keys()
    for name, tensor in released.state.items():
        torch.testing.assert_close(tensor, weights.state[name], atol=1e-3, rtol=1e-3)

    picture(70, 50, seed=1).save(tmp_path / "photo.png")
    assert predict.main([str(tmp_path / "photo.png"), "-o", str(tmp_path / "out"), "-w", str(merged)]) == 0
    with Image.open(tmp_path / "out" / "photo.png") as corrected:
        assert np.asarray(corrected).shape == (50, 70, 3)


@pytest.fixture
def checkpoint(trained):
    return trained("conv=daconv") / "best.pt"


def changed(checkpoint, **entries):
    save_checkpoint(checkpoint, {**load_checkpoint(checkpoint), **entries})


def test_the_weights_of_a_plain_run_are_written_in_full(trained, tmp_path, capsys):
    run, out = trained(), tmp_path / "plain.safetensors"
    assert export.main([str(run / "best.pt"), "-o", str(out)]) == 0
    assert "merged" not in capsys.readouterr().out.splitlines()[-1]
    full, half = load_weights(out), load_weights(run / "best.safetensors")
    assert full.architecture == half.architecture
    assert all(torch.equal(tensor.half(), half.state[name].half()) for name, tensor in full.state.items())
    assert any(not torch.equal(tensor, half.state[name].float()) for name, tensor in full.state.items())


def test_a_checkpoint_that_cannot_be_merged_is_named_and_nothing_is_written(checkpoint, tmp_path, capsys):
    out = tmp_path / "merged.safetensors"
    whole = load_checkpoint(checkpoint)

    def refused(*words):
        capsys.readouterr()
        assert export.main([str(checkpoint), "-o", str(out)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(checkpoint) in error and all(word in error for word in words), error
        assert not out.exists() and not list(tmp_path.glob("*.sha256"))

    changed(checkpoint, config={**whole["config"], "conv": "plain"})
    refused("Missing key")
    changed(checkpoint, config={**whole["config"], "model": "prenet"})
    refused("PReNet", "Missing key")
    changed(checkpoint, config={**whole["config"], "model": "prenett"})
    refused("did you mean prenet?")
    for entries in ({"generator": None}, {"config": None}, {"config": [1]}, {"history": 3}):
        changed(checkpoint, **{**whole, **entries})
        refused()
    head = whole["generator"]["unets.0.head.bias"]
    changed(checkpoint, **{**whole, "generator": {**whole["generator"], "unets.0.head.bias": head * float("nan")}})
    refused("differ by nan")
    changed(checkpoint, **whole)
    changed(checkpoint, config={**whole["config"], "new_key": 1})
    refused("new_key")
    changed(checkpoint, **whole)
    (tmp_path / "merged.safetensors.sha256").mkdir()
    assert export.main([str(checkpoint), "-o", str(out)]) == 1
    assert "is a folder" in capsys.readouterr().err and not out.exists()
    (tmp_path / "merged.safetensors.sha256").rmdir()
    save_checkpoint(checkpoint, {"generator": whole["generator"]})
    refused("not a checkpoint")
    checkpoint.write_bytes(b"junk")
    refused("damaged")
    checkpoint.unlink()
    refused("No such file")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}/best.safetensors", "-o", "{run}/new.safetensors"], "a weights file already"),
        (["{run}/best.pt", "-o", "{run}/new.pt"], "must end in .safetensors"),
        (["{run}/best.pt", "-o", "{run}/best.safetensors"], "--overwrite"),
        (["{run}/best.pt"], "say what to write"),
    ],
)
def test_usage_errors(checkpoint, arguments, words, capsys):
    before = (checkpoint.parent / "best.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        export.main([word.format(run=checkpoint.parent) for word in arguments])
    assert words in capsys.readouterr().err
    assert (checkpoint.parent / "best.safetensors").read_bytes() == before


def test_a_checkpoint_before_the_first_epoch_can_be_merged_over_an_old_file(checkpoint, tmp_path):
    changed(checkpoint, history=[])
    out = tmp_path / "merged.safetensors"
    out.write_bytes(b"old")
    assert export.main([str(checkpoint), "-o", str(out), "--overwrite"]) == 0
    assert load_weights(out).training["config"]["conv"] == "daconv"


def test_merge_says_what_to_type_instead():
    words = ["my best.pt", "-o", "plain.safetensors"]
    result = subprocess.run([sys.executable, REPOSITORY / "merge.py", *words], capture_output=True, text=True)
    assert result.returncode == 2 and not result.stdout
    assert f"python export.py {shlex.join(words)}\n" in result.stderr


def test_an_unknown_network_is_refused_before_training(small_config_path, photos, capsys):
    assert run(small_config_path, "model=zerodce") == 2
    message = capsys.readouterr().err
    assert 'model = "zerodce" is unknown: did you mean zero_dce? networks are msec, zero_dce, prenet' in message
    assert not (photos / "run").exists()


def test_a_network_without_a_convolution_to_replace_is_refused(small_config_path, monkeypatch, capsys):
    class Pointwise(Fourth):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

    monkeypatch.setitem(models.NETWORKS, "pointwise", Pointwise)
    assert run(small_config_path, "model=pointwise", "conv=daconv") == 2
    assert 'conv = "daconv" does not suit model = "pointwise"' in capsys.readouterr().err


def test_another_network_or_convolution_does_not_resume(checkpoint, small_config_path, capsys):
    for change in (["model=prenet", "conv=daconv"], ["conv=plain"]):
        assert run(small_config_path, *change) == 1
        assert change[0].split("=")[0] in capsys.readouterr().err


def test_integer_buffers_survive(tmp_path):
    path = tmp_path / "w.safetensors"
    state = {"table": torch.tensor([2049, 100_000]), "kernel": torch.rand(2, 2)}
    save_weights(path, state, architecture={}, working_size=64, training={})
    loaded = load_weights(path).state
    assert torch.equal(loaded["table"], state["table"]) and torch.equal(
        loaded["kernel"], state["kernel"].half().float()
    )
