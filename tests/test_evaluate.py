import csv
import json
import math
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, picture
from PIL import Image
from test_paired import msec, save

import evaluate
from utils.colour import from_lab, luma, to_lab
from utils.evaluation import scoring
from utils.evaluation.baselines import BASELINES, clahe
from utils.evaluation.metrics import ciede2000, psnr, quantise, ssim, studio_luma, with_mean_of, with_power_to_mean_of
from utils.weights import save_weights


def run(*words):
    return evaluate.main([str(word) for word in words])


def rows(folder):
    with open(folder / "results.csv") as file:
        return list(csv.DictReader(file))


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(3, 3, 40, 52, generator=generator)
    second = (first + 0.2 * torch.randn(3, 3, 40, 52, generator=generator)).clamp(0, 1)
    first[0, :, :10], second[0, :, :5] = 0.5, 0.25  # greys have no hue
    first[1, :, 0], second[1, :, 1] = 0, 1
    return first, second


def test_metrics_are_those_of_torchmetrics_and_scikit_image():
    functional = pytest.importorskip("torchmetrics.functional.image")
    color, metrics = pytest.importorskip("skimage.color"), pytest.importorskip("skimage.metrics")
    first, second = images()
    numpy = [x.permute(0, 2, 3, 1).double().numpy() for x in (first, second)]
    expected = [functional.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(psnr(first, second), torch.stack(expected))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    for index in range(3):
        _, full = metrics.structural_similarity(
            numpy[0][index], numpy[1][index], channel_axis=-1, full=True, win_size=11, **options
        )
        assert ssim(first, second)[index].item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=2e-5)
    assert np.abs(to_lab(first.double()).permute(0, 2, 3, 1).numpy() - color.rgb2lab(numpy[0])).max() < 1e-9
    torch.testing.assert_close(from_lab(to_lab(first.double())), first.double(), atol=1e-6, rtol=0)
    difference = color.deltaE_ciede2000(*(color.rgb2lab(x) for x in numpy)).mean(axis=(1, 2))
    assert ciede2000(first, second).numpy() == pytest.approx(difference, rel=1e-5)
    y = np.stack([color.rgb2ycbcr(x)[..., 0] for x in numpy[0]]) / 255
    assert np.abs(studio_luma(first)[:, 0].numpy() - y).max() < 1e-3  # MATLAB's coefficients are rounded
    grey = [luma(x)[0, 0].double().numpy() for x in (first, second)]
    _, full = metrics.structural_similarity(*grey, full=True, win_size=11, **options)
    assert ssim(luma(first), luma(second))[0].item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=2e-5)


def test_the_published_examples_of_ciede2000():
    """Sharma et al. 2005, table 1, through the function's own arithmetic on L*a*b* values."""
    table = [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.evaluation.metrics.to_lab", lambda values: values)
        for first, second, expected in table:
            values = [torch.tensor(v, dtype=torch.float64)[None, :, None, None] for v in (first, second)]
            assert ciede2000(*values).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("metric", [ssim, ciede2000])
def test_large_photos_are_compared_in_strips_with_the_same_result(metric, monkeypatch):
    first, second = images()
    whole = metric(first, second)
    monkeypatch.setattr("utils.evaluation.metrics._STRIP", 52 * 7)
    torch.testing.assert_close(metric(first, second), whole)
    monkeypatch.setattr("utils.evaluation.metrics._STRIP", 2**20)
    tall = [x.repeat(1, 1, 5, 1) for x in (first, second)]
    expected = metric(*tall)
    monkeypatch.setattr("utils.evaluation.metrics._STRIP", 52 * 64)
    torch.testing.assert_close(metric(*tall), expected)


def test_gt_mean_makes_a_scaled_photo_right():
    target = images()[0] * 0.5
    assert psnr(with_mean_of(target * 0.5, target), target).min() > 45 > psnr(target * 0.5, target).max()


@pytest.mark.parametrize("power", [0.3, 1, 2.7])
def test_matched_is_after_the_power_that_gives_the_targets_mean(power):
    image = (images()[0] * 255).round() / 255
    target = quantise(image**power)
    matched = with_power_to_mean_of(image, target)
    assert psnr(matched, target).min() > 55  # the power was found
    assert torch.equal(matched, quantise(matched))
    other = images()[1]
    means = [x.mean(dim=(1, 2, 3)) for x in (with_power_to_mean_of(image, other), other)]
    assert torch.allclose(*means, atol=5e-4)


def test_what_no_power_changes_stays():
    flat = torch.stack([torch.zeros(3, 12, 12), torch.ones(3, 12, 12)])
    assert torch.equal(with_power_to_mean_of(flat, torch.full_like(flat, 0.5)), flat)


def test_auto_level_gamma_is_imagemagicks():
    """The values are those of `convert s.png -auto-level -auto-gamma -depth 16 rgb:-`, ImageMagick 6.9.11-60."""
    photo = [[12, 40, 90], [200, 180, 31], [25, 25, 25], [60, 55, 200], [140, 7, 9], [33, 120, 66]]
    theirs = [6143, 20865, 37931, 65535, 61050, 16974, 14088, 14088, 14088]
    theirs += [28364, 26600, 65535, 51486, 0, 3392, 17879, 46326, 30405]
    ours = BASELINES["auto_level_gamma"](np.array([photo], np.uint8)).ravel()
    assert np.abs(ours - np.array(theirs) / 257).max() <= 0.505


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (37, 53), (64, 64)])
def test_baselines_take_any_photo(name, size):
    for value in (0, 255, None):
        photo = np.full((*size, 3), value or 0, dtype=np.uint8)
        if value is None:
            photo = np.random.default_rng(0).integers(0, 256, photo.shape, dtype=np.uint8)
        result = BASELINES[name](photo)
        assert result.shape == photo.shape and result.dtype == np.uint8


def test_baselines_do_what_they_say():
    dark = np.asarray(picture(80, 64).point(lambda value: value // 4))
    assert BASELINES["identity"](dark) is dark
    assert BASELINES["gamma_to_mean"](dark).mean() / 255 == pytest.approx(0.45, abs=0.06)
    levels = BASELINES["auto_levels"](dark)
    assert levels.min() == 0 and levels.max() == 255
    assert BASELINES["histogram_equalisation"](dark).std() > 2 * dark.std()
    contrast = clahe(dark)
    assert dark.std() < contrast.std() and contrast.mean() > dark.mean()
    flat = np.full((64, 64, 3), 90, dtype=np.uint8)
    assert np.ptp(clahe(flat)) <= 2  # the limit keeps a flat photo flat


def test_the_table_is_the_mean_of_the_rows_and_the_rows_of_the_images(pairs, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("folder", pairs, "--method", "all", "--variants", "-o", out, "--save-images") == 0
    table = capsys.readouterr().out
    found = rows(out)
    assert len(found) == 5 * len(BASELINES)
    facts = json.loads((out / "results.json").read_text())
    for line in facts["means"]:
        own = [row for row in found if row["method"] == line["method"]]
        for name in ("psnr", "ssim", "ciede2000", "psnr_y", "psnr_gt_mean", "psnr_matched"):
            assert line[name] == pytest.approx(np.mean([float(row[name]) for row in own]))
        error = np.mean([float(row["mse"]) for row in own])
        assert line["psnr_pooled"] == pytest.approx(-10 * math.log10(error))
        (low, high), (least, most) = (line["intervals"][name] for name in ("psnr", "ssim"))
        cells = f"{line['psnr']:.2f} ({low:.2f} to {high:.2f}) | {line['ssim']:.3f} ({least:.3f} to {most:.3f})"
        assert f"| {line['method']} | all | all | 5 | {cells} |" in table
    for row in found:
        result = Image.open(out / "images" / row["method"] / row["input"])
        both = [
            torch.from_numpy(np.array(x)).permute(2, 0, 1)[None] / 255
            for x in (result, Image.open(pairs / row["target"]))
        ]
        assert float(row["psnr"]) == pytest.approx(psnr(*both).item())
    assert {"psnr", "ssim", "ciede2000", "psnr_pooled"} <= facts["metrics"].keys()
    assert "evaluate.py" in facts["command"][0] and facts["environment"]["versions"]["torch"]
    for name in BASELINES:
        with Image.open(out / f"sheet_{name}.png") as sheet:
            assert sheet.width > 900 and sheet.height > 1000
    assert not (out / "results.partial.jsonl").exists()


def test_weights_are_named_by_their_digest_and_can_be_shipped_ones(pairs, tmp_path):
    out = tmp_path / "out"
    assert run("folder", pairs, "-w", "msec", "--size", "32", "-o", out) == 0
    digest = (REPOSITORY / "weights" / "msec.safetensors.sha256").read_text().split()[0]
    assert json.loads((out / "results.json").read_text())["methods"] == {"msec": digest}


def test_msec_is_told_apart_by_expert_and_exposure(tmp_path, capsys):
    assert run("msec", msec(tmp_path / "msec", scenes=2), "--method", "identity") == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")][1:4] for line in lines[2:]]
    assert ["all", "all", "50"] in cells and ["expert_c", "all", "10"] in cells
    assert ["all", "under", "20"] in cells and ["expert_e", "proper", "2"] in cells
    assert ["expert_a", "proper and over", "6"] in cells and ["all", "proper and over", "30"] in cells
    assert len(cells) == 1 + 5 + 4 + 20


def test_check_decodes_every_part_counts_and_names(pairs, capsys):
    assert run("--check", "folder", pairs, "--split", "test") == 0
    assert "5 pairs, 0 problems" in capsys.readouterr().out
    (pairs / "gt" / "2.png").unlink()
    whole = (pairs / "gt" / "4.png").read_bytes()
    (pairs / "gt" / "4.png").write_bytes(whole[: len(whole) // 2])  # the header is whole
    assert run("--check", "folder", pairs, "--split", "test") == 1
    output, errors = capsys.readouterr()
    assert "3 pairs, 2 problems" in output and f"PROBLEM {pairs / 'input' / '2.png'}: no target" in errors
    assert f"PROBLEM {pairs / 'gt' / '4.png'}: damaged or cut short" in errors
    assert run("folder", pairs, "--method", "identity") == 1
    assert "--skip-problems" in capsys.readouterr().err
    assert run("folder", pairs, "--method", "identity", "--skip-problems") == 0
    output, errors = capsys.readouterr()
    assert "| identity | all | all | 3 |" in output and "2 problems were left out" in errors


def test_check_looks_at_training_validation_and_test(tmp_path, capsys):
    root = msec(tmp_path, scenes=2)
    assert run("--check", "msec", root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| train | expert_c | under | 4 |" in lines and "| valid | expert_c | proper | 2 |" in lines
    assert "| test | expert_e | over | 4 |" in lines and "70 pairs, 0 problems" in lines
    path = next((root / "training" / "INPUT_IMAGES").iterdir())
    path.write_bytes(path.read_bytes()[:700])
    assert run("--check", "msec", root) == 1
    assert f"PROBLEM {path}: damaged" in capsys.readouterr().err


def test_predictions_of_others_are_found_by_name(pairs, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    shutil.copytree(pairs / "gt", theirs / "deep")
    Image.open(theirs / "deep" / "0.png").save(theirs / "deep" / "0.webp", lossless=True)
    (theirs / "deep" / "0.png").unlink()
    assert run("folder", pairs, "--predictions", theirs) == 0
    assert (
        "| theirs | all | all | 5 | 100.00 (100.00 to 100.00) | 1.000 (1.000 to 1.000) | 0.00 ("
        in capsys.readouterr().out
    )
    Image.open(pairs / "gt" / "1.png").resize((45, 30)).save(theirs / "deep" / "1.png")
    assert run("folder", pairs, "--predictions", theirs) == 1
    assert "differ in size, 45x30 and 90x61 px: resizing" in capsys.readouterr().err
    (theirs / "deep" / "1.png").unlink()
    assert run("folder", pairs, "--predictions", theirs) == 1
    assert "for 1 of 5 inputs, such as" in capsys.readouterr().err
    assert run("folder", pairs, "--predictions", theirs, "-w", "msec") == 2
    assert run("folder", pairs, "--predictions", tmp_path / "absent") == 2


def test_predictions_may_be_named_by_the_targets(tmp_path, capsys):
    for index in range(3):
        save(tmp_path / "v2" / "Test" / "Low" / f"low{index}.png", seed=index, level=0.5)
        save(tmp_path / "v2" / "Test" / "Normal" / f"normal{index}.png", seed=index)
        save(tmp_path / "theirs" / f"normal{index}.png", seed=index)
    assert run("lol_v2_real", tmp_path / "v2", "--predictions", tmp_path / "theirs") == 0
    assert "| theirs | all | all | 3 | 100.00 (" in capsys.readouterr().out
    (tmp_path / "theirs" / "normal1.png").unlink()
    assert run("lol_v2_real", tmp_path / "v2", "--predictions", tmp_path / "theirs") == 1
    assert "for 1 of 3 inputs" in capsys.readouterr().err


def test_predictions_where_names_repeat_need_the_folder(tmp_path, capsys):
    for scene in ("1", "2"):
        for frame in ("1", "2", "3"):
            save(tmp_path / "set" / scene / f"{frame}.png", seed=int(scene), level=0.5)
        save(tmp_path / "set" / "Label" / f"{scene}.png", seed=int(scene))
        save(tmp_path / "flat" / f"{scene}.png", seed=int(scene))  # one for each scene: of which frame?
        for frame in ("2",):
            save(tmp_path / "mirrored" / scene / f"{frame}.png", seed=int(scene))
    assert run("sice", tmp_path / "set", "--predictions", tmp_path / "flat") == 1
    assert "in the input's folder where names repeat" in capsys.readouterr().err
    assert run("sice", tmp_path / "set", "--predictions", tmp_path / "mirrored") == 0
    assert "| mirrored | all | all | 4 | 100.00 (" in capsys.readouterr().out


def test_predictions_in_full_size_are_reduced_as_the_target_is(pairs, tmp_path, capsys):
    assert run("folder", pairs, "--predictions", pairs / "gt", "--longest", "50") == 0
    assert "| gt | all | all | 5 | 100.00 (" in capsys.readouterr().out
    shutil.copytree(pairs / "gt", tmp_path / "other")
    image = Image.open(pairs / "gt" / "1.png")
    image.resize((180, 122)).save(tmp_path / "other" / "1.png")  # neither the target's size nor the reduced one
    assert run("folder", pairs, "--predictions", tmp_path / "other", "--longest", "50") == 1
    assert "180x122 and 50x34 px" in capsys.readouterr().err


def test_runs_are_named_by_their_folders(pairs, tmp_path, capsys):
    for name in ("plain_run", "daconv_run"):
        (tmp_path / name).mkdir()
        for suffix in ("", ".sha256"):
            source = REPOSITORY / "weights" / f"zero_dce.safetensors{suffix}"
            (tmp_path / name / f"best.safetensors{suffix}").write_bytes(
                source.read_bytes().replace(b"zero_dce.safetensors", b"best.safetensors")
                if suffix
                else source.read_bytes()
            )
    words = [word for name in ("plain_run", "daconv_run") for word in ("-w", tmp_path / name / "best.safetensors")]
    assert run("folder", pairs, "--size", "32", *words) == 0
    output = capsys.readouterr().out
    assert "| plain_run | all" in output and "| daconv_run | all" in output


def test_wrong_usage_is_2(pairs, tmp_path, capsys):
    assert run("folder", tmp_path) == 2
    assert run("folder", pairs, "-w", tmp_path / "absent.safetensors") == 2
    assert run("folder", pairs, "--method", "identity", "--save-images") == 2
    assert capsys.readouterr().err.count("ERROR") == 3
    for words in (("lol", pairs), ("folder", pairs, "--size", "0"), ("folder", pairs, "--workers", "-1")):
        with pytest.raises(SystemExit) as caught:
            run(*words)
        assert caught.value.code == 2


def test_lpips_says_what_is_missing(pairs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert run("folder", pairs, "--method", "identity", "--lpips") == 2
    assert "pip install lpips" in capsys.readouterr().err


def test_a_known_overlap_is_warned_of(pairs, tmp_path, capsys):
    from models import build_generator
    from utils.config import load_config

    config = load_config(REPOSITORY / "conf.json", ["model=zero_dce"])
    values = config.to_dict()
    names = ("model", "laplacian_level_count", "layer_count_of_every_unet", "first_layer_out_channels_of_every_unet")
    save_weights(
        tmp_path / "lol.safetensors",
        build_generator(config).state_dict(),
        architecture={name: values[name] for name in names},
        working_size=32,
        training={"config": {"train_pairs": ["lol_v1:data/LOL"]}},
    )
    root = tmp_path / "v2" / "Real_captured" / "Test"
    shutil.copytree(pairs / "input", root / "Low")
    shutil.copytree(pairs / "gt", root / "Normal")
    assert run("lol_v2_real", tmp_path / "v2", "-w", tmp_path / "lol.safetensors") == 0
    assert "LOL-v1's training set holds photos of LOL-v2-real's test set" in capsys.readouterr().err


def test_an_interrupted_run_goes_on(pairs, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    whole = tmp_path / "whole"
    assert run("folder", pairs, "--method", "gamma_to_mean", "-o", whole) == 0
    original = scoring.score_photo

    def counted(*arguments):
        seen.append(arguments[1][0].input.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(scoring, "score_photo", counted)
    command = ("folder", pairs, "--method", "gamma_to_mean", "-o", out, "--workers", "1")
    assert run(*command) == 130
    partial = out / "results.partial.jsonl"
    text = partial.read_text()
    assert text.count("\n") == 3  # the settings and two rows
    partial.write_text(text + '{"input": "input/2.png", "tar')  # killed in the middle of a line
    assert run(*command) == 0
    assert [seen.count(f"{index}.png") for index in (0, 1)] == [1, 1] and rows(out) == rows(whole)
    partial.write_bytes(b"\xff" + text.encode())  # damaged: begins anew
    assert run(*command) == 0
    assert seen.count("0.png") == 2 and rows(out) == rows(whole)
    partial.write_text(text)
    assert run("folder", pairs, "--method", "identity", "-o", out) == 0  # other settings begin anew
    assert {row["method"] for row in rows(out)} == {"identity"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_the_photo_in_work(pairs, tmp_path, monkeypatch, number, code):
    out, score, sent = tmp_path / "out", scoring.score_photo, []

    def signalled(*arguments):
        if not sent:
            sent.append(os.kill(os.getpid(), number))
        return score(*arguments)

    monkeypatch.setattr(scoring, "score_photo", signalled)
    command = ("folder", pairs, "--method", "identity", "-o", out, "--workers", "1")
    if code == 130:
        assert run(*command) == code
    else:
        with pytest.raises(SystemExit, match=str(code)):
            run(*command)
    assert (out / "results.partial.jsonl").read_text().count("\n") == 2  # the settings and the row
    assert run(*command) == 0 and len(rows(out)) == 5


def test_a_killed_run_goes_on(pairs, tmp_path, fork):
    out = tmp_path / "out"
    process = fork("evaluate", "folder", pairs, "--method", "clahe", "--workers", "1", "-o", out)
    while process.poll() is None and not (out / "results.partial.jsonl").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run("folder", pairs, "--method", "clahe", "-o", out) == 0
    assert len(rows(out)) == 5


def test_reducing_first_is_the_stated_protocol(pairs, tmp_path):
    out = tmp_path / "out"
    assert run("folder", pairs, "--method", "identity", "--longest", "45", "-o", out) == 0
    assert {row["width"] for row in rows(out)} == {"45"}
    assert json.loads((out / "results.json").read_text())["longest"] == 45
