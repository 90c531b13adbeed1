"""Readers of the published layouts, and training on what they find."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, picture
from PIL import Image
from test_train import THIN, run

import train
from data import Batch, LayoutError, PhotoDataset, find_pairs
from data.sources import build_loader, open_folder
from models import build_generator, network_class
from utils.config import load_config
from utils.training.checkpoint import load_checkpoint


def save(path, seed=0, size=(64, 48), level=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture(*size, seed=seed)
    (image if level is None else image.point(lambda value: int(value * level))).save(path)


def msec(root, scenes=3, experts=True):
    for split in ("training", "validation", "testing"):
        for scene in range(scenes):
            name = f"a{scene:04d}-photo_{split}"
            for exposure, level in (("0", 0.9), ("N1", 0.5), ("N1.5", 0.4), ("P1", 1.3), ("P1.5", 1.6)):
                save(root / split / "INPUT_IMAGES" / f"{name}_{exposure}.JPG", scene + len(split) * 10, level=level)
            targets = [f"expert_{e}_testing_set" for e in "abcde"] if split == "testing" and experts else ["GT_IMAGES"]
            for target in targets:
                save(root / split / target / f"{name}.jpg", scene + len(split) * 10)
    return root


def sice(root):
    for part, scenes in (("Dataset_Part1", 25), ("Dataset_Part2", 2)):
        for scene in range(1, scenes + 1):
            for frame in range(1, 8):
                save(root / part / str(scene) / f"{frame}.JPG", scene, (32, 24), level=frame / 4)
            save(root / part / "Label" / f"{scene}.JPG", scene, (32, 24))
    return root


def lol_v1(root):
    for split, count in (("our485", 22), ("eval15", 3)):
        for index in range(count):
            save(root / split / "low" / f"{index + 1}.png", index, (32, 24), level=0.2)
            save(root / split / "high" / f"{index + 1}.png", index, (32, 24))
    return root


def lol_v2(root):
    for name, low, normal in (("Real_captured", "low", "normal"), ("Synthetic", "r", "r")):
        for split, count in (("Train", 21), ("Test", 2)):
            for index in range(count):
                save(root / name / split / "Low" / f"{low}{index:05d}.png", index, (32, 24), level=0.2)
                save(root / name / split / "Normal" / f"{normal}{index:05d}.png", index, (32, 24))
    return root


def names(pairs, root):
    return [(p.input.relative_to(root).as_posix(), p.target.relative_to(root).as_posix(), p.group) for p in pairs]


def test_msec(tmp_path):
    root = msec(tmp_path)
    pairs, problems = find_pairs("msec", root, "test")
    assert not problems and len(pairs) == 3 * 5 * 5
    assert {pair.target_group for pair in pairs} == {f"expert_{e}" for e in "abcde"}
    groups = [pair.group for pair in pairs if pair.target_group == "expert_c"]
    assert [groups.count(name) for name in ("under", "proper", "over")] == [6, 3, 6]
    for split, folder in (("train", "training"), ("valid", "validation")):
        pairs, problems = find_pairs("msec", root, split)
        assert not problems and len(pairs) == 15 and {pair.target_group for pair in pairs} == {"expert_c"}
        for pair in pairs:
            assert pair.input.parts[-3] == folder and pair.input.stem.rpartition("_")[0] == pair.target.stem
    assert names(pairs[:1], root) == [
        (
            "validation/INPUT_IMAGES/a0000-photo_validation_0.JPG",
            "validation/GT_IMAGES/a0000-photo_validation.jpg",
            "proper",
        )
    ]


def test_sice_takes_the_second_darkest_and_second_brightest_frame(tmp_path):
    root = sice(tmp_path)
    pairs, problems = find_pairs("sice", root, "test")
    assert not problems
    assert names(pairs, root) == [
        (f"Dataset_Part2/{scene}/{frame}.JPG", f"Dataset_Part2/Label/{scene}.JPG", group)
        for scene in (1, 2)
        for frame, group in ((2, "under"), (6, "over"))
    ]
    splits = [find_pairs("sice", root, split).pairs for split in ("train", "valid")]
    assert [len(pairs) for pairs in splits] == [48, 2]
    assert not {pair.target for pair in splits[0]} & {pair.target for pair in splits[1]}
    assert len(find_pairs("sice", root / "Dataset_Part2", "test").pairs) == 4  # one part alone


def test_frames_are_ordered_by_number_and_not_by_name(tmp_path):
    for frame in range(1, 13):
        save(tmp_path / "7" / f"{frame}.JPG", 0, (32, 24))
    save(tmp_path / "Label" / "7.PNG", 0, (32, 24))
    assert [pair.input.name for pair in find_pairs("sice", tmp_path, "test").pairs] == ["11.JPG", "2.JPG"]


@pytest.mark.parametrize(
    ("dataset", "make"), [("lol_v1", lol_v1), ("lol_v2_real", lol_v2), ("lol_v2_synthetic", lol_v2)]
)
def test_lol(tmp_path, dataset, make):
    root = make(tmp_path)
    pairs, problems = find_pairs(dataset, root, "test")
    assert not problems and len(pairs) in (2, 3) and all(pair.group == "under" for pair in pairs)
    for pair in pairs:
        assert pair.input.stem[-5:] == pair.target.stem[-5:] and pair.input != pair.target
    trained, kept = (find_pairs(dataset, root, split).pairs for split in ("train", "valid"))
    assert len(trained) + len(kept) in (21, 22) and len(kept) == 1
    assert not {p.target for p in kept} & {p.target for p in trained} and not {p.target for p in pairs} & {
        p.target for p in kept
    }


def test_whatever_cannot_be_paired_is_named(tmp_path):
    for name in ("good", "no_target", "small", "broken", "twice"):
        save(tmp_path / "input" / f"{name}.png")
    for name in ("good", "no_input", "small", "broken", "twice"):
        save(tmp_path / "gt" / f"{name}.jpg", size=(32, 24) if name == "small" else (64, 48))
    save(tmp_path / "input" / "twice.jpg")
    (tmp_path / "gt" / "broken.jpg").write_text("no photo")
    pairs, problems = find_pairs("folder", tmp_path, "test")
    reasons = {f"{p.path.parent.name}/{p.path.name}": p.reason for p in problems}
    assert {pair.input.stem for pair in pairs} == {"good"}
    assert reasons["input/no_target.png"] == "no target" and reasons["gt/no_input.jpg"] == "no input"
    assert reasons["input/small.png"] == "is 64x48 px, its target small.jpg 32x24"
    assert "not a JPEG" in reasons["gt/broken.jpg"] and "is there twice: twice.jpg" in reasons["input/twice.png"]
    assert len(problems) == 6


def test_problems_of_msec_and_sice_are_named(tmp_path):
    root = msec(tmp_path / "msec", scenes=2)
    save(root / "testing" / "INPUT_IMAGES" / "strange.jpg")
    (root / "testing" / "expert_b_testing_set" / "a0001-photo_testing.jpg").unlink()
    pairs, problems = find_pairs("msec", root, "test")
    assert len(pairs) == 45 and len(problems) == 6
    assert any("its name ends in none of _0" in problem.reason for problem in problems)
    root = sice(tmp_path / "sice")
    (root / "Dataset_Part2" / "Label" / "1.JPG").unlink()
    for frame in range(3, 8):
        (root / "Dataset_Part2" / "2" / f"{frame}.JPG").unlink()
    pairs, problems = find_pairs("sice", root, "test")
    assert not pairs and [problem.reason for problem in problems] == [
        "no target Label/1",
        "has 2 frames: at least 3 are needed",
    ]


def test_sub_folders_are_part_of_the_name(tmp_path):
    for scene in ("a", "b"):
        save(tmp_path / "input" / scene / "1.png", seed=1)
        save(tmp_path / "gt" / scene / "1.png", seed=2)
    save(tmp_path / "input" / "2.png"), save(tmp_path / "gt" / "a" / "2.png")
    pairs, problems = find_pairs("folder", tmp_path, "test")
    assert [(p.input.parent.name, p.target.parent.name) for p in pairs] == [("a", "a"), ("b", "b")]
    assert {problem.reason for problem in problems} == {"no target", "no input"}


def test_what_archives_and_file_managers_leave_is_no_photo(tmp_path):
    root = sice(tmp_path)
    scene = root / "Dataset_Part2" / "1"
    for frame in range(1, 8):
        (scene / f"._{frame}.JPG").write_text("AppleDouble")
    (root / "Dataset_Part2" / "__MACOSX").mkdir()
    (root / "Dataset_Part2" / "Label" / ".DS_Store").write_text("")
    pairs, problems = find_pairs("sice", root, "test")
    assert not problems and [pair.input.name for pair in pairs] == ["2.JPG", "6.JPG"] * 2
    save(scene / "2.png", 0, (32, 24))  # two frames of one number: which one is meant?
    save(root / "Dataset_Part2" / "2" / "best.png", 0, (32, 24))
    pairs, problems = find_pairs("sice", root, "test")
    assert not pairs and len(problems) == 3
    assert {problem.reason.split(":")[0] for problem in problems} == {"is there twice", "has no number"}


def test_a_missing_expert_is_named(tmp_path):
    root = msec(tmp_path, scenes=1)
    for path in (root / "testing" / "expert_d_testing_set").iterdir():
        path.unlink()
    (root / "testing" / "expert_d_testing_set").rmdir()
    problems = find_pairs("msec", root, "test").problems
    assert [(problem.path.name, problem.reason[:7]) for problem in problems] == [("expert_d_testing_set", "missing")]


def test_a_small_set_keeps_a_photo_to_validate_on_and_no_copy_of_a_trained_one(tmp_path):
    for index in range(4):
        save(tmp_path / "input" / f"{index}.png", seed=index, level=0.5)
        save(tmp_path / "gt" / f"{index}.png", seed=index)
    splits = [find_pairs("folder", tmp_path, split).pairs for split in ("train", "valid")]
    assert [[pair.input.name for pair in pairs] for pairs in splits] == [["0.png", "1.png", "2.png"], ["3.png"]]
    save(tmp_path / "gt" / "3.png", seed=0)  # the target of 0 again
    assert not find_pairs("folder", tmp_path, "valid").pairs


def test_orientation_counts_as_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "input").mkdir()
    picture(48, 64).save(tmp_path / "input" / "a.jpg", exif=exif)
    save(tmp_path / "gt" / "a.jpg", size=(64, 48))
    assert len(find_pairs("folder", tmp_path, "test").pairs) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mse", ".", "test"), "data set mse is unknown: there are msec, sice"),
        (("msec", "absent", "test"), "absent: there is no such folder"),
        (("msec", ".", "test"), "has no folder testing"),
        (("sice", ".", "test"), "has no folder Label"),
        (("lol_v1", ".", "train"), "has no folder our485"),
        (("folder", ".", "test"), "has no folder input"),
    ],
)
def test_another_layout_is_named(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    dataset, root, split = arguments
    with pytest.raises(LayoutError, match=words):
        find_pairs(dataset, tmp_path / root, split)


def test_both_photos_of_a_pair_get_the_same_view(tmp_path):
    """The target is the input's negative: any other crop or flip would show."""
    for index in range(4):
        image = picture(90, 70, seed=index)
        (tmp_path / "input").mkdir(exist_ok=True), (tmp_path / "gt").mkdir(exist_ok=True)
        image.save(tmp_path / "input" / f"{index}.png")
        image.point(lambda value: 255 - value).save(tmp_path / "gt" / f"{index}.png")
    pairs = find_pairs("folder", tmp_path, "test").pairs
    for seed in (0, None):
        dataset = PhotoDataset("", (24, 32), jitter=(0.9, 0.9, 0.9, 2.0), seed=seed, crop_min_area=0.2, pairs=pairs)
        flips = set()
        for epoch in range(6):
            for index in range(4):
                target, real, is_pair, *_ = dataset[epoch, index][0]
                assert is_pair and (target.int() + real.int() - 255).abs().max() <= 2
                flips.add(float(real.float().mean()))
        assert len(flips) == (24 if seed == 0 else 4)


def test_real_inputs_are_used_and_the_others_are_synthesised(small_config_path, photos):
    lol_v1(photos / "lol")
    config = load_config(small_config_path, [f'train_pairs=["lol_v1:{photos / "lol"}"]', "batch_size=31"])
    arithmetic = train.Arithmetic("float32")
    dataset = open_folder(config, config.train_data_dir, training=True)
    assert len(dataset) == 10 + 21
    batch = next(iter(build_loader(config, dataset, 31, arithmetic)[0]))
    assert isinstance(batch, Batch) and batch.is_pair.sum() == 21
    inputs, targets = train.make_pairs(batch, arithmetic)
    real = batch.is_pair
    assert torch.equal(inputs[real], batch.inputs[real] / 255)
    assert (inputs[real].mean(dim=(1, 2, 3)) < 0.4 * targets[real].mean(dim=(1, 2, 3))).all()
    assert (inputs[~real] != targets[~real]).any()
    parts = batch.split(3)
    assert sum(len(part.is_pair) for part in parts) == 31
    assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)


@pytest.mark.parametrize("with_photos", [True, False])
@THIN
def test_training_on_pairs_learns_what_the_pairs_do(small_config_path, photos, with_photos, capsys):
    root = lol_v1(photos / "lol")
    options = [f'train_pairs=["lol_v1:{root}"]', f'valid_pairs=["lol_v1:{root}"]', "init_lr=0.02"]
    options += ["begin_use_adv_loss_epoch=99", "epochs=3", "conv=daconv", "laplacian_level_count=1"]
    options += ["layer_count_of_every_unet=[1]", "first_layer_out_channels_of_every_unet=[4]"]
    options += [] if with_photos else ["train_data_dir=", "valid_data_dir="]
    assert run(small_config_path, *options) == 0
    assert f"{31 if with_photos else 21} photos in views" in capsys.readouterr().err
    history = load_checkpoint(photos / "run" / "last.pt")["history"]
    assert history[-1]["psnr"] > history[0]["psnr"] + 2


@THIN
def test_bad_pairs_are_refused_or_skipped(small_config_path, photos, capsys):
    root = lol_v1(photos / "lol")
    (root / "our485" / "high" / "3.png").unlink()
    options = [f'train_pairs=["lol_v1:{root}"]', "epochs=1"]
    assert run(small_config_path, *options) == 2
    error = capsys.readouterr().err
    assert "1 problems, the first" in error and "no target" in error and "python evaluate.py --check lol_v1" in error
    assert run(small_config_path, *options, "skip_pair_problems=true") == 0
    assert "1 problems left out" in capsys.readouterr().err
    assert run(small_config_path, 'train_pairs=["lol_v3:x"]') == 2
    assert run(small_config_path, f'train_pairs=["{root}"]') == 2
    assert run(small_config_path, "train_data_dir=") == 2
    error = capsys.readouterr().err
    assert "data set lol_v3 is unknown" in error and 'a list of "DATASET:FOLDER"' in error
    assert 'train_data_dir = "" is empty' in error


CONFIGS = sorted(path for path in (REPOSITORY / "configs").glob("*.json") if path.stem != "scenes")


@functools.cache
def parameters(model, conv, layers, channels):
    sizes = {"layer_count_of_every_unet": layers, "first_layer_out_channels_of_every_unet": channels}
    network = build_generator(SimpleNamespace(model=model, conv=conv, **sizes))
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_ready_configurations_are_whole(path):
    config = load_config(path)
    network_class(config.model)
    assert config.train_pairs and config.valid_pairs and not config.train_data_dir
    assert config.conv == ("daconv" if path.stem.endswith("_daconv") else "plain")
    sizes = config.layer_count_of_every_unet, config.first_layer_out_channels_of_every_unet
    assert parameters(config.model, config.conv, *map(tuple, sizes)) >= 7_015_449
    assert config.model_save_dir == f"runs/{path.stem}"


def test_the_papers_configuration_is_the_papers(tmp_path, monkeypatch):
    config = load_config(REPOSITORY / "configs" / "msec_paper.json")
    shown = [(s.image_size[0], s.batch_size, s.epochs, s.begin_use_adv_loss_epoch - 1) for s in config.schedule]
    assert shown == [(128, 32, 40, 40), (256, 8, 30, 15), (512, 4, 20, 5)]
    assert (config.init_lr, config.final_lr, config.discriminator_init_lr) == (1e-4, 1e-4, 1e-5)
    assert json.loads((REPOSITORY / "configs" / "msec_paper.json").read_text())["train_pairs"] == ["msec:data/MSEC"]
    # a run of it, shortened, on a small tree of the same layout
    monkeypatch.chdir(tmp_path)
    msec(tmp_path / "data" / "MSEC", scenes=2)
    stages = [
        {"image_size": [32, 32], "batch_size": 5, "epochs": 1},
        {"batch_size": 4, "epochs": 1, "begin_use_adv_loss_epoch": 1},
    ]
    overrides = [f"stages={json.dumps(stages)}", "num_workers=0", "image_size=[48,48]", "precision=float32"]
    overrides += ["laplacian_level_count=2", "layer_count_of_every_unet=[2,1]"]
    overrides += ["first_layer_out_channels_of_every_unet=[4,4]"]
    assert run(REPOSITORY / "configs" / "msec_paper.json", *overrides) == 0
    history = load_checkpoint(tmp_path / "runs" / "msec_paper" / "last.pt")["history"]
    assert len(history) == 2 and "discriminator" in history[1] and np.isfinite(history[1]["valid_psnr"])
