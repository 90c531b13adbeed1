import dataclasses
import itertools
import json
import math
import random

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from test_train import THIN, first_batch_and_state, run, same, signal_in_step, step, without_speed

import train
from data import PhotoDataset
from data.sources import camera_range
from models import NETWORKS, Generator, build_generator
from models.losses import adversarial_loss
from utils.config import Config, load_config
from utils.training.checkpoint import load_checkpoint
from utils.training.objective import resize, weighted_losses
from utils.training.schedule import draw_brightness, draw_working_size, plan_epochs
from utils.training.start import warm_start
from utils.weights import load_weights

STAGES = [
    {"image_size": [24, 32], "batch_size": 8, "epochs": 2},
    {"batch_size": 5, "epochs": 1, "begin_use_adv_loss_epoch": 1},
    {"image_size": [32, 40], "epochs": 2, "begin_use_adv_loss_epoch": 2},
]


def views(monkeypatch):
    """Record the size of the views and of the batch, and whether the discriminator was on, of every step."""
    seen, original = [], train.train_step

    def recorded(state, batch, *arguments, adversarial, **options):
        seen.append((tuple(batch.photos.shape[-2:]), len(batch.names), adversarial))
        return original(state, batch, *arguments, adversarial=adversarial, **options)

    monkeypatch.setattr(train, "train_step", recorded)
    return seen


@THIN
def test_stages_follow_one_another(small_config_path, photos, monkeypatch, capsys):
    seen = views(monkeypatch)
    stages = f"stages={json.dumps(STAGES)}"
    assert run(small_config_path, stages, "begin_use_adv_loss_epoch=9") == 0
    assert seen == [
        *[((24, 32), 5, False), ((24, 32), 5, False)] * 2,
        *[((16, 24), 5, True)] * 2,
        *[((32, 40), size, False) for size in (3, 3, 4)],
        *[((32, 40), size, True) for size in (3, 3, 4)],
    ]
    output = capsys.readouterr()
    assert "stage 3: 10 photos in views of 40x32 px, 2 epochs of 3 steps of 4, discriminator from epoch 2" in output.err
    assert output.out.count("epoch ") == 5
    last = load_checkpoint(photos / "run" / "last.pt")
    assert last["epoch"] == 6 and last["history"][-1]["lr"] == pytest.approx(1e-6)


@THIN
def test_a_run_stopped_in_every_stage_ends_as_one_that_was_not(small_config_path, photos, monkeypatch):
    options = (f"stages={json.dumps(STAGES)}", "begin_use_adv_loss_epoch=9", "ema_decay=0.9", "clip_gradient_norm=0.5")
    assert run(small_config_path, *options, f"model_save_dir={photos / 'whole'}") == 0
    for moment in (4, 1, 3):  # steps since the last stop: to a stage's last, to one's first, into one
        with monkeypatch.context() as patch:
            signal_in_step(patch, moment)
            assert run(small_config_path, *options) == 130
    assert run(small_config_path, *options) == 0
    resumed, whole = (load_checkpoint(photos / name / "last.pt") for name in ("run", "whole"))
    for name in ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer", "average"):
        assert same(resumed[name], whole[name]), name
    assert without_speed(resumed["history"]) == without_speed(whole["history"])


def test_the_papers_stages_can_be_said(small_config_path):
    stages = [
        {"image_size": [128, 128], "batch_size": 32, "epochs": 40, "begin_use_adv_loss_epoch": 41},
        {"image_size": [256, 256], "batch_size": 8, "epochs": 30, "begin_use_adv_loss_epoch": 16},
        {"image_size": [512, 512], "batch_size": 4, "epochs": 20, "begin_use_adv_loss_epoch": 6},
    ]
    plan = plan_epochs(load_config(small_config_path, [f"stages={json.dumps(stages)}"]), photo_count=320)
    assert [epoch.number for epoch in plan if epoch.is_adversarial] == [*range(56, 71), *range(76, 91)]
    assert [plan[number - 1].steps for number in (40, 41, 71)] == [10, 40, 80]
    assert plan[-1].first_step + plan[-1].steps == 40 * 10 + 30 * 40 + 20 * 80


class Noisy(Generator):
    """A network that draws from every generator of random numbers."""

    def forward(self, photo):
        outputs = super().forward(photo)
        factor = 1 + 0.1 * torch.rand(()) + 0.1 * random.random() + 0.1 * np.random.rand() if self.training else 1
        return [factor * output for output in outputs]


@THIN
def test_every_generator_of_random_numbers_goes_on(small_config_path, photos, monkeypatch):
    monkeypatch.setitem(NETWORKS, "noisy", Noisy)
    options = ("model=noisy", "begin_use_adv_loss_epoch=9", "epochs=2")
    assert run(small_config_path, *options, f"model_save_dir={photos / 'whole'}") == 0
    with monkeypatch.context() as patch:
        signal_in_step(patch, 4)
        assert run(small_config_path, *options) == 130
    torch.rand(7), random.random(), np.random.rand()
    assert run(small_config_path, *options) == 0
    resumed, whole = (load_checkpoint(photos / name / "last.pt") for name in ("run", "whole"))
    assert same(resumed["generator"], whole["generator"])
    assert without_speed(resumed["history"]) == without_speed(whole["history"])


def test_the_brightness_that_a_view_is_shown_with_is_its_own(small_config_path):
    config = load_config(small_config_path, ["shown_brighter=1.5"])
    draws = draw_brightness(config, 1, range(2000))
    assert 0 <= draws.min() < 0.1 and 2.9 < draws.max() <= 3 and draws.mean() == pytest.approx(1.5, abs=0.1)
    assert torch.equal(draw_brightness(config, 1, [7, 3]), draws[[7, 3]])
    for epoch, seed in ((2, config.seed), (1, config.seed + 1)):
        other = draw_brightness(dataclasses.replace(config, seed=seed), epoch, range(2000))
        assert torch.corrcoef(torch.stack((draws, other)))[0, 1].abs() < 0.1


def test_sizes_are_drawn_from_the_least_to_the_largest():
    config = load_config(REPOSITORY / "conf.json")
    draws = {draw_working_size(config, 1, step) for step in range(500)}
    assert draws == set(range(40, 84, 4)) and config.least_size == 40
    assert dataclasses.replace(config, working_size_spread=0).least_size == 0  # all photos are shown at one size
    assert dataclasses.replace(config, image_size=(104, 156)).least_size == 26  # the short side of views


def gradients(config_path, *overrides, adversarial=True):
    batch, state, arithmetic = first_batch_and_state(config_path, "precision=float32", *overrides)
    parts = step(state, batch, arithmetic, adversarial=adversarial)
    networks = (state.generator, state.discriminator)
    return [[p.grad.clone() for p in network.parameters() if p.grad is not None] for network in networks], parts


def test_accumulation_takes_the_same_step_in_parts(small_config_path):
    shown = "shown_brighter=1.5"
    whole, parts = gradients(small_config_path, shown, adversarial=False)
    for count in (2, 3, 4):
        split, split_parts = gradients(small_config_path, shown, f"accumulation_steps={count}", adversarial=False)
        for a, b in zip(whole[0], split[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert split_parts == pytest.approx(parts, rel=1e-4)


@THIN
def test_accumulation_sees_smaller_batches(small_config_path, monkeypatch):
    sizes = []
    original = train.make_pairs
    monkeypatch.setattr(train, "make_pairs", lambda *a: sizes.append(len(a[0].names)) or original(*a))
    batch, state, arithmetic = first_batch_and_state(small_config_path, "accumulation_steps=2", "batch_size=5")
    step(state, batch, arithmetic, adversarial=True)
    assert sizes == [2, 3]
    assert run(small_config_path, "accumulation_steps=9") == 2


def test_the_gradients_norm_is_limited(small_config_path):
    (free, _), parts = gradients(small_config_path)
    (clipped, discriminator), clipped_parts = gradients(small_config_path, "clip_gradient_norm=0.01")
    norm = torch.cat([gradient.flatten() for gradient in clipped]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert clipped_parts["gradient"] == pytest.approx(parts["gradient"]) and parts["gradient"] > 0.1
    for a, b in zip(free, clipped, strict=True):
        torch.testing.assert_close(a * (0.01 / parts["gradient"]), b, rtol=1e-3, atol=1e-9)


def test_the_configuration_reaches_camera_and_losses(small_config_path):
    options = ["camera_metered=true", "camera_ev_least=0.5", "camera_ev_min=-3", "clipped_weight=0"]
    batch, state, arithmetic = first_batch_and_state(small_config_path, *options)
    ranges = camera_range(state.config)
    assert (ranges.is_metered, ranges.least_ev, ranges.ev) == (True, 0.5, (-3.0, 2.6))
    inputs, targets = torch.ones(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5)
    for model in ("msec", "prenet"):  # all light was lost: nothing is asked of the network
        batch, state, arithmetic = first_batch_and_state(small_config_path, *options, f"model={model}")
        done = state.corrector.correct(inputs)
        wrong = done._replace(outputs=[output + 0.1 for output in done.outputs], photo=done.photo - 0.1)
        assert sum(weighted_losses(state, inputs, wrong, targets).values()).item() == 0


def test_every_range_of_the_camera_has_its_key(small_config_path):
    keys = [item.name for item in dataclasses.fields(Config) if item.name.startswith("camera_")]
    base = camera_range(load_config(small_config_path))
    changed = set()
    for key in keys:
        value = {"camera_metered": "true", "camera_jpeg": "40", "camera_ev_min": "-0.9"}.get(key, "0.9")
        ranges = camera_range(load_config(small_config_path, [f"{key}={value}"]))
        old, new = dataclasses.asdict(base), dataclasses.asdict(ranges)
        different = {name for name in old if new[name] != old[name]}
        assert len(different) == 1, key
        changed |= different
    assert changed == {item.name for item in dataclasses.fields(base)}


def test_losses_have_their_weights(small_config_path):
    plain = gradients(small_config_path, adversarial=False)[1]
    changed = gradients(
        small_config_path,
        "reconstruction_weight=3",
        "pyramid_weight=0",
        "ssim_weight=0.5",
        "corrected_weight=2",
        adversarial=False,
    )[1]
    assert changed["reconstruction"] == pytest.approx(3 * plain["reconstruction"])
    assert "pyramid" not in changed and "ssim" not in plain
    assert 0 < changed["ssim"] <= 1
    assert changed["corrected"] == pytest.approx(2 * plain["corrected"]) and plain["corrected"] > 0
    assert changed["loss"] == pytest.approx(changed["reconstruction"] + changed["ssim"] + changed["corrected"])


def test_a_network_without_targets_is_not_trained_on_them(small_config_path):
    options = ["corrected_weight=5", "ssim_weight=5"]
    parts = gradients(small_config_path, "model=zero_dce", *options, adversarial=False)[1]
    assert "corrected" not in parts and "ssim" not in parts and "exposure" in parts


@pytest.mark.parametrize(
    "options",
    [
        ["corrected_weight=0", "reconstruction_weight=0", "pyramid_weight=0"],
        ["corrected_weight=0", "reconstruction_weight=0", "model=prenet"],
    ],
)
@THIN
def test_weights_that_leave_no_loss_are_refused(small_config_path, options, capsys):
    assert run(small_config_path, *options) == 2
    assert "no loss is left to train" in capsys.readouterr().err


def test_the_ssim_term_alone_raises_ssim(small_config_path):
    nothing = ["corrected_weight=0", "reconstruction_weight=0", "pyramid_weight=0"]
    options = [*nothing, "ssim_weight=1", "init_lr=0.01"]
    batch, state, arithmetic = first_batch_and_state(small_config_path, *options)
    losses = [step(state, batch, arithmetic, adversarial=False)["ssim"] for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("source", ["plain", "daconv"])
@THIN
def test_a_run_starts_from_the_function_of_other_weights(small_config_path, photos, source):
    run(small_config_path, "epochs=1", "init_lr=0.02", f"conv={source}", "begin_use_adv_loss_epoch=2", "ema_decay=0.5")
    weights = load_weights(photos / "run" / "best.safetensors")
    trained = build_generator(weights.architecture)
    trained.load_state_dict(weights.state)
    photo = torch.rand(1, 3, 33, 47)
    untrained = build_generator(weights.architecture)
    for target, file in itertools.product(("plain", "daconv"), ("best.pt", "best.safetensors")):
        path = photos / "run" / file
        options = [f"conv={target}", f"init_weights={path}", "shown_brighter=1"]
        network = warm_start(load_config(small_config_path, options))
        with torch.no_grad():
            output = network(photo)[0]
            torch.testing.assert_close(output, trained(photo)[0], atol=5e-3, rtol=0)  # half precision in the file
            assert (output - untrained(photo)[0]).abs().max() > 0.05
        assert (type(network.unets[0].encoder[0][0]).__name__ == "DAConv") == (target == "daconv")
        assert network.shown_brighter == 1 and trained.shown_brighter == 0  # it need not be as before


@THIN
def test_weights_to_start_from_must_fit(small_config_path, photos, trained, capsys):
    best = trained() / "best.safetensors"
    new = f"model_save_dir={photos / 'new'}"
    assert run(small_config_path, new, f"init_weights={best}", "layer_count_of_every_unet=[2,1]") == 2
    assert run(small_config_path, new, f"init_weights={best}", "model=prenet") == 2
    assert run(small_config_path, new, f"init_weights={photos / 'absent.pt'}") == 2
    best.write_bytes(best.read_bytes()[:-1])
    assert run(small_config_path, new, f"init_weights={best}") == 2
    errors = capsys.readouterr().err
    assert "has layer_count_of_every_unet = [1, 1], not [2, 1]" in errors and "has model = msec, not prenet" in errors
    assert "there is no such file" in errors and "best.safetensors" in errors.splitlines()[-1]


def test_views_that_show_nothing_are_drawn_again(tmp_path):
    """Half of the photo is black, grey or white: no view of it may be."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    options = {"jitter": (0.0, 0.0, 0.0, 0.0), "seed": 0, "crop_min_area": 0.05}
    for level in (2, 128, 253):
        pixels = np.full((64, 192, 3), level, dtype=np.uint8)
        pixels[:, 128:] = noise
        Image.fromarray(pixels).save(tmp_path / "photo.png")
        plain = PhotoDataset(tmp_path, (16, 16), **options)
        choosy = PhotoDataset(tmp_path, (16, 16), **options, crop_min_deviation=0.01, crop_min_mean=0.02)
        flat = {dataset: 0 for dataset in (plain, choosy)}
        for dataset in flat:
            for epoch in range(40):
                sample, _ = dataset[epoch, 0]
                flat[dataset] += bool(sample is not None and sample[0].float().std() < 1)
        assert flat[plain] > 10 and flat[choosy] == 0


@THIN
def test_a_photo_that_shows_nothing_is_passed_over_and_named(small_config_path, photos, capsys):
    Image.new("RGB", (80, 60), (3, 3, 3)).save(photos / "train" / "black.png")
    Image.new("RGB", (80, 60), (255, 0, 0)).save(photos / "train" / "red.png")
    assert run(small_config_path, "epochs=1") == 0
    errors = capsys.readouterr().err
    for name in ("black.png", "red.png"):
        assert f"{name}: 8 random views of it are nearly black, white or flat; skipped" in errors


def test_the_adversarial_phase_works(small_config_path):
    """The discriminator learns to tell, its gradient reaches the generator, and the output stays sane."""
    options = ["precision=float32", "discriminator_init_lr=0.0005", "init_lr=0.004", "batch_size=2"]
    batch, state, arithmetic = first_batch_and_state(small_config_path, *options)
    parts = [step(state, batch, arithmetic, adversarial=True) for _ in range(12)]
    assert parts[0]["discriminator"] == pytest.approx(math.log(2), abs=0.1)
    assert parts[-1]["discriminator"] < 0.9 * math.log(2)
    assert parts[-1]["psnr"] > parts[0]["psnr"] + 2
    inputs, _ = train.make_pairs(batch, arithmetic)
    outputs = state.generator(inputs)[0]
    assert torch.isfinite(outputs).all() and outputs.min() > -0.5 and outputs.max() < 1.5
    state.generator.zero_grad()
    adversarial_loss(state.discriminator(resize(outputs, (256, 256)))).backward()
    norm = torch.cat([p.grad.flatten() for p in state.generator.parameters() if p.grad is not None]).norm()
    assert 0 < norm < math.inf


@THIN
def test_the_deterministic_mode_is_pytorchs(small_config_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        assert run(small_config_path, "epochs=1", "deterministic=true") == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ("3", "a list of objects is expected"),
        ("[3]", "stage 1: 3: an object is expected"),
        ('[{"epochs": 1}, {"epoch": 2}]', "stage 2: unknown key epoch: a stage has image_size"),
        ('[{"epochs": 0}]', "stage 1: epochs = 0: a whole number of at least 1"),
        ('[{"epochs": true}]', "stage 1: epochs = true"),
        ('[{"image_size": [128]}]', "stage 1: image_size = [128]"),
        ('[{"batch_size": "8"}]', 'stage 1: batch_size = "8"'),
    ],
)
def test_bad_stages_are_refused(small_config_path, stages, words, capsys):
    assert run(small_config_path, f"stages={stages}") == 2
    assert words in capsys.readouterr().err
