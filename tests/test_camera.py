import io
import json
import math

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, picture
from PIL import Image
from test_train import THIN, run, same, signal_in_step, without_speed

import train
from data import CameraRange, camera, draw_camera
from data.camera import (
    _NAMES,
    _QUANTISATION,
    COUNT,
    GRID,
    TELLING,
    TELLING_NOTHING,
    evidence_lost,
    jpeg,
    normal_noise,
    value_of,
)
from data.dataset import DEVELOPED, JITTERED, UNTOUCHED
from data.sources import build_loader, open_folder
from data.synthesis import MEAN, normalise
from utils.colour import from_linear, luma, luminance, to_linear
from utils.config import load_config
from utils.training.checkpoint import load_checkpoint

RECIPE = ("degradation", "camera_metered", "identity_share", "normalise_targets", "clipped_weight", "ema_decay")
NEUTRAL = {
    "lost": 1,
    "metered": 0,
    "stretch": 0,
    "shoulder": 0,
    "noise": 0,
    "red": 1,
    "blue": 1,
    "gamma": 1,
    "contrast": 0,
    "saturation": 1,
    "quality": 0,
}


def draw(ev=0.0, **changes):
    values = {**NEUTRAL, "seed": 0, **changes}
    return torch.tensor([[ev] * (GRID * GRID) + [values[name] for name in _NAMES]], dtype=torch.float64)


def photo(seed=0, size=(64, 48)):
    return torch.from_numpy(np.array(picture(*size, seed=seed))).permute(2, 0, 1)[None] / 255


def test_a_neutral_draw_returns_the_photo():
    torch.testing.assert_close(camera(photo(), draw()), photo(), atol=1e-6, rtol=0)


def test_linear_light_is_srgbs_and_back():
    levels = torch.arange(256) / 255
    torch.testing.assert_close(from_linear(to_linear(levels)), levels, atol=1e-6, rtol=0)
    assert to_linear(torch.tensor(0.5)).item() == pytest.approx(0.21404, abs=1e-5)


def test_a_metered_draw_does_not_tell_how_bright_the_photo_was():
    photos = torch.cat([from_linear(to_linear(photo()) * share) for share in (0.25, 0.5, 1.0)])
    metered = camera(photos, draw(-2.0, metered=1).repeat(3, 1))
    assert luminance(to_linear(metered)).mean().item() == pytest.approx(0.18 / 4, rel=1e-3)
    torch.testing.assert_close(metered[0], metered[2], atol=1e-4, rtol=0)
    assert camera(torch.zeros(1, 3, 8, 8), draw(metered=1)).max() == 0


def test_a_mild_error_leaves_the_evidence_and_a_strong_one_nothing():
    assert [evidence_lost(ev) for ev in (0, TELLING, -TELLING)] == [0, 0, 0]
    assert [evidence_lost(ev) for ev in (TELLING_NOTHING, -5)] == [1, 1]
    assert 0 < evidence_lost(-1.2) < evidence_lost(1.6) < 1
    rng, ranges = np.random.default_rng(0), CameraRange(least_ev=1, is_metered=True, mild_share=1, mild_ev=0.2)
    draws = torch.stack([draw_camera(rng, ranges) for _ in range(50)])
    assert value_of(draws, "metered").max() == value_of(draws, "lost").max() == 0
    assert draws[:, : GRID * GRID].mean(dim=1).abs().max() < 1.5


def test_a_stretched_draw_makes_the_dark_darker_and_the_bright_brighter_along_edges():
    halves = torch.full((1, 3, 32, 64), 0.3)
    halves[..., 32:] = 0.6
    result = camera(halves, draw(stretch=1, shoulder=1))
    assert result[..., :30].max() < 0.26 and result[..., 34:].min() > 0.66
    assert (result[..., 31] - result[..., 32]).abs().mean() > 0.3


def test_normalised_photos_have_one_brightness_and_keep_black_and_white():
    photos = torch.cat([photo() ** power for power in (0.5, 1.0, 2.0)])
    means = luma(photos).mean(dim=(1, 2, 3))
    for share in (0.0, 0.5, 1.0):
        expected = means + share * (MEAN - means)
        torch.testing.assert_close(luma(normalise(photos, share)).mean(dim=(1, 2, 3)), expected, atol=0.01, rtol=0)
    torch.testing.assert_close(normalise(photos, 0.0), photos, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_photos_that_are_mostly_black_or_white_are_not_driven_to_two_levels(value, share):
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 60, 64).clone()
    ramp[..., : round(share * 60), :] = value
    result = normalise(ramp, 1.0)
    assert torch.isfinite(result).all() and 0 <= result.min() and result.max() <= 1
    assert (result.diff(dim=-1)[..., round(share * 60) :, :] > 0).all()
    assert (result[..., : round(share * 60), :] - value).abs().max() < 1e-5


@THIN
def test_targets_are_normalised_in_training_where_the_input_is_synthesised(small_config_path, monkeypatch):
    config = load_config(small_config_path, ["degradation=camera", "identity_share=0.5", "batch_size=10"])
    dataset, arithmetic = open_folder(config, config.train_data_dir, training=True), train.Arithmetic("float32")
    batch = next(iter(build_loader(config, dataset, 10, arithmetic)[0]))
    inputs, targets = train.make_pairs(batch, arithmetic, 1.0)
    same_inputs, photos = train.make_pairs(batch, arithmetic)
    assert torch.equal(inputs, same_inputs)
    stays = (targets == photos).flatten(1).all(dim=1)
    is_mild = value_of(batch.camera, "lost") == 0  # the input still tells how bright its photo was
    assert torch.equal(stays, (batch.kinds == UNTOUCHED) | is_mild) and 0 < stays.sum() < 10
    assert torch.equal(photos, arithmetic.photos(batch.photos))

    shares = []
    original = train.make_pairs
    monkeypatch.setattr(train, "make_pairs", lambda *a: shares.append(a[2:]) or original(*a))
    assert run(small_config_path, "epochs=1", "normalise_targets=0.7") == 0
    assert (0.7,) in shares and shares[-1] == ()  # training, then validation


@pytest.mark.parametrize("ev", [-3.0, -1.0, 0.5])
def test_without_a_shoulder_light_is_scaled_and_clipped(ev):
    expected = from_linear((to_linear(photo()) * 2**ev).clamp(0, 1))
    torch.testing.assert_close(camera(photo(), draw(ev)), expected, atol=1e-6, rtol=0)


def test_with_a_full_shoulder_whites_stay_white_and_the_dark_is_scaled():
    ramp = torch.linspace(0, 1, 256).expand(1, 3, 8, 256)
    for ev in (-4.0, -1.0, 2.0):
        result = camera(ramp, draw(ev, shoulder=1.0))
        assert result[..., -1].min() > 0.999 and (result.diff(dim=-1) >= 0).all()
        light = to_linear(result[0, 0, 0, 5]) / to_linear(ramp[0, 0, 0, 5])
        assert light.item() == pytest.approx(2**ev, rel=0.02)


def test_the_other_steps_do_what_they_say():
    grey = torch.full((1, 3, 16, 16), 0.5)
    colour = grey.clone()
    colour[:, 0] = 0.7
    assert camera(grey, draw(gamma=2)).mean().item() == pytest.approx(0.25, abs=1e-6)
    warm = camera(grey, draw(red=1.2, blue=0.8)).mean(dim=(0, 2, 3))
    assert warm[0] > warm[1] > warm[2] and warm[1].item() == pytest.approx(0.5, abs=1e-6)
    flat = camera(colour, draw(saturation=0))
    assert (flat[:, 0] - flat[:, 2]).abs().max() < 1e-6
    steep = camera(photo(), draw(contrast=0.5))
    assert steep.std() > photo().std()
    uneven = draw()
    uneven[0, : GRID * GRID] = torch.linspace(-2, 2, GRID * GRID)
    result = camera(grey, uneven)
    assert result[..., 0, 0].mean() < 0.35 and result[..., -1, -1].mean() > 0.7


def test_noise_is_each_photos_own_and_grows_as_light_falls():
    batch, draws = photo().repeat(3, 1, 1, 1), torch.cat([draw(noise=1e-3, seed=s) for s in (1, 2, 1)])
    together = camera(batch, draws)
    assert torch.equal(together[:1], camera(batch[:1], draws[:1])) and torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    grey = torch.full((1, 3, 64, 64), 0.5)
    ratios = []
    for ev in (0.0, -2.0, -4.0):
        light = to_linear(camera(grey, draw(ev, noise=1e-4, seed=3)))
        ratios.append((light.std() / light.mean()).item())
    assert ratios[0] < ratios[1] < ratios[2]


def test_noise_is_normal_and_of_its_seed_alone():
    noise = normal_noise(torch.arange(40) * 7919, (3, 64, 63))
    assert torch.equal(noise[5:6], normal_noise(torch.tensor([5 * 7919]), (3, 64, 63)))
    within = 4 / math.sqrt(noise.numel())
    assert abs(noise.mean()) < within and abs(noise.var() - 1) < within * 2**0.5
    assert abs((noise**3).mean()) < within * 15**0.5 and abs((noise**4).mean() - 3) < within * 96**0.5
    for shift in (
        (0, 0, 0, 1),
        (0, 0, 1, 0),
        (0, 1, 0, 0),
        (1, 0, 0, 0),
    ):  # neither neighbours nor seeds tell of others
        assert abs((noise * noise.roll(shift, (0, 1, 2, 3))).mean()) < within
    halves = noise.flatten(1).chunk(2, dim=1)
    assert abs((halves[0] * halves[1]).mean()) < within * 2**0.5


@pytest.mark.parametrize(("quality", "share"), [(20, 0.2), (50, 0.2), (90, 0.45)])  # libjpeg rounds between the steps
def test_jpeg_loses_what_pillows_jpeg_loses(quality, share):
    noisy = np.random.default_rng(0).normal(0, 12, (64, 80, 3)) + np.array(picture(80, 64))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    table = [min(max(int((value * scale + 50) // 100), 1), 255) for row in _QUANTISATION for value in row]
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", qtables=[table, table], subsampling=0)
    expected = np.array(Image.open(buffer)).astype(float)
    photos = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    ours = jpeg(photos, torch.full((1, 1, 1, 1), float(quality)))
    ours = ours[0].permute(1, 2, 0).numpy() * 255
    lost = np.abs(np.array(image) - expected).mean()
    assert np.abs(ours - expected).mean() < share * lost


def test_jpeg_takes_any_size():
    for size in ((1, 1), (9, 17)):
        assert jpeg(torch.rand(2, 3, *size), torch.full((2, 1, 1, 1), 50.0)).shape == (2, 3, *size)


def test_draws_cover_their_ranges():
    ranges = CameraRange(ev=(-4.0, 2.0), local_ev=0.0)
    rng = np.random.default_rng(0)
    draws = torch.stack([draw_camera(rng, ranges) for _ in range(2000)])
    assert draws.shape == (2000, COUNT)
    ev = draws[:, 0]
    assert -4 <= ev.min() < -3.9 and 1.9 < ev.max() <= 2 and 0.56 < (ev < 0).double().mean() < 0.64
    columns = dict(zip(_NAMES, draws[:, GRID * GRID :].unbind(dim=1), strict=True))
    assert 0 <= columns["shoulder"].min() and columns["shoulder"].max() <= 1
    for name, share in (("noise", 0.5), ("quality", 0.5)):
        assert (columns[name] > 0).double().mean().item() == pytest.approx(share, abs=0.05)
    assert columns["noise"].max() <= 1e-3 and columns["quality"].max() <= 98
    for low, high, dark in ((-3.0, 0.0, 1.0), (0.0, 2.0, 0.0)):
        ev = torch.stack([draw_camera(rng, CameraRange(ev=(low, high), local_ev=0.0)) for _ in range(50)])[:, 0]
        assert (ev < 0).double().mean() == dark
    ev = torch.stack([draw_camera(rng, CameraRange(local_ev=0.0, least_ev=0.8)) for _ in range(500)])[:, 0]
    assert 0.8 <= ev.abs().min() < 0.9 and ev.min() < -4.9 and ev.max() > 2.5
    never = CameraRange(dark_share=0.0, local_share=0.0, noise_share=0.0, jpeg_share=0.0, shoulder=0.0)
    always = CameraRange(dark_share=1.0, local_share=1.0, noise_share=1.0, jpeg_share=1.0, shoulder=50.0)
    for ranges, is_drawn in ((never, False), (always, True)):
        for _ in range(20):
            drawn = draw_camera(rng, ranges)
            knots, rest = drawn[: GRID * GRID], dict(zip(_NAMES, drawn[GRID * GRID :], strict=True))
            assert (rest["noise"] > 0) == (rest["quality"] > 0) == (knots.std() > 1e-9) == is_drawn
            assert rest["shoulder"] == 1 if not is_drawn else rest["shoulder"] < 1
            assert is_drawn or knots.min() > 0
    edges = CameraRange((-2.0, 0.0), least_ev=2.0, local_ev=0.0)
    assert {draw_camera(rng, edges)[0].item() for _ in range(20)} == {-2.0}
    ev = torch.stack([draw_camera(rng, CameraRange((-3.0, 0.5), least_ev=0.8, local_ev=0.0)) for _ in range(50)])[:, 0]
    assert ev.max() <= -0.8  # nothing bright is far enough


def test_a_batch_holds_the_shares_that_were_asked_for(small_config_path):
    options = ["degradation=mixture", "identity_share=0.2", "camera_noise=0", "batch_size=10"]
    config = load_config(small_config_path, options)
    dataset = open_folder(config, config.train_data_dir, training=True)
    kinds = [dataset[epoch, index][0][5] for epoch in range(40) for index in range(10)]
    shares = [kinds.count(kind) / 400 for kind in (JITTERED, DEVELOPED, UNTOUCHED)]
    assert shares == pytest.approx([0.4, 0.4, 0.2], abs=0.07)
    valid = open_folder(config, config.valid_data_dir, training=False)
    assert UNTOUCHED not in [valid[1, index][0][5] for index in range(3)]
    arithmetic = train.Arithmetic("float32")
    batch = next(iter(build_loader(config, dataset, 10, arithmetic)[0]))
    inputs, targets = train.make_pairs(batch, arithmetic)
    difference = (inputs - targets).abs().amax(dim=(1, 2, 3))
    assert ((difference == 0) == (batch.kinds == UNTOUCHED)).all()
    again, _ = train.make_pairs(batch, arithmetic)
    assert torch.equal(inputs, again)


@THIN
def test_a_run_of_the_repositorys_recipe_resumes_to_the_same_end(small_config_path, photos, monkeypatch):
    shown = json.loads((REPOSITORY / "conf.json").read_text())
    recipe = [f"{key}={value}" for key, value in shown.items() if key.startswith("camera_ev")]
    recipe += [f"{key}={json.dumps(shown[key])}" for key in RECIPE]
    options = (*recipe, "epochs=2", "begin_use_adv_loss_epoch=9")
    assert run(small_config_path, *options, f"model_save_dir={photos / 'whole'}") == 0
    with monkeypatch.context() as patch:
        signal_in_step(patch, 4)
        assert run(small_config_path, *options) == 130
    assert run(small_config_path, *options) == 0
    resumed, whole = (load_checkpoint(photos / name / "last.pt") for name in ("run", "whole"))
    assert same(resumed["generator"], whole["generator"])
    assert without_speed(resumed["history"]) == without_speed(whole["history"])


def test_the_jitter_alone_is_what_it_was(small_config_path):
    config = load_config(small_config_path)
    dataset = open_folder(config, config.train_data_dir, training=True)
    assert {dataset[epoch, index][0][5] for epoch in range(5) for index in range(10)} == {JITTERED}
