import csv
import json
import math
import os
import shutil
import signal
import time

import pytest
import torch
from PIL import Image

import models.generator
import train
from data.sources import build_loader, open_photos
from models import build_generator
from models.daconv import merge_daconv
from utils.config import load_config
from utils.device import Arithmetic
from utils.training.checkpoint import load_checkpoint, load_newest_checkpoint, save_checkpoint
from utils.training.progress import FailureLog
from utils.training.schedule import plan_epochs, set_learning_rates
from utils.training.start import new_state
from utils.training.state import released_weights
from utils.weights import load_weights

THIN = pytest.mark.usefixtures("thin_discriminator")


def run(path, *overrides):
    return train.main(["--config", str(path), *(word for override in overrides for word in ("--set", override))])


def without_speed(history):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in history]


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def test_a_run_leaves_whole_files_that_predict_can_use(small_config_path, photos, capsys):
    assert run(small_config_path) == 0
    folder = photos / "run"
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[0]["adversarial"] == "" and float(rows[1]["adversarial"]) > 0 and float(rows[1]["discriminator"]) > 0
    assert float(rows[1]["lr"]) == pytest.approx(1e-6) and float(rows[1]["discriminator_lr"]) == pytest.approx(1e-6)
    for epoch in (1, 2):
        with Image.open(folder / "samples" / f"epoch_{epoch:04d}.png") as grid:
            assert grid.width > 3 * 24 and grid.height > 3 * 16  # 3 photos wide; input, output, target
    weights = load_weights(folder / "best.safetensors")
    build_generator(weights.architecture).load_state_dict(weights.state)
    best = load_checkpoint(folder / "best.pt")
    assert weights.training["valid_psnr"] == best["best_psnr"] == max(float(row["valid_psnr"]) for row in rows)
    assert "best validation PSNR" in capsys.readouterr().out
    assert [path.name for path in folder.glob(".*")] == [".lock"]


def first_batch_and_state(config_path, *overrides):
    config = load_config(config_path, overrides)
    arithmetic = Arithmetic(config.precision)
    photos, _ = open_photos(config, FailureLog())
    loader, _ = build_loader(config, photos, config.batch_size, arithmetic)
    return next(iter(loader)), new_state(config, arithmetic, photos=[]), arithmetic


def step(*arguments, **options):
    """Take a training step and return what it measured as numbers."""
    return {name: value.item() for name, value in train.train_step(*arguments, **options).items()}


@pytest.mark.parametrize("conv", ["plain", "daconv"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_learns(small_config_path, precision, conv):
    options = ["init_lr=0.01", f"precision={precision}", f"conv={conv}"]
    options += ["color_jitter_saturation=0", "color_jitter_contrast=0"]  # errors that curves can mend
    batch, state, arithmetic = first_batch_and_state(small_config_path, *options)
    first = step(state, batch, arithmetic, adversarial=False)
    steps = (step(state, batch, arithmetic, adversarial=False) for _ in range(99))
    assert any(now["loss"] < 0.5 * first["loss"] and now["psnr"] > first["psnr"] + 5 for now in steps)


@pytest.mark.parametrize("model", ["zero_dce", "prenet"])
@pytest.mark.usefixtures("thin_prenet")
def test_the_other_networks_learn(small_config_path, model):
    options = ["init_lr=0.001", f"model={model}", "conv=daconv"]
    batch, state, arithmetic = first_batch_and_state(small_config_path, *options)
    first = step(state, batch, arithmetic, adversarial=False)["loss"]
    assert any(step(state, batch, arithmetic, adversarial=False)["loss"] < 0.8 * first for _ in range(24))


def test_zero_dce_trains_without_targets(small_config_path):
    batch, state, arithmetic = first_batch_and_state(small_config_path, "model=zero_dce")
    inputs, targets = train.make_pairs(batch, arithmetic)
    terms = state.generator.losses(inputs, state.generator(inputs), torch.full_like(targets, math.nan))
    assert terms.keys() == {"spatial", "exposure", "colour", "smoothness"} and all(map(torch.isfinite, terms.values()))


@pytest.mark.parametrize("network", [["model=prenet"], ["model=zero_dce", "ema_decay=0.9"], ["num_workers=2"]])
@pytest.mark.usefixtures("thin_discriminator", "thin_prenet")
def test_every_network_resumes_to_the_same_end(small_config_path, photos, monkeypatch, network):
    options = ["epochs=2", "conv=daconv", "init_lr=0.01", "shown_brighter=1.5", *network]
    assert run(small_config_path, *options, f"model_save_dir={photos / 'whole'}") == 0
    with monkeypatch.context() as patch:
        signal_in_step(patch, 4)
        assert run(small_config_path, *options) == 130
    assert run(small_config_path, *options) == 0
    require_same_end(photos)


def require_same_end(photos):
    resumed, whole = (load_checkpoint(photos / folder / "last.pt") for folder in ("run", "whole"))
    for name in (
        "generator",
        "discriminator",
        "generator_optimizer",
        "discriminator_optimizer",
        "average",
        "best_psnr",
    ):
        assert same(resumed[name], whole[name]), name
    assert without_speed(resumed["history"]) == without_speed(whole["history"])
    weights = [load_weights(photos / folder / "best.safetensors").state for folder in ("run", "whole")]
    assert same(*weights)


def test_a_signal_to_the_whole_job_saves(small_config_path, photos, fork):
    """As a terminal, a container or a scheduler sends it: the loader's workers get it too."""
    process = fork("train", "--config", small_config_path, "--set", "epochs=1000", "--set", "num_workers=2")
    while not (photos / "run" / "last.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command resumes" in errors, errors


def signal_in_step(patch, wanted, number=signal.SIGINT):
    """Let the `wanted`-th training step from now on be met by a signal."""
    steps = []
    original = train.train_step

    def interrupted(*arguments, **options):
        steps.append(1)
        if len(steps) == wanted:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    patch.setattr(train, "train_step", interrupted)


@THIN
def test_ctrl_c_saves_in_mid_epoch(small_config_path, photos, monkeypatch, capsys):
    signal_in_step(monkeypatch, 5)  # the second step of the second epoch
    before = signal.getsignal(signal.SIGINT)
    assert run(small_config_path) == 130
    state = load_checkpoint(photos / "run" / "last.pt")
    assert (state["epoch"], state["step"], state["totals"]["photos"]) == (2, 2, 6)
    assert "stopped in epoch 2 after step 2" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@THIN
def test_a_stop_after_an_epochs_last_step_goes_on_with_its_validation(small_config_path, photos, monkeypatch):
    options = ["epochs=2", "begin_use_adv_loss_epoch=3"]
    assert run(small_config_path, *options, f"model_save_dir={photos / 'whole'}") == 0
    with monkeypatch.context() as patch:
        signal_in_step(patch, 3)
        assert run(small_config_path, *options) == 130
    assert load_checkpoint(photos / "run" / "last.pt")["step"] == 3
    assert run(small_config_path, *options) == 0
    checkpoints = [load_checkpoint(photos / folder / "last.pt") for folder in ("run", "whole")]
    assert same(*(checkpoint["generator"] for checkpoint in checkpoints))
    assert same(*(without_speed(checkpoint["history"]) for checkpoint in checkpoints))


@THIN
def test_nan_stops_with_step_parts_and_names_and_keeps_the_checkpoint(small_config_path, trained, monkeypatch, capsys):
    folder = trained()
    whole = (folder / "last.pt").read_bytes()
    original = models.generator.reconstruction_loss
    monkeypatch.setattr(models.generator, "reconstruction_loss", lambda *a: original(*a) * math.nan)
    assert run(small_config_path, "epochs=2") == 1
    message = capsys.readouterr().err
    for words in ("not finite in epoch 2, step 1", "reconstruction = nan", "pyramid = 0.", "photos: ", ".jpg"):
        assert words in message
    assert (folder / "last.pt").read_bytes() == whole


@THIN
def test_a_changed_configuration_is_reported_and_another_architecture_refused(
    small_config_path, photos, trained, capsys
):
    trained()
    capsys.readouterr()
    assert run(small_config_path, "epochs=2", "init_lr=0.0003", "weight_decay=0.01") == 0
    optimizer = load_checkpoint(photos / "run" / "last.pt")["generator_optimizer"]
    assert optimizer["param_groups"][0]["weight_decay"] == 0.01
    message = capsys.readouterr().err
    assert "changed since the checkpoint: epochs = 1 -> 2" in message
    before = load_config(small_config_path).init_lr
    assert f"changed since the checkpoint: init_lr = {before} -> 0.0003" in message
    assert "resuming in epoch 2 after step 0" in message
    assert run(small_config_path, "epochs=3", "layer_count_of_every_unet=[2,2]") == 1
    assert "give model_save_dir another folder" in capsys.readouterr().err
    assert load_checkpoint(photos / "run" / "last.pt")["epoch"] == 3


@THIN
def test_added_photos_and_changed_validation_are_noticed(small_config_path, photos, capsys):
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, 2)
        assert run(small_config_path) == 130
    shutil.copy(photos / "train" / "train1.jpg", photos / "train" / "another.jpg")
    assert run(small_config_path) == 0
    assert "epoch 1 starts again: its photos or their order have changed" in capsys.readouterr().err
    best = load_checkpoint(photos / "run" / "last.pt")["best_psnr"]
    assert run(small_config_path, "epochs=4", "color_jitter_brightness=1") == 0
    assert "the best epoch is looked for anew" in capsys.readouterr().err
    state = load_checkpoint(photos / "run" / "last.pt")
    assert state["best_psnr"] == state["history"][-1]["valid_psnr"] != best


@THIN
def test_weights_that_are_lost_are_written_again(small_config_path, trained, capsys):
    weights = trained() / "best.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"")
    assert run(small_config_path, "epochs=1") == 0
    assert weights.read_bytes() == whole
    weights.unlink()
    weights.with_suffix(".pt").unlink()
    capsys.readouterr()
    assert run(small_config_path, "epochs=1") == 0
    said = capsys.readouterr()
    assert "are gone: the last epoch counts as the best" in said.err and "PSNR -inf" not in said.out
    assert weights.read_bytes() == whole  # of the only epoch


@THIN
def test_an_epoch_whose_losses_change_starts_again(small_config_path, photos, capsys):
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, 2)
        assert run(small_config_path, "ssim_weight=0") == 130
    assert run(small_config_path, "ssim_weight=0.2") == 0
    assert "epoch 1 starts again: the losses have changed" in capsys.readouterr().err
    state = load_checkpoint(photos / "run" / "last.pt")
    assert state["history"][0]["ssim"] > 0


@THIN
def test_an_infinite_gradient_of_a_finite_loss_stops_too(small_config_path, photos, monkeypatch, capsys):
    original = models.generator.reconstruction_loss
    # sqrt has an infinite slope at 0
    monkeypatch.setattr(
        models.generator, "reconstruction_loss", lambda y, *a: original(y, *a) + (y - y.detach()).sum().abs().sqrt()
    )
    assert run(small_config_path) == 1
    message = capsys.readouterr().err
    assert "not finite in epoch 1, step 1" in message and "gradient = " in message
    assert not (photos / "run" / "last.pt").exists()


def test_a_checkpoint_of_something_else_is_refused(small_config_path, photos, capsys):
    (photos / "run").mkdir()
    save_checkpoint(photos / "run" / "last.pt", {"config": {}})
    assert run(small_config_path) == 1
    assert "last.pt: not a checkpoint of this version" in capsys.readouterr().err


@THIN
def test_a_finished_run_says_so_and_changes_nothing(small_config_path, trained, capsys):
    last = trained() / "last.pt"
    before = last.read_bytes()
    capsys.readouterr()
    assert run(small_config_path, "epochs=1") == 0
    assert "done" in capsys.readouterr().out
    assert last.read_bytes() == before


def test_the_loaders_workers_do_not_outlive_an_error_that_nobody_expected(small_config_path, fork):
    """Whose traceback keeps the loader, so that it is not closed before the process ends."""
    before = """
def broken(*arguments, **options):
    raise TypeError("broken")

def main(main=train.main):
    try:
        main()
    except TypeError as error:
        sys.last_exc = error  # as the interpreter does
        return 3

train.train_step, train.main = broken, main
"""
    process = fork("train", "--config", small_config_path, "--set", "num_workers=2", before=before)
    assert process.wait(timeout=20) == 3


@pytest.mark.parametrize("workers", [0, 2])
@THIN
def test_a_corrupt_photo_is_named_once_and_counted(small_config_path, photos, capsys, workers):
    path = photos / "train" / "train5.jpg"
    path.write_bytes(path.read_bytes()[:900])
    assert run(small_config_path, f"num_workers={workers}") == 0
    message = capsys.readouterr().err
    assert message.count(str(path)) == 1 and "1 unusable photos were skipped" in message


@THIN
def test_all_photos_corrupt_is_an_error(small_config_path, photos, capsys):
    for path in (photos / "train").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:900])
    assert run(small_config_path) == 2
    assert "none of its photos can be decoded" in capsys.readouterr().err


def test_bad_command_lines_and_folders_exit_with_2(small_config_path, photos, tmp_path, capsys):
    assert run(tmp_path / "absent.json") == 2
    assert run(small_config_path, "epoch=3") == 2
    assert run(small_config_path, f"train_data_dir={tmp_path / 'absent'}") == 2
    message = capsys.readouterr().err
    assert message.count("ERROR") == 3 and "did you mean epochs" in message and "put normally exposed" in message


def test_learning_rates_follow_half_a_cosine_and_the_discriminators_starts_later(small_config_path):
    config = load_config(small_config_path, ["epochs=4", "begin_use_adv_loss_epoch=3"])
    state = new_state(config, Arithmetic("float32"), photos=[])
    plan, rates = plan_epochs(config, photo_count=40), []
    for number in range(40):
        set_learning_rates(state, plan, number)
        optimizers = (state.generator_optimizer, state.discriminator_optimizer)
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
    generator, discriminator = zip(*rates, strict=True)
    assert generator[0] == config.init_lr and generator[-1] == pytest.approx(config.final_lr)
    assert list(generator) == sorted(generator, reverse=True)
    assert discriminator[20] == config.discriminator_init_lr and discriminator[21] < discriminator[20]
    assert discriminator[-1] == pytest.approx(config.discriminator_final_lr)


def test_the_adversarial_term_reaches_the_generator_in_proportion(small_config_path):
    gradients = []
    for weight in (0, 0.01):
        overrides = ("precision=float32", f"adversarial_weight={weight}", "batch_size=2")
        batch, state, arithmetic = first_batch_and_state(small_config_path, *overrides)
        train.train_step(state, batch, arithmetic, adversarial=True)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in state.generator.parameters()]))
    share = ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item()
    assert 0 < share < 0.5


def test_the_discriminator_learns_and_does_not_move_the_generator(small_config_path):
    batch, state, arithmetic = first_batch_and_state(
        small_config_path, "precision=float32", "adversarial_weight=0", "batch_size=2"
    )
    for optimizer, rate in ((state.generator_optimizer, 0.0), (state.discriminator_optimizer, 1e-3)):
        optimizer.param_groups[0]["lr"] = rate
    before = [parameter.clone() for parameter in state.generator.parameters()]
    losses = [step(state, batch, arithmetic, adversarial=True)["discriminator"] for _ in range(11)]
    assert losses[0] == pytest.approx(math.log(2), abs=0.1) and losses[-1] < losses[0] - 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, state.generator.parameters(), strict=True))


@THIN
def test_the_configuration_of_the_run_is_kept_in_the_weights(small_config_path, photos, small_config):
    assert run(small_config_path, "epochs=1") == 0
    kept = load_weights(photos / "run" / "best.safetensors").training["config"]
    assert json.loads(json.dumps({**small_config, "epochs": 1})).items() <= kept.items()


@THIN
def test_the_average_is_what_is_validated_and_exported(small_config_path, photos, capsys):
    overrides = ["ema_decay=0.8", "conv=daconv", "epochs=2", "begin_use_adv_loss_epoch=9", "init_lr=0.02"]
    assert run(small_config_path, *overrides) == 0
    state = load_checkpoint(photos / "run" / "last.pt")
    assert state["average"]["n_averaged"] == 6  # two epochs of three steps
    config = load_config(small_config_path, overrides)
    exported = load_weights(photos / "run" / "best.safetensors")
    best = load_checkpoint(photos / "run" / "best.pt")
    network = build_generator(config)
    for weights, is_exported in ((released_weights(best), True), (best["generator"], False)):
        network.load_state_dict(weights)
        merged = merge_daconv(network).state_dict()
        same_ = all(
            torch.allclose(merged[name], tensor, atol=1e-3, rtol=1e-3) for name, tensor in exported.state.items()
        )
        assert same_ == is_exported
    # an average that is switched on late begins with the weights of then
    assert run(small_config_path, "conv=daconv", "epochs=3", "ema_decay=0", "begin_use_adv_loss_epoch=9") == 0
    assert load_checkpoint(photos / "run" / "last.pt")["average"] is None
    assert run(small_config_path, *overrides, "epochs=4") == 0
    assert load_checkpoint(photos / "run" / "last.pt")["average"]["n_averaged"] == 3
    assert "the best epoch is looked for anew" in capsys.readouterr().err


def test_the_average_follows_its_formula(small_config_path):
    batch, state, arithmetic = first_batch_and_state(small_config_path, "ema_decay=0.3", "init_lr=0.01")
    expected = None
    for count in range(6):
        train.train_step(state, batch, arithmetic, adversarial=False)
        weights = [parameter.detach().clone() for parameter in state.generator.parameters()]
        share = 1 - min(0.3, (1 + count) / (10 + count))
        expected = (
            weights if expected is None else [e + share * (w - e) for e, w in zip(expected, weights, strict=True)]
        )
    for average, value in zip(state.released.parameters(), expected, strict=True):
        torch.testing.assert_close(average, value)
    assert state.released is not state.generator


@THIN
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on_to_the_same_end(small_config_path, photos, capsys):
    options = ["checkpoint_every_steps=1", "keep_checkpoints=3"]
    assert run(small_config_path, *options) == 0
    folder = photos / "run"
    assert sorted(path.name for path in folder.glob("last*")) == ["last-1.pt", "last-2.pt", "last.pt"]
    shutil.copytree(folder, photos / "whole")
    whole = load_checkpoint(photos / "whole" / "last.pt")
    for damage in (
        lambda path, data: path.write_bytes(data),
        lambda path, data: path.write_bytes(data[:-7]),
        lambda path, data: path.write_bytes(b""),
        lambda path, data: path.unlink() if path.name == "last.pt" else path.write_bytes(data),
    ):
        shutil.rmtree(folder)
        shutil.copytree(photos / "whole", folder)
        for name in ("last.pt", "last-1.pt"):
            data = bytearray((folder / name).read_bytes())
            data[len(data) // 2] ^= 1
            damage(folder / name, data)
        capsys.readouterr()
        assert run(small_config_path, *options) == 0
        errors = capsys.readouterr().err
        assert "last-1.pt: damaged" in errors and f"going on from {folder / 'last-2.pt'}" in errors
        resumed = load_checkpoint(folder / "last.pt")
        assert same(resumed["generator"], whole["generator"])
        assert same(without_speed(resumed["history"]), without_speed(whole["history"]))


@THIN
def test_when_all_checkpoints_are_damaged_each_is_named(small_config_path, photos, capsys):
    assert run(small_config_path) == 0
    for path in (photos / "run").glob("last*"):
        path.write_bytes(b"junk")
    assert run(small_config_path) == 1
    errors = capsys.readouterr().err
    assert "last.pt: damaged" in errors and "last-1.pt: damaged" in errors


def test_a_kill_right_after_a_fallback_still_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    for number in range(4):
        save_checkpoint(path, {"number": number}, keep=2)
    path.write_bytes(b"junk")
    state, source, damages = load_newest_checkpoint(path)
    assert (state["number"], source.name, len(damages)) == (2, "last-1.pt", 1)

    rename = os.replace
    for moment in (1, 2):  # before and after the new one has its name
        calls = []

        def killed(*names, calls=calls, moment=moment):
            calls.append(names)
            if len(calls) == moment:
                raise KeyboardInterrupt
            rename(*names)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", killed)
            save_checkpoint(path, {"number": 5}, keep=2)
        assert load_newest_checkpoint(path)[0]["number"] == (2 if moment == 1 else 5)
    save_checkpoint(path, {"number": 6}, keep=2)
    assert load_newest_checkpoint(path)[0]["number"] == 6
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last-1.pt", "last.pt"]


def test_a_gap_between_the_checkpoints_does_not_hide_the_older_ones(tmp_path):
    path = tmp_path / "last.pt"
    for number in range(4):
        save_checkpoint(path, {"number": number}, keep=4)
    path.write_bytes(b"junk")
    (tmp_path / "last-1.pt").unlink()
    assert load_newest_checkpoint(path)[0]["number"] == 1
