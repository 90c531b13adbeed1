import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, picture
from PIL import Image, ImageCms

import predict
from models import build_generator
from utils.device import Arithmetic
from utils.weights import save_weights

ARCHITECTURE = {"layer_count_of_every_unet": [1, 1], "first_layer_out_channels_of_every_unet": [4, 4]}


def generator(gain=None):
    """An untrained network, the identity; or one that multiplies everything by a gain below 2."""
    network = build_generator(SimpleNamespace(**ARCHITECTURE))
    if gain is not None:
        network.forward = lambda photo: [gain * photo]  # type: ignore[method-assign]
    return network


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w" / "w.safetensors"
    path.parent.mkdir()
    save_weights(path, generator().state_dict(), architecture=ARCHITECTURE, working_size=64, training={})
    return path


@pytest.fixture
def run(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run_predict(*words):
        return predict.main([*map(str, words), "-o", "out", "-w", str(weights)])

    return run_predict


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize("name", ["a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp", "f.tif"])
@pytest.mark.parametrize("size", [(150, 100), (1, 1), (700, 3)])
def test_every_format_and_size_keeps_name_format_and_size(tmp_path, run, name, size):
    picture(*size).save(tmp_path / name)
    assert run(tmp_path / name) == 0
    with Image.open(tmp_path / name) as before, Image.open(tmp_path / "out" / name) as after:
        assert (after.format, after.size, after.mode) == (before.format, before.size, "RGB")
        error = np.abs(np.array(before.convert("RGB")).astype(int) - np.array(after).astype(int))
    assert error.mean() < 2  # the identity network; what remains is a second lossy compression
    assert os.listdir(tmp_path / "out") == [name]


def test_the_identity_network_returns_a_lossless_photo_almost_exactly(tmp_path, run):
    picture(300, 200).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png") == 0
    assert np.abs(pixels(tmp_path / "a.png").astype(int) - pixels(tmp_path / "out" / "a.png")).max() <= 1


def test_the_correction_is_applied_at_full_size():
    photo = np.array(picture(500, 333)) // 2
    corrector = predict.Corrector(generator(gain=1.8), Arithmetic("float32"), 64)
    assert np.abs(corrector(photo) - 1.8 * photo).max() <= 1


def test_a_network_whose_output_is_not_finite_writes_nothing(tmp_path, monkeypatch, capsys):
    picture(50, 40).save(tmp_path / "a.png")
    corrector = predict.Corrector(generator(gain=float("nan")), Arithmetic("float32"), 64)
    job = predict.Job(tmp_path / "a.png", tmp_path / "out" / "a.png")
    assert predict.correct_all([job], corrector, overwrite=False) == (0, 0, 1)
    assert "not finite" in capsys.readouterr().err and not (tmp_path / "out" / "a.png").exists()


def test_a_network_that_overflows_in_half_precision_is_run_again_in_float32():
    photo = np.array(picture(100, 80)) // 2
    network = generator()
    calls = []

    def forward(x):
        calls.append(torch.is_autocast_enabled("cpu"))
        return [x * float("inf") if calls[-1] else 1.5 * x]

    network.forward = forward  # type: ignore[method-assign]
    result = predict.Corrector(network, Arithmetic("bfloat16"), 64)(photo)
    assert calls == [True, False] and np.abs(result - 1.5 * photo).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_come_out_the_right_way_up(tmp_path, run, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera maker"
    picture(90, 60).save(tmp_path / "a.png", exif=exif)
    assert run(tmp_path / "a.png") == 0
    with Image.open(tmp_path / "out" / "a.png") as after:
        assert after.size == ((90, 60) if orientation < 5 else (60, 90))
        assert after.getexif().get(0x0112, 1) == 1 and after.getexif()[0x010F] == "Camera maker"
        expected = Image.open(tmp_path / "a.png")
        turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
        if orientation in turns:
            expected = expected.transpose(Image.Transpose(turns[orientation]))
        assert np.abs(np.array(expected).astype(int) - np.array(after)).max() <= 1


def test_grey_stays_grey_and_alpha_is_kept(tmp_path, run):
    grey = picture(60, 40).convert("L")
    grey.save(tmp_path / "grey.jpg")
    clear = picture(60, 40)
    clear.putalpha(grey)
    clear.save(tmp_path / "clear.png")
    assert run(tmp_path / "grey.jpg", tmp_path / "clear.png") == 0
    assert pixels(tmp_path / "out" / "grey.jpg").ndim == 2
    assert np.array_equal(pixels(tmp_path / "out" / "clear.png")[..., 3], np.array(grey))


def test_a_colour_profile_is_applied_and_a_broken_one_ignored(tmp_path, run):
    red = Image.new("RGB", (40, 40), (200, 60, 50))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")  # red is green there
    for name, profile in (("srgb.png", srgb), ("swapped.png", swapped), ("broken.png", b"no profile at all")):
        red.save(tmp_path / name, icc_profile=profile)
    assert run(*(tmp_path / name for name in ("srgb.png", "swapped.png", "broken.png"))) == 0
    for name in ("srgb.png", "broken.png"):
        assert np.abs(pixels(tmp_path / "out" / name).astype(int) - (200, 60, 50)).max() <= 2
    result = pixels(tmp_path / "out" / "swapped.png")[0, 0]
    assert result[1] > 150 > 100 > result[0]
    with Image.open(tmp_path / "out" / "swapped.png") as image:
        assert "icc_profile" not in image.info  # the pixels are sRGB now


def test_odd_metadata_does_not_cost_the_photo(tmp_path, run):
    picture(60, 40).save(
        tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\0\0\0\0"
    )
    assert run(tmp_path / "a.jpg") == 0
    for name in ("b.png", "c.webp"):
        for exif in (b"Exif\0\0garbagegarbage", b"Exif\0\0II*\0"):
            picture(60, 40).save(tmp_path / name, exif=exif)
            assert run(tmp_path / name, "--overwrite") == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK"])
def test_rotated_tiffs_come_out_upright(tmp_path, run, mode):
    for orientation, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)):
        image = picture(64, 32).convert(mode)
        image.save(tmp_path / "a.tif", tiffinfo={274: orientation})
        assert run(tmp_path / "a.tif", "--overwrite") == 0
        expected = np.array(image.transpose(turn).convert("RGB")).astype(int)
        with Image.open(tmp_path / "out" / "a.tif") as after:
            assert np.abs(expected - np.array(after.convert("RGB"))).max() <= 2


def test_one_flipped_byte_anywhere_in_a_tiff_never_stops_the_batch(tmp_path, run, capsys):
    picture(24, 16).save(tmp_path / "a.tif")
    whole = (tmp_path / "a.tif").read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    tail = len(whole) - 200  # the directory stands at the end
    for place in [*range(8), *range(tail, len(whole))]:
        data = bytearray(whole)
        data[place] ^= 0xFF
        (folder / f"{place:05}.tif").write_bytes(data)
    assert run(folder) in (0, 1)
    assert "done 208: " in capsys.readouterr().out


def test_a_folder_with_bad_files_goes_on_names_them_and_exits_1(tmp_path, run, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpg", "a.png", "-dash.jpg", "[g]*.png", "caf\u00e9 \U0001f305.webp", "new\nline.png"):
        picture(50, 40).save(folder / name)
    whole = (folder / "a.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no photo")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(folder / "deep.png")
    frames = [picture(20, 20, seed) for seed in range(3)]
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    os.mkfifo(folder / "pipe.jpg")
    (folder / "notes.txt").write_text("skipped quietly")
    assert run(folder, folder / "pipe.jpg", tmp_path / "absent.jpg") == 1
    output, errors = capsys.readouterr()
    assert "done 13: 6 written to out, 0 skipped, 7 failed" in output
    for name, reason in {
        "cut.jpg": "cut short",
        "empty.jpg": "the file is empty",
        "text.png": "not a JPEG, PNG, WebP, BMP or TIFF photo",
        "deep.png": "more than 8 bits per channel",
        "animated.webp": "holds 3 pictures",
        "pipe.jpg": "not a regular file",
        "absent.jpg": "No such file",
    }.items():
        lines = [line for line in errors.splitlines() if line.startswith("ERROR") and name in line]
        assert len(lines) == 1 and reason in lines[0]
    assert len(os.listdir("out")) == 6


def test_done_work_is_skipped_unless_told(tmp_path, run, capsys):
    picture(50, 40).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png") == 0
    (tmp_path / "out" / "a.png").write_text("mine")
    assert run(tmp_path / "a.png") == 0
    assert (tmp_path / "out" / "a.png").read_text() == "mine" and "1 skipped" in capsys.readouterr().out
    assert run(tmp_path / "a.png", "--overwrite") == 0
    assert pixels(tmp_path / "out" / "a.png").shape == (40, 50, 3)


def test_originals_and_photos_of_equal_name_are_never_replaced(tmp_path, run, capsys):
    for folder in ("out", "other"):
        (tmp_path / folder).mkdir()
        picture(50, 40).save(tmp_path / folder / "a.png")
    before = (tmp_path / "out" / "a.png").read_bytes()
    assert run(tmp_path / "out", "--overwrite") == 2
    assert "would replace the original" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png").read_bytes() == before
    shutil.copytree(tmp_path / "other", tmp_path / "third")
    (tmp_path / "out" / "a.png").unlink()
    assert run(tmp_path / "other", tmp_path / "third") == 1
    assert "same name as" in capsys.readouterr().err
    assert run("a" * 300, tmp_path / "other") == 1
    assert "File name too long" in capsys.readouterr().err
    assert run(tmp_path / "x" / "absent.png", tmp_path / "y" / "absent.png", tmp_path / "x" / "absent.png") == 1


def test_usage_errors_exit_with_2(tmp_path, run, weights, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty") == 2
    picture(50, 40).save(tmp_path / "a.png")
    for words in ((tmp_path / "a.png",), (tmp_path / "a.png", "-o", "x", "--size", "5"), ("--nonsense",)):
        with pytest.raises(SystemExit) as caught:
            predict.main([*map(str, words)])
        assert caught.value.code == 2
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run(tmp_path / "a.png") == 2
    assert "damaged: SHA-256" in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    program = (
        "import sys, predict\ntry: predict.main(['-h'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0 and "examples:" in result.stdout


def test_read_only_output_fails_without_a_trace(tmp_path, run, capsys):
    picture(50, 40).save(tmp_path / "a.png")
    (tmp_path / "out").write_text("a file where the folder should be")
    assert run(tmp_path / "a.png") == 1
    assert "ERROR" in capsys.readouterr().err and (tmp_path / "out").is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_only_whole_photos(tmp_path, weights, number, code):
    folder = tmp_path / "in"
    folder.mkdir()
    picture(900, 600).save(tmp_path / "one.png")
    for index in range(60):
        shutil.copy(tmp_path / "one.png", folder / f"{index:02}.png")
    command = [sys.executable, REPOSITORY / "predict.py", folder, "-o", tmp_path / "out", "-w", weights]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "out").glob("[!.]*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == code
    written = os.listdir(tmp_path / "out")
    assert 0 < len(written) < 60
    assert all(pixels(tmp_path / "out" / name).shape == (600, 900, 3) for name in written)


def test_the_bare_command_corrects_the_examples_visibly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert predict.main([]) == 0
    examples = REPOSITORY / "data" / "examples"
    names = sorted(path.name for path in examples.iterdir() if path.suffix == ".jpg")
    assert sorted(os.listdir("results")) == names and len(names) >= 6
    for name in names:
        before, after = (pixels(folder / name).mean() / 255 for folder in (examples, tmp_path / "results"))
        assert 0.25 < after < 0.75, name
        assert abs(after - 0.5) < abs(before - 0.5) or 0.4 < after < 0.6, name
