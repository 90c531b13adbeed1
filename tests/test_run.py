"""What a run leaves in its folder, what it survives, and what it says before it starts."""

import csv
import errno
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from test_train import run, same, without_speed

import train
from data import NoPhotosError, PhotoDataset
from data.sources import refuse_common_photos
from utils.training.checkpoint import CheckpointError, load_checkpoint, load_newest_checkpoint, save_checkpoint
from utils.training.plots import draw_curves

pytestmark = pytest.mark.usefixtures("thin_discriminator")


def test_the_folder_tells_what_was_run_and_where(small_config_path, small_config, photos, monkeypatch):
    monkeypatch.setattr("utils.training.run_folder.draw_curves", draw_curves)  # in full size
    assert run(small_config_path, "epochs=1", "ema_decay=0.5") == 0
    assert run(small_config_path, "epochs=2", "ema_decay=0.5") == 0
    folder = photos / "run"
    resolved = json.loads((folder / "config.json").read_text())
    assert {**small_config, "epochs": 2, "ema_decay": 0.5}.items() <= resolved.items()
    assert resolved["clip_gradient_norm"] == 0 and resolved["seed"] == 0  # what was not said
    assert run(folder / "config.json") == 0  # and it can be run
    starts = json.loads((folder / "environment.json").read_text())
    assert len(starts) == 3
    for entry in starts:
        assert entry["versions"]["torch"] and entry["versions"]["python"] and "CPU" in entry["device"]
        assert entry["processes"] == 1 and len(entry["commit"].removesuffix("-dirty")) == 40
    with Image.open(folder / "curves.png") as curves:
        assert curves.width > 1000 and curves.height > 600 and len(curves.getcolors(10**6)) > 20


def test_curves_survive_any_history(tmp_path):
    panels = (("PSNR", ("psnr",), False), ("rate", ("lr",), True))
    for history in (
        [{"epoch": 1, "psnr": 20.0, "lr": 1e-3}],
        [{"epoch": e, "psnr": 20.0, "lr": 0.0} for e in range(1, 4)],
        [{"epoch": 1, "psnr": float("nan")}, {"epoch": 2, "psnr": float("inf"), "lr": 1e-9}],
        [{"epoch": e, "psnr": 1e-7 * e, "lr": 10.0**-e} for e in range(1, 300)],
        [{"epoch": 5, "psnr": -3.0}, {"epoch": 6, "psnr": 0.0, "lr": 2e-4}],
        [{"epoch": 1}],
    ):
        draw_curves(tmp_path / "curves.png", history, panels)
        with Image.open(tmp_path / "curves.png") as image:
            image.load()


def test_tensorboard_gets_every_epoch_once(small_config_path, photos):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run(small_config_path, "epochs=2") == 0
    assert run(small_config_path, "epochs=3") == 0
    events = EventAccumulator(str(photos / "run" / "tensorboard")).Reload()
    history = load_checkpoint(photos / "run" / "last.pt")["history"]
    points = events.Scalars("valid_psnr")
    assert [point.step for point in points] == [1, 2, 3]
    assert [point.value for point in points] == pytest.approx([row["valid_psnr"] for row in history])


def test_without_tensorboard_nothing_is_missed(small_config_path, photos, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("utils.training.run_folder.importlib.util.find_spec", lambda name: None)
        assert run(small_config_path, "epochs=1") == 0
    assert not (photos / "run" / "tensorboard").exists() and (photos / "run" / "metrics.csv").exists()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # installed, but broken
    monkeypatch.setattr("utils.training.run_folder.importlib.util.find_spec", lambda name: object())
    assert run(small_config_path, "epochs=3") == 0
    assert capsys.readouterr().err.count("WARNING TensorBoard cannot be written to") == 1


def test_a_dry_run_tells_the_plan_and_writes_nothing(small_config_path, photos, capsys):
    (photos / "train" / "text.jpg").write_text("no photo")
    before = sorted(photos.rglob("*"))
    stages = '[{"image_size": [16, 16], "epochs": 2}, {"image_size": [96, 96], "batch_size": 2}]'
    assert train.main(["--config", str(small_config_path), "--set", f"stages={stages}", "--dry-run"]) == 0
    assert sorted(photos.rglob("*")) == before
    output, errors = capsys.readouterr()
    assert f"{photos / 'train'}: 10 photos, 1 rejected" in output and f"{photos / 'valid'}: 3 photos" in output
    assert "text.jpg: not a JPEG" in errors and "3,493 parameters" in errors
    assert "stage 2: 10 photos in views of 96x96 px, 2 epochs of 5 steps of 2" in errors
    assert "MiB at most for a step, 6 steps" in output and "MiB at most for a step, 10 steps" in output
    assert "about 00:0" in output and f"would write to {photos / 'run'}" in output


def test_a_dry_run_finds_what_a_run_would(small_config_path, photos, capsys):
    shutil.copy(photos / "train" / "train3.jpg", photos / "valid" / "sub" / "renamed.jpg")
    for words in ((), ("--dry-run",)):
        assert train.main(["--config", str(small_config_path), *words]) == 2
        assert "renamed.jpg is also in the training set, as " in capsys.readouterr().err
    assert train.main(["--config", str(small_config_path), "--set", f"valid_data_dir={photos / 'train'}"]) == 2
    assert ", and 9 more: the best epoch would be chosen on photos" in capsys.readouterr().err


def test_photos_that_only_begin_and_end_alike_are_different(tmp_path):
    for name, level in (("a", 10), ("b", 200)):
        pixels = np.zeros((400, 400, 3), dtype=np.uint8)
        pixels[190:210] = level
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "photo.bmp")
    first, second = (PhotoDataset(tmp_path / name, (32, 32), jitter=(0, 0, 0, 0)) for name in ("a", "b"))
    refuse_common_photos(first, second)
    with pytest.raises(NoPhotosError):
        refuse_common_photos(first, first)


def test_two_runs_in_one_folder_are_refused(small_config_path, photos, fork, capsys):
    options = ("--set", "epochs=1000", "--set", "begin_use_adv_loss_epoch=1001")
    process = fork("train", "--config", small_config_path, *options)
    while not (photos / "run" / "last.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    assert run(small_config_path) == 2
    error = capsys.readouterr().err
    assert f"{photos / 'run'}: another run (process {process.pid} on " in error and "model_save_dir" in error
    assert process.poll() is None
    process.send_signal(9)
    process.wait()
    assert run(small_config_path, "epochs=1") == 0  # a killed run holds nothing


def test_a_full_disk_is_a_clear_error_and_the_old_checkpoint_stays(small_config_path, photos, trained, capsys):
    last = trained() / "last.pt"
    whole = last.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))  # no file may grow beyond it
    try:
        assert run(small_config_path, "epochs=3") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    errors = capsys.readouterr().err
    assert "cannot be written" in errors and "previous checkpoint is intact" in errors
    assert last.read_bytes() == whole and not list((photos / "run").glob(".unfinished-*"))
    assert run(small_config_path, "epochs=3") == 0


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_a_clear_error(tmp_path, monkeypatch, number):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1}, keep=2)

    def refused(*arguments, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="previous checkpoint is intact"):
        patch.setattr(tempfile, "mkstemp", refused)
        save_checkpoint(path, {"step": 2}, keep=2)
    assert load_checkpoint(path)["step"] == 1


def test_a_run_folder_below_a_file_is_a_clear_error(small_config_path, photos, capsys):
    (photos / "file").write_text("")
    assert run(small_config_path, f"model_save_dir={photos / 'file' / 'run'}") == 1
    error = capsys.readouterr().err
    assert "ERROR" in error and str(photos / "file") in error and "Traceback" not in error


def test_a_dead_loader_worker_is_a_clear_error(small_config_path, monkeypatch, capsys):
    def killed(*arguments, **options):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(train, "train_step", killed)
    assert run(small_config_path) == 1
    assert "Lower num_workers" in capsys.readouterr().err


def test_fifty_kills_lose_at_most_the_work_since_the_last_checkpoint(small_config_path, photos, fork):
    """Every other run is killed when it has just written a checkpoint, the others anywhere, in starting too."""
    options = ["epochs=4", "views_per_photo=3", "batch_size=1", "checkpoint_every_steps=1", "keep_checkpoints=2"]
    options += ["begin_use_adv_loss_epoch=4", "laplacian_level_count=1"]
    options += ["layer_count_of_every_unet=[1]", "first_layer_out_channels_of_every_unet=[4]"]
    words = ["--config", small_config_path, *(word for option in options for word in ("--set", option))]
    last = photos / "run" / "last.pt"
    chance = random.Random(0)
    reached, kills = (1, 0), 0
    for attempt in range(400):
        before = last.stat().st_mtime_ns if last.exists() else None
        process = fork("train", *words)
        if attempt % 2 == 0:
            while process.poll() is None and (last.stat().st_mtime_ns if last.exists() else None) == before:
                time.sleep(0.003)
        time.sleep(chance.uniform(0, 0.02 if attempt % 2 == 0 else 0.12) if attempt else 0)
        with suppress(ProcessLookupError):  # it is over
            os.kill(process.pid, 9)
        code = process.wait()
        state, path, damages = load_newest_checkpoint(last)
        assert not damages and path == last
        now = (state["epoch"], state["step"])
        assert now >= reached, "a checkpoint was lost"
        reached = now
        if code == 0:
            break
        assert code == -9
        kills += 1
        if kills == 50:
            break
    assert kills == 50, f"the run was over after {kills} kills"
    assert fork("train", *words).wait() == 0
    words += ["--set", f"model_save_dir={photos / 'whole'}", "--set", "checkpoint_every_steps=99"]
    assert fork("train", *words).wait() == 0
    resumed, whole = (load_checkpoint(photos / name / "last.pt") for name in ("run", "whole"))
    for name in ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer", "best_psnr"):
        assert same(resumed[name], whole[name]), name
    assert without_speed(resumed["history"]) == without_speed(whole["history"])
    with open(photos / "run" / "metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == [str(number) for number in range(1, 5)]
    assert not list((photos / "run").rglob(".unfinished-*"))
