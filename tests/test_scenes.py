import dataclasses

import imagecodecs
import numpy as np
import pytest
import torch
from conftest import REPOSITORY

from data import PhotoDataset, collate, make_pairs
from data.camera import CameraRange, draw_camera, scene_camera
from data.dataset import SCENE_VIEWS
from data.scenes import Direction, Scene, SceneError, crop, develop, draw_view, find_scenes, look, meter, shine
from data.sources import open_scenes
from utils.colour import from_linear, luma, luminance
from utils.config import load_config
from utils.device import Arithmetic


def panorama(height=64, stops=(-4.0, 6.0)):
    """Equirectangular light: a bright half around longitude 0, a dark one, and a texture."""
    rng = np.random.default_rng(0)
    longitude = (np.arange(2 * height) + 0.5) / (2 * height) * 2 * np.pi
    level = np.where(np.cos(longitude) > 0, stops[1], stops[0])[None, :, None]
    return np.exp2(level + 0.5 * rng.standard_normal((height, 2 * height, 3))).astype(np.float16)


def write_log_png(path, light):
    codes = (np.log2(np.maximum(light.astype(np.float64), 2.0**-14)) + 14) / 28 * 65535
    path.write_bytes(imagecodecs.png_encode(codes.clip(0, 65535).round().astype(np.uint16)))


@pytest.fixture
def scenes(tmp_path):
    folder = tmp_path / "hdri"
    (folder / "inside").mkdir(parents=True)
    write_log_png(folder / "a.png", panorama())
    (folder / "inside" / "b.hdr").write_bytes(imagecodecs.rgbe_encode(panorama(32).astype(np.float32), header=True))
    return folder


def test_both_formats_are_read_as_light_around_middle_grey(scenes):
    found = find_scenes(scenes)
    assert [scene.name for scene in found] == ["a", "inside/b"] and all(scene.is_panorama for scene in found)
    for scene in found:
        light = scene.light.astype(float)
        assert np.median(light @ (0.2126, 0.7152, 0.0722)) == pytest.approx(0.18, rel=0.05)
        assert light.max() / np.median(light[light < 0.18]) > 2**8  # the range is there


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.png", imagecodecs.png_encode(np.zeros((4, 8, 3), np.uint8)), "8 bits"),
        ("a.png", b"no picture", "not a scene"),
        ("a.hdr", b"no picture", "not a scene"),
        ("a.png", imagecodecs.png_encode(np.zeros((4, 8), np.uint16)), "shape"),
    ],
)
def test_what_is_no_scene_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SceneError, match=rf"{name}.*{words}"):
        find_scenes(tmp_path)


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(SceneError, match="no such folder"):
        find_scenes(tmp_path / "nowhere")
    with pytest.raises(SceneError, match="no scenes"):
        find_scenes(tmp_path)


def test_a_view_looks_where_it_is_told():
    # light that says where it comes from: columns count degrees of longitude, rows of latitude
    rows, columns = 180, 360
    light = np.zeros((rows, columns, 3), np.float16)
    light[..., 0] = np.arange(columns) + 0.5
    light[..., 1] = 90 - (np.arange(rows) + 0.5)[:, None] + 100
    straight = look(light, Direction(100, 0, 0, 60), (41, 41))
    assert straight[20, 20, 0] == pytest.approx(100, abs=0.6) and straight[20, 20, 1] == pytest.approx(100, abs=0.6)
    assert straight[20, 0, 0] == pytest.approx(100 - 30, abs=1.0) and straight[20, -1, 0] == pytest.approx(130, abs=1.0)
    assert straight[0, 20, 1] > straight[-1, 20, 1]  # up is up
    assert look(light, Direction(100, 20, 0, 60), (41, 41))[20, 20, 1] == pytest.approx(120, abs=0.6)
    rolled = look(light, Direction(100, 0, 90, 60), (41, 41))
    assert abs(rolled[20, 0, 1] - rolled[20, -1, 1]) == pytest.approx(60, abs=2)
    seam = look(light[..., :1].repeat(3, 2) * 0 + 1, Direction(0, 0, 0, 80), (16, 16))
    assert np.allclose(seam, 1)


def test_a_large_panorama_stays_one(tmp_path):
    write_log_png(tmp_path / "a.png", np.tile(panorama(16), (65, 65, 1))[:1033, :2066])
    [scene] = find_scenes(tmp_path)
    assert scene.is_panorama and scene.light.shape == (516, 1032, 3)


def test_views_of_photographs_in_light_lie_inside():
    light = np.random.default_rng(0).uniform(0.1, 2, (50, 70, 3)).astype(np.float16)
    assert not Scene("a", light).is_panorama
    assert np.abs(crop(light, 1.0, 0.5, 0.5, (50, 50)) - light[:, 10:60]).max() < 0.02
    for seed in range(5):
        view = draw_view(Scene("a", light), (24, 32), np.random.default_rng(seed))
        assert view.shape == (24, 32, 3) and view.min() >= 0.09 and view.max() <= 2.01


def test_draws_depend_on_their_seed_alone():
    scene = Scene("a", panorama())
    first, again, other = (draw_view(scene, (16, 16), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def view(size=48):
    light = look(panorama(128), Direction(90, 0, 0, 80), (size, size))  # half of it bright, half of it dark
    return torch.from_numpy(light).permute(2, 0, 1)[None]


def test_the_meter_brings_the_mean_to_its_level_whatever_a_lamp_does():
    light = view()
    exposed = from_linear(shine(meter(light, 0.42, 2.0) * luminance(light), 2.0))
    assert exposed.mean().item() == pytest.approx(0.42, abs=0.02)
    lamp = light.clone()
    lamp[..., :6, :6] = 2.0**13
    assert (meter(lamp, 0.42, 2.0) / meter(light, 0.42, 2.0)).log2().abs().item() < 0.4


def test_a_developed_view_shows_what_one_exposure_cannot():
    light = view()
    target = luma(develop(light))
    dark, bright = target[..., 26:], target[..., :22]
    if dark.mean() > bright.mean():
        dark, bright = bright, dark
    assert 0.05 < dark.mean() < bright.mean() < 0.97 and (target > 0.99).float().mean() < 0.2
    single = luma(scene_camera(light, draw_camera(np.random.default_rng(0), CameraRange(ev=(0, 0.1)))[None]))
    lost = ((single < 0.02) | (single > 0.98)).float().mean()
    assert lost > ((target < 0.02) | (target > 0.98)).float().mean()


def test_more_exposure_makes_brighter_and_clips_for_real():
    light, means = view(), []
    for ev in (-4.0, -2.0, 1.0, 3.0):
        ranges = CameraRange(ev=(min(ev, 0), max(ev, 0)), least_ev=abs(ev), local_share=0, noise_share=0, jpeg_share=0)
        draw = draw_camera(np.random.default_rng(3), ranges)
        means.append(scene_camera(light, draw[None]).mean().item())
    assert means == sorted(means) and means[0] < 0.3 and means[-1] > 0.5


def test_training_views_mix_photos_and_scenes_and_validation_has_fixed_ones(photos, scenes):
    def dataset(seed, share=0.5):
        return PhotoDataset(
            photos / "train",
            (32, 32),
            jitter=(0.5, 0, 0, 0),
            seed=seed,
            camera_range=CameraRange(),
            camera_share=1.0,
            scenes=find_scenes(scenes),
            scene_share=share,
        )

    training = dataset(0)
    keys = [(epoch, index) for epoch in range(1, 6) for index in range(len(training))]
    batch = collate([training[key] for key in keys])
    assert 0.2 < batch.is_scene.float().mean() < 0.8
    again = collate([dataset(0)[key] for key in keys])
    assert torch.equal(batch.light, again.light) and torch.equal(batch.camera, again.camera)
    inputs, targets = make_pairs(batch, Arithmetic("float32", "cpu"), 0.8)
    assert inputs.shape == targets.shape and (inputs != targets).any(dim=(1, 2, 3)).all()
    assert 0 <= targets.min() and targets.max() <= 1
    validation = dataset(None)
    assert len(validation) == len(validation.paths) + 2 * SCENE_VIEWS
    last = validation[1, len(validation) - 1][0]
    assert torch.equal(last[7], validation[9, len(validation) - 1][0][7])
    none = dataset(0, share=0.0)
    assert not collate([none[key] for key in keys]).is_scene.any()


def test_the_configuration_has_scenes_and_does_without():
    config = load_config(REPOSITORY / "conf.json")
    assert config.degradation == "mixture" and config.hdri_dir and config.scene_share > 0
    assert not open_scenes(dataclasses.replace(config, hdri_dir="nowhere"))  # without the folder: without scenes
