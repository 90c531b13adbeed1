import subprocess

import pytest
from test_train import run

from benchmarks import gpu


@pytest.mark.usefixtures("thin_discriminator")
def test_the_benchmark_of_a_gpu_runs_on_the_cpu(photos, small_config, monkeypatch, capsys):
    """All of its trials, on the CPU in place of the GPU, and train.py in this process."""

    def train(words, until=None):
        capsys.readouterr()
        return subprocess.CompletedProcess(words, run(gpu.ROOT / "conf.json", *words[1::2]), "", "")

    original = subprocess.run

    def launch(command, **options):
        if "torch.distributed.run" not in command:
            return original(command, **options)
        assert options["env"]["CUDA_VISIBLE_DEVICES"] == ""
        return subprocess.CompletedProcess(command, 0, "epoch 1, lr 0.1, loss 0.5, psnr 20", "")

    monkeypatch.setattr(gpu, "train", train)
    monkeypatch.setattr(gpu.subprocess, "run", launch)
    monkeypatch.setattr(gpu, "matrix_rate", lambda arithmetic, size: 1e10)
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 1)
    names = ("laplacian_level_count", "layer_count_of_every_unet", "first_layer_out_channels_of_every_unet")
    options = [f"{name}={small_config[name]}" for name in (*names, "image_size", "valid_data_dir")]
    options += ["batch_size=4", "views_per_photo=1", "num_workers=0", "working_size=32"]
    words = [word for option in options for word in ("--set", option)]
    shown = []
    monkeypatch.setattr(gpu, "print", lambda text, **options: shown.append(text), raising=False)
    assert gpu.main([str(photos / "train"), "--device", "cpu", "--sizes", "32", *words]) == 0, shown
    rows = [line for line in shown if line.startswith("| ")][1:]
    assert len(rows) == 7 and not any("fails" in row for row in rows)
    assert "differ by 0.0e+00" in rows[0] and "differ by 0.0e+00" in rows[1] and "no GPU" in rows[2]
    assert "views/s" in rows[3] and "0.5 and 0.5" in rows[6]


def test_what_does_not_hold_is_said(small_config_path, photos, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "equality", lambda config, device: [("a", "b", False)])
    for name in ("resume", "memory", "speed", "loading", "two_processes"):
        monkeypatch.setattr(gpu, name, lambda *arguments: [])
    assert gpu.main([str(photos / "train"), "--device", "cpu"]) == 1
    assert "| a | b | **fails** |" in capsys.readouterr().out
