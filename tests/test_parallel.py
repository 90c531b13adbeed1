import csv
import os
import signal
import time

import pytest
import torch
from forked import ELASTIC
from PIL import Image
from test_train import run

from data import EpochBatches, NoPhotosError
from data.sources import require_enough_photos, require_same_photos
from utils.config import ConfigError, load_config
from utils.stop import StopRequest
from utils.training.checkpoint import load_checkpoint

EXACT = (
    "precision=float32",
    "batch_size=5",
    "discriminator_init_lr=0.001",
    "ema_decay=0.5",
    "init_lr=0.002",
    "shown_brighter=1.5",
)
TWO_GPUS = "from utils.training import processes; processes.visible_gpus = lambda: 2\n"
FORKED = (
    TWO_GPUS
    + """
spawn = processes.spawn
processes.spawn = lambda *arguments, **options: spawn(*arguments, **{**options, "start_method": "fork"})
"""
)
"""The processes need not import torch. That they can be spawned, a test of one says for all."""
SMALL = ("laplacian_level_count=1", "layer_count_of_every_unet=[1]", "first_layer_out_channels_of_every_unet=[4]")


def words(config_path, *overrides):
    return ["--config", str(config_path), *(word for override in overrides for word in ("--set", override))]


def wait_for_checkpoint(process, photos):
    while not (photos / "run" / "last.pt").exists() and process.poll() is None:
        time.sleep(0.02)


def metrics(folder):
    with open(folder / "metrics.csv") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


def children_of(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(word) for word in file.read().split()]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("count", [9, 10, 11])
def test_processes_share_every_batch_out(count, processes):
    for seed in (None, 1):
        alone = list(EpochBatches(count, 4, seed=seed))
        shares = [list(EpochBatches(count, 4, seed=seed, rank=r, processes=processes)) for r in range(processes)]
        for whole, *parts in zip(alone, *shares, strict=True):
            assert sorted(whole) == sorted(key for part in parts for key in part)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.usefixtures("thin_discriminator")
def test_two_processes_train_as_one_and_count_each_validation_photo_once(small_config_path, photos, fork):
    """The adversarial phase with its batch normalisation included; batches of 5 photos do not share out evenly."""
    corrupt = photos / "train" / "train5.jpg"
    corrupt.write_bytes(corrupt.read_bytes()[:900])
    options = (*EXACT, "epochs=2", "discriminator_init_lr=1e-06")  # Adam makes a whole step of a rounding error
    assert run(small_config_path, *options, f"model_save_dir={photos / 'one'}") == 0
    process = fork(
        "train",
        *words(small_config_path, *options, f"model_save_dir={photos / 'two'}"),
        before=ELASTIC + "share(train)",
    )
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.count("epoch 2, ") == output.count("done: ") == 1  # one process prints and writes
    assert errors.count(f"ERROR {corrupt}") == 1
    for alone, together in zip(metrics(photos / "one"), metrics(photos / "two"), strict=True):
        for name in alone.keys() - {"images_per_second"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-6, nan_ok=True), name
    one, two = (load_checkpoint(photos / name / "last.pt") for name in ("one", "two"))
    for name in ("generator", "average"):
        for key, tensor in one[name].items():
            torch.testing.assert_close(two[name][key], tensor, rtol=1e-5, atol=1e-6)
    grids = [Image.open(photos / name / "samples" / "epoch_0001.png").size for name in ("one", "two")]
    assert grids[0] == grids[1]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="reads the processes from /proc")
def test_a_dead_process_ends_the_job_and_a_restart_resumes_to_the_same_end(small_config_path, photos, fork):
    options = (
        *EXACT,
        *SMALL,
        "epochs=3",
        "views_per_photo=3",
        "checkpoint_every_steps=1",
        "begin_use_adv_loss_epoch=5",
    )
    process = fork("train", *words(small_config_path, *options), before=FORKED)
    wait_for_checkpoint(process, photos)
    ranks = children_of(process)
    assert len(ranks) == 2, process.communicate()
    os.kill(ranks[1], signal.SIGKILL)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "the same command resumes" in errors, (output, errors)
    assert load_checkpoint(photos / "run" / "last.pt")["epoch"] <= 3, "it was over before it could be killed"
    process = fork("train", *words(small_config_path, *options), before=FORKED)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "resuming in epoch" in errors and "2 processes" in errors, errors
    assert run(small_config_path, *options, f"model_save_dir={photos / 'alone'}") == 0
    for name in ("psnr", "gradient", "valid_psnr", "valid_ssim"):
        curves = [[row[name] for row in metrics(photos / folder)] for folder in ("run", "alone")]
        assert curves[0] == pytest.approx(curves[1], rel=1e-3), name


def test_a_signal_to_the_parent_stops_all_after_the_same_step(small_config_path, photos, fork):
    options = (*EXACT, *SMALL, "epochs=100", "begin_use_adv_loss_epoch=101")
    process = fork("train", *words(small_config_path, *options), before=FORKED)
    wait_for_checkpoint(process, photos)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.count("the same command resumes") == 1 and "Traceback" not in errors
    assert load_checkpoint(photos / "run" / "last.pt")["epoch"] < 100


def test_a_process_can_be_spawned(small_config_path, photos, fork):
    one = "from utils.config import load_config\nfrom utils.training.processes import start_processes\n"
    one += "train.main = lambda: start_processes(train.run, (load_config(sys.argv[1], ['epochs=1']), False), 1)"
    process = fork("train", small_config_path, before=one)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "done: " in output, errors
    assert load_checkpoint(photos / "run" / "last.pt")["epoch"] == 2


def test_fewer_photos_than_processes_is_an_error(small_config_path):
    config = load_config(small_config_path, ["batch_size=4"])
    require_enough_photos(config, 9, 3)
    for count, size in ((2, 4), (9, 2), (10, 2)):
        config = load_config(small_config_path, [f"batch_size={size}"])
        with pytest.raises(ConfigError, match=f"batch_size = {size} .* fewer than the 3 processes: raise batch_size"):
            require_enough_photos(config, count, 3)
    config = load_config(small_config_path, ["batch_size=8", "accumulation_steps=3"])
    with pytest.raises(ConfigError, match="accumulation_steps = 3 is more than the 2 photos"):
        require_enough_photos(config, 8, 3)


def test_an_error_of_one_process_is_one_line_and_one_exit_code(small_config_path, photos, fork):
    """Only the first process makes the run's folder."""
    (photos / "file").write_text("")
    options = (*EXACT, f"model_save_dir={photos / 'file' / 'run'}")
    process = fork("train", *words(small_config_path, *options), before=FORKED)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.count("ERROR") == 1 and "Traceback" not in errors, errors
    assert str(photos / "file") in errors


def test_machines_that_see_other_photos_are_refused(small_config_path):
    config = load_config(small_config_path)
    require_same_photos(config, [["a", "b"]] * 3)
    with pytest.raises(NoPhotosError, match="valid: process 2 sees other photos there than process 0"):
        require_same_photos(config, [["a", "b"], ["a", "b"], ["a", "c"]])


def test_gpus_that_are_not_there_are_refused(small_config_path, monkeypatch, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("utils.training.processes.visible_gpus", lambda: 2)
    assert run(small_config_path, "CUDA_VISIBLE_DEVICES=0,1,2,3") == 2
    assert 'CUDA_VISIBLE_DEVICES = "0,1,2,3" lists 4 GPUs, but here are 2' in capsys.readouterr().err


def test_two_signals_on_different_ways_are_one_and_a_later_one_stops_at_once(monkeypatch):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        monkeypatch.setattr("utils.stop.SAME", -1)
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
