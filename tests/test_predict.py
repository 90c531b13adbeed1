import errno
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from conftest import REPOSITORY, picture
from forked import ELASTIC
from PIL import Image, ImageCms

import predict
from models import build_generator
from utils.weights import load_weights, save_weights

ARCHITECTURE = {"layer_count_of_every_unet": [1, 1], "first_layer_out_channels_of_every_unet": [4, 4]}


def generator():
    """An untrained network: the identity."""
    return build_generator(SimpleNamespace(**ARCHITECTURE))


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrained")
    state = generator().state_dict()
    save_weights(folder / "w.safetensors", state, architecture=ARCHITECTURE, working_size=64, training={})
    return folder


@pytest.fixture
def weights(tmp_path, untrained):
    return Path(shutil.copytree(untrained, tmp_path / "w")) / "w.safetensors"


@pytest.fixture
def run(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run_predict(*words):
        return predict.main([*map(str, words), "-o", "out", "-w", str(weights)])

    run_predict.weights = weights
    return run_predict


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize("name", ["a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp", "f.tif", "g.avif"])
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


def test_weights_whose_output_is_not_finite_write_nothing(tmp_path, run, weights, capsys):
    picture(50, 40).save(tmp_path / "a.png")
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in load_weights(weights).state.items()}
    save_weights(weights, broken, architecture=ARCHITECTURE, working_size=64, training={})
    assert run(tmp_path / "a.png") == 1
    assert "not finite" in capsys.readouterr().err and not (tmp_path / "out" / "a.png").exists()


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


def test_a_colour_profile_is_kept_and_a_broken_one_dropped(tmp_path, run):
    red = Image.new("RGB", (40, 40), (200, 60, 50))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")  # red is green there
    for name, profile in (("srgb.png", srgb), ("swapped.png", swapped), ("broken.png", b"no profile at all")):
        red.save(tmp_path / name, icc_profile=profile)
    assert run(*(tmp_path / name for name in ("srgb.png", "swapped.png", "broken.png"))) == 0
    for name in ("srgb.png", "broken.png"):
        assert np.abs(pixels(tmp_path / "out" / name).astype(int) - (200, 60, 50)).max() <= 2
    assert np.array_equal(pixels(tmp_path / "swapped.png"), pixels(tmp_path / "out" / "swapped.png"))  # identity
    for name, expected in (("srgb.png", srgb), ("swapped.png", swapped), ("broken.png", None)):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.info.get("icc_profile") == expected


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
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(folder / "float.tif")
    frames = [picture(20, 20, seed) for seed in range(3)]
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    os.mkfifo(folder / "pipe.jpg")
    (folder / "notes.txt").write_text("skipped quietly")
    assert run(folder, folder / "pipe.jpg", tmp_path / "absent.jpg") == 1
    output, errors = capsys.readouterr()
    assert "done 13: 6 written, 0 skipped, 7 failed; photos in out" in output
    for name, reason in {
        "cut.jpg": "cut short",
        "empty.jpg": "the file is empty",
        "text.png": "not a JPEG, PNG, WebP, TIFF, BMP or AVIF photo",
        "float.tif": "floating-point pixels",
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
    assert run(tmp_path / "x" / "absent.png", tmp_path / "y" / "absent.png", tmp_path / "x" / "absent.png") == 2


def test_usage_errors_exit_with_2(tmp_path, run, weights, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty") == 2
    picture(50, 40).save(tmp_path / "a.png")
    for words in (
        (tmp_path / "a.png",),
        (tmp_path / "a.png", "-o", "x", "--size", "5"),
        (tmp_path / "a.png", "-o", "x", "--strength", "1.5"),
        (tmp_path / "a.png", "-o", "x", "--quality", "0"),
        (tmp_path / "a.png", "-o", "x", "--suffix", "a/b"),
        ("--nonsense",),
    ):
        with pytest.raises(SystemExit) as caught:
            predict.main([*map(str, words)])
        assert caught.value.code == 2
    assert run(tmp_path / "a.png", "--device", "abacus") == 2
    assert 'device "abacus" cannot be used' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path / "a.png"), "-o", "x", "-w", "absent.safetensors"])
    assert "absent.safetensors: no such file" in capsys.readouterr().err
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run(tmp_path / "a.png") == 2
    assert "damaged: SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("absent.jpg",), ("absent.jpg", "empty", "*.webp"), ("empty", "-r")])
def test_nothing_to_correct_is_wrong_usage_and_known_without_torch(tmp_path, run, capsys, monkeypatch, words):
    (tmp_path / "empty").mkdir()
    monkeypatch.setitem(sys.modules, "utils.photos.predictor", None)  # an import of it would fail
    assert run(*words) == 2
    errors = capsys.readouterr().err
    for word in (word for word in words if word != "-r"):
        assert errors.count(f"ERROR {word}: ") == 1
    program = (
        "import sys, predict; predict.main(sys.argv[1:]); print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program, *words, "-o", "out"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(command, capture_output=True, text=True, env=environment).stdout == "[]\n"


def test_the_content_decides_and_not_the_name(tmp_path, run, capsys):
    contents = {"a.heic": "JPEG", "b.jpg": "PNG", "c.nef": "JPEG", "d.JPG": "WEBP", "e": "PNG", "f.tif": "TIFF"}
    for name, kind in contents.items():
        picture(40, 30).save(tmp_path / name, format=kind)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    (tmp_path / "g.jpg").write_bytes(heic)
    (tmp_path / "h.jpg").write_text("a text, whatever it is called")
    (tmp_path / "i.heic").write_text("another")
    tifffile.imwrite(tmp_path / "j.tif", np.zeros((9, 9, 3), np.uint8), extratags=[(50706, "B", 4, (1, 4, 0, 0), True)])
    with patched_import("pillow_heif", "rawpy"):
        assert run(*(tmp_path / name for name in (*contents, "g.jpg", "h.jpg", "i.heic", "j.tif"))) == 1
    assert sorted(os.listdir("out")) == ["a.jpg", "b.jpg", "c.jpg", "d.JPG", "e", "f.tif"]
    for name, kind in zip(("a.jpg", "b.jpg", "c.jpg", "d.JPG", "e", "f.tif"), contents.values(), strict=True):
        with Image.open(tmp_path / "out" / name) as after:
            assert after.format == kind
    errors = capsys.readouterr().err
    assert f"{tmp_path / 'g.jpg'}: HEIC photos need the package pillow-heif: pip install pillow-heif" in errors
    assert f"{tmp_path / 'h.jpg'}: not a JPEG" in errors and f"{tmp_path / 'i.heic'}: not a JPEG" in errors
    assert f"{tmp_path / 'j.tif'}: Raw photos need the package rawpy" in errors


def test_photos_that_get_one_name_by_their_content_both_survive(tmp_path, run):
    for name in ("a.heic", "a.jpg"):
        picture(40, 30, seed=len(name)).save(tmp_path / name, format="JPEG")
    assert run(tmp_path) == 0
    assert sorted(os.listdir("out")) == ["a.heic.jpg", "a.jpg"]


@contextmanager
def patched_import(*missing):
    """As if packages were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in missing:
            patch.setitem(sys.modules, name, None)
        yield


def test_recursion_mirrors_the_tree_and_leaves_out_hidden_files_and_the_output(tmp_path, run, capsys):
    folder = tmp_path / "in"
    for name in ("a.png", "sub/a.png", "sub/deeper/b.png", ".hidden/c.png", ".d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(40, 30, seed=len(name)).save(folder / name)
    os.symlink(folder, folder / "loop")
    (folder / "notes.txt").write_text("not a photo")
    assert run(folder) == 0
    assert os.listdir("out") == ["a.png"]
    for _ in range(2):  # the second time, everything is there
        assert predict.main([str(folder), "-r", "-v", "-o", str(folder / "out"), "-w", str(run.weights)]) == 0
        written = sorted(str(p.relative_to(folder / "out")) for p in (folder / "out").rglob("*.png"))
        assert written == ["a.png", "sub/a.png", "sub/deeper/b.png"]
    assert "0 written, 3 skipped, 0 failed" in capsys.readouterr().out
    assert np.array_equal(pixels(folder / "out/sub/a.png"), pixels(folder / "sub/a.png"))


def test_photos_of_one_stem_survive_a_change_of_format(tmp_path, run):
    for name in ("a.jpg", "a.png", "a.webp", "b.jpg"):
        picture(40, 30, seed=len(name)).save(tmp_path / name)
    assert run(*(tmp_path / name for name in ("a.jpg", "a.png", "a.webp", "b.jpg")), "--format", "png") == 0
    assert sorted(os.listdir("out")) == ["a.jpg.png", "a.png", "a.webp.png", "b.png"]
    assert all(Image.open(tmp_path / "out" / name).format == "PNG" for name in os.listdir("out"))


def test_formats_that_hold_less_get_what_they_can_hold(tmp_path, run):
    clear = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    Image.fromarray(np.full((30, 40), 25_700, np.uint16)).save(tmp_path / "deep.png")
    assert run(tmp_path / "clear.png", tmp_path / "deep.png", "--format", "jpeg") == 0
    assert pixels(tmp_path / "out" / "clear.jpg").min() > 250  # on white
    assert pixels(tmp_path / "out" / "deep.jpg").dtype == np.uint8
    assert np.abs(pixels(tmp_path / "out" / "deep.jpg").astype(int) - 100).max() <= 2


def test_suffix_into_the_same_folder_does_not_feed_on_itself(tmp_path, run, weights, monkeypatch):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "brand_new.png"):
        picture(40, 30).save(folder / name)
    for _ in range(2):
        assert predict.main([str(folder), "-r", "-o", str(folder), "--suffix", "_new", "-w", str(weights)]) == 0
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
        assert names == ["a.png", "a_new.png", "brand_new.png", "brand_new_new.png", "sub/b.png", "sub/b_new.png"]


def test_an_original_that_looks_like_own_work_is_not_replaced(tmp_path, weights, capsys):
    for name, size, taken in (("a.jpg", (40, 30), "1"), ("a_1.jpg", (40, 30), "2"), ("b.jpg", (40, 30), "3")):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = f"2026:01:0{taken} 00:00:00"
        picture(*size).save(tmp_path / name, exif=exif)
    picture(50, 30).save(tmp_path / "b_1.jpg")  # of another size
    before = (tmp_path / "a_1.jpg").read_bytes()
    command = [str(tmp_path), "-o", str(tmp_path), "--suffix", "_1", "--overwrite", "-w", str(weights)]
    for _ in range(2):
        assert predict.main(command) == 1
        errors = capsys.readouterr().err
        assert f"a.jpg: would replace the original {tmp_path / 'a_1.jpg'}" in errors and "b_1.jpg" in errors
        assert sorted(path.name for path in tmp_path.glob("*_1_1*")) == ["a_1_1.jpg", "b_1_1.jpg"]
    assert (tmp_path / "a_1.jpg").read_bytes() == before


def test_the_output_folder_among_what_is_given_is_passed_over(tmp_path, run, capsys):
    for name in ("a.png", "b.png"):
        picture(40, 30).save(tmp_path / name)
    assert run("a.png", "b.png") == 0
    assert run("a.png", "b.png", "out") == 0  # as "*" has it
    assert "2 skipped" in capsys.readouterr().out
    capsys.readouterr()
    for words in (["out"], ["a.png", "out", "--overwrite"]):  # alone, or it may hold originals
        assert run(*words) != 0
        assert "would replace the original" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file_is_named(tmp_path, weights, capsys):
    picture(40, 30).save(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    assert predict.main([str(tmp_path / "a.png"), "-o", str(tmp_path / "file"), "-w", str(weights)]) == 1
    assert f"{tmp_path / 'file'}: File exists; give another output folder" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_stream_that_is_closed_from_the_start_is_none_to_write_to(tmp_path, weights, closed):
    picture(40, 30).save(tmp_path / "a.png")
    command = f'"{sys.executable}" "{REPOSITORY}/predict.py" a.png -o out -w "{weights}" {closed}'
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "Traceback" not in result.stderr and os.listdir(tmp_path / "out") == ["a.png"]


def test_one_bad_entry_does_not_cost_the_tree(tmp_path, run, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    picture(40, 30).save(folder / "a.png")
    os.symlink("loop.jpg", folder / "loop.jpg")
    os.symlink("nowhere.jpg", folder / "broken.jpg")
    assert run(folder) == 1
    assert os.listdir("out") == ["a.png"]
    errors = capsys.readouterr().err
    assert "loop.jpg: " in errors and "broken.jpg: No such file" in errors


def test_an_original_of_the_same_run_is_not_replaced_either(tmp_path, run, weights, capsys):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.png"):
        picture(40, 30, seed=len(name)).save(tmp_path / "in" / name)
    before = (tmp_path / "in" / "a.png").read_bytes()
    words = [str(tmp_path / "in" / name) for name in ("a.png", "sub/a.png")]
    assert predict.main([*words, "-o", str(tmp_path / "in"), "--overwrite", "-w", str(weights)]) == 2
    assert "would replace the original" in capsys.readouterr().err
    assert (tmp_path / "in" / "a.png").read_bytes() == before


def test_raw_files_beside_jpegs_keep_their_ending(tmp_path, run, capsys):
    for name in ("IMG_1.JPG", "IMG_1.NEF", "IMG_2.dng"):
        (tmp_path / name).write_bytes(b"raw")
    assert run(tmp_path, "--dry-run") == 0
    output = capsys.readouterr().out
    for name in ("IMG_1.JPG", "IMG_1.NEF.jpg", "IMG_2.dng.jpg"):
        assert f"-> out/{name}\n" in output


def test_names_of_255_bytes_and_not_utf8(tmp_path, run, capsys):
    names = [b"n" * 251 + b".png", b"caf\xe9.png", "\U0001f305.png".encode()]
    for name in names:
        picture(40, 30).save(tmp_path / "a.png")
        os.rename(tmp_path / "a.png", os.path.join(os.fsencode(tmp_path), name))
    assert run(tmp_path, "-v") == 0
    assert sorted(os.listdir(b"out")) == sorted(names)
    assert run(tmp_path, "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_language_c_does_not_stop_strange_names(tmp_path, weights):
    picture(40, 30).save(tmp_path / "caf\u00e9 \U0001f305.png")
    command = [sys.executable, REPOSITORY / "predict.py", ".", "-o", "out", "-w", weights, "-v", "--device", "cpu"]
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert result.returncode == 0 and b"1 written" in result.stdout, result.stderr


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_cut_and_misnamed_files(tmp_path, run, share, capsys):
    picture(200, 150).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: int(share * len(data))])
    (tmp_path / "misnamed.png").write_bytes(data)
    (tmp_path / "without").write_bytes(data)
    assert run("cut.jpg", "misnamed.png", "without") == 1
    assert "ERROR cut.jpg: damaged or cut short" in capsys.readouterr().err
    assert sorted(os.listdir("out")) == ["misnamed.png", "without"]
    for name in os.listdir("out"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.format == "JPEG"


def test_a_decompression_bomb_is_refused(tmp_path, run, capsys):
    header = struct.pack(">IIBBBBB", 65536, 65536, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    data = zlib.compress(bytes(1 << 20))
    body = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + body)
    assert run("bomb.png") == 1
    assert "too many pixels to open safely" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG"])
def test_files_of_several_pictures_are_refused(tmp_path, run, kind, capsys):
    frames = [picture(40, 30, seed=seed) for seed in range(3)]
    frames[0].save(tmp_path / "a.tif", format=kind, save_all=True, append_images=frames[1:])
    assert run("a.tif") == 1
    assert ("holds 3 pictures" if kind != "GIF" else "not a JPEG") in capsys.readouterr().err


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_photos_and_single_rows(tmp_path, run, weights, value):
    for size in ((1, 1), (1, 77), (300, 1), (64, 48)):
        Image.new("RGB", size, (value,) * 3).save(tmp_path / f"{size[0]}x{size[1]}.png")
    released = REPOSITORY / "weights" / "msec.safetensors"
    assert predict.main([str(tmp_path), "-o", "out", "-w", str(released)]) == 0
    for path in (tmp_path / "out").iterdir():
        assert pixels(path).shape == (*map(int, reversed(path.stem.split("x"))), 3)


def test_a_full_disk_fails_each_photo_and_leaves_the_old_ones(tmp_path, run, monkeypatch, capsys):
    picture(40, 30).save(tmp_path / "a.png")
    assert run("a.png") == 0
    before = (tmp_path / "out" / "a.png").read_bytes()

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    assert run("a.png", "--overwrite") == 1
    assert "ERROR a.png: No space left on device" in capsys.readouterr().err
    assert os.listdir("out") == ["a.png"] and (tmp_path / "out" / "a.png").read_bytes() == before


def test_two_runs_into_one_folder_leave_every_photo_whole(tmp_path, weights, fork):
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(20):
        picture(150, 100, seed=index).save(folder / f"{index}.png")
    words = [folder, "-o", tmp_path / "out", "-w", weights, "--overwrite"]
    processes = [fork("predict", *words) for _ in range(2)]
    assert [(process.wait(), process.communicate()[1].count("ERROR")) for process in processes] == [(0, 0), (0, 0)]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(folder))
    for name in os.listdir(folder):
        assert np.array_equal(pixels(tmp_path / "out" / name), pixels(folder / name))


def test_patterns_are_understood_and_names_with_brackets_too(tmp_path, run, capsys):
    for name in ("a1.png", "a2.png", "b.png", "[a].png"):
        picture(40, 30).save(tmp_path / name)
    assert run("a?.png", "[a].png") == 0
    assert sorted(os.listdir("out")) == ["[a].png", "a1.png", "a2.png"]
    assert run("x*.png", "b.png") == 1
    assert "ERROR x*.png: no such file" in capsys.readouterr().err


def test_dry_run_writes_nothing_and_json_tells_each_photo(tmp_path, run, capsys):
    picture(40, 30).save(tmp_path / "a.png")
    (tmp_path / "new\nline.png").write_bytes(b"")
    assert run("a.png", "new\nline.png", "--dry-run") == 0
    output = capsys.readouterr().out
    assert "a.png -> out/a.png" in output and "new\\nline.png" in output and not os.path.exists("out")
    assert run("a.png", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"input": "a.png", "output": "out/a.png", "status": "planned"}
    assert run("a.png", "new\nline.png", "--json") == 1
    output, errors = capsys.readouterr()
    rows = {row["input"]: row for row in map(json.loads, output.splitlines())}
    assert rows["a.png"]["status"] == "written" and rows["a.png"]["output"] == "out/a.png"
    assert (rows["a.png"]["width"], rows["a.png"]["height"]) == (40, 30)
    assert rows["new\nline.png"] | {"status": "failed", "reason": "the file is empty"} == rows["new\nline.png"]
    assert "ERROR new\\nline.png: the file is empty\n" in errors and "done 2: 1 written" in errors
    assert run("a.png", "-q", "--overwrite") == 0
    assert capsys.readouterr() == ("", "")


CLOSED = "reader, writer = os.pipe()\nos.close(reader)\nos.dup2(writer, 1)\nos.close(writer)\n"
NO_STANDARD_ERROR = "os.close(2)\nsys.stderr = None\n"


@pytest.mark.parametrize(
    ("words", "before"), [(["--json"], ""), (["--dry-run"], ""), ([], ""), ([], NO_STANDARD_ERROR)]
)
def test_a_closed_pipe_ends_the_run_quietly(tmp_path, weights, fork, words, before):
    for index in range(20):
        picture(40, 30).save(tmp_path / f"{index}.png")
    process = fork("predict", ".", "-o", "out", "-w", weights, *words, folder=tmp_path, before=CLOSED + before)
    errors = process.communicate()[1]
    assert "Traceback" not in errors and process.returncode == 1
    assert all(pixels(path).shape == (30, 40, 3) for path in (tmp_path / "out").glob("*"))


def test_a_shells_closed_pipe_ends_the_run_quietly(tmp_path, weights):
    picture(40, 30).save(tmp_path / "a.png")
    for closed in ("", "2>&-"):
        command = f'"{sys.executable}" "{REPOSITORY}/predict.py" . -o out -w "{weights}" --dry-run {closed}'
        command += " | (exec 0<&-; sleep 0.1); exit ${PIPESTATUS[0]}"
        result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in result.stderr and result.returncode in (0, 1)


@pytest.fixture
def nine(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(9):
        picture(120, 90, seed=index).save(folder / f"{index}.png")
    return folder


def test_torchrun_shares_a_folder_out(tmp_path, weights, fork, nine):
    words = [nine, "-o", tmp_path / "out", "-w", weights, "--dry-run"]
    process = fork("torch.distributed.run", "--nproc-per-node=2", REPOSITORY / "predict.py", *words)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert sorted(output.splitlines()) == [f"{nine}/{index}.png -> {tmp_path}/out/{index}.png" for index in range(9)]


def test_one_bad_photo_of_a_shared_folder_costs_no_other(tmp_path, weights, fork, nine):
    (nine / "0.png").write_bytes(b"")  # the first process is soon done, with an error
    words = [nine, "-o", tmp_path / "out", "-w", weights, "--json", "--workers", "1"]
    process = fork("predict", *words, before=ELASTIC + "share(predict)")
    output, errors = process.communicate(timeout=120)
    rows = [json.loads(line) for line in output.splitlines()]
    assert process.returncode != 0 and len(rows) == 9, errors
    assert [row["input"] for row in rows if row["status"] == "failed"] == [str(nine / "0.png")]
    assert sorted(os.listdir(tmp_path / "out")) == [f"{index}.png" for index in range(1, 9)]


def test_variables_of_other_launchers_are_not_taken_for_torchrun(tmp_path, run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    picture(40, 30).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png") == 0 and os.listdir("out") == ["a.png"]


def test_a_run_killed_fifty_times_ends_with_every_photo_whole(tmp_path, weights, run, fork):
    """Every other run is killed when it has just written a photo, the others anywhere, in starting too."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for index in range(150):
        picture(60, 40, seed=index).save(folder / f"{index:03}.png")
    chance = random.Random(0)
    for attempt in range(50):
        before = len(list(out.glob("[!.]*")))
        process = fork("predict", folder, "-q", "-o", "out", "-w", weights, folder=tmp_path)
        if attempt % 2 == 0:
            while process.poll() is None and len(list(out.glob("[!.]*"))) == before:
                time.sleep(0.003)
        time.sleep(chance.uniform(0, 0.01 if attempt % 2 == 0 else 0.1))
        with suppress(ProcessLookupError):  # it is over
            process.send_signal(signal.SIGKILL)
        process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    assert 25 <= len(before) < 150, "no run got so far as to write a photo, or all was done too soon"
    assert run(folder) == 0
    names = sorted(os.listdir(out))
    assert names == [f"{index:03}.png" for index in range(150)]  # and no unfinished file
    for name in names:
        assert np.array_equal(pixels(out / name), pixels(folder / name))
    assert all((out / name).stat().st_mtime_ns == time for name, time in before.items())  # written once


def test_memory_bounds_what_is_in_work_at_once():
    memory, order = predict.Memory(), []
    megabyte = 1 << 20

    def work(name, amount, seconds):
        with memory.reserve(10 * megabyte, amount * megabyte):  # 160 MB are allowed
            order.append(f"+{name}")
            time.sleep(seconds)
            order.append(f"-{name}")

    threads = [
        threading.Thread(target=work, args=arguments)
        for arguments in (("large", 80, 0.3), ("second", 80, 0.3), ("third", 80, 0))
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert order.index("+second") < order.index("-large") < order.index("+third")
    with memory.reserve(megabyte, 1000 * megabyte):  # one photo always may
        pass


def test_strength_zero_gives_the_file_back_and_half_is_half_way(tmp_path, run, weights):
    network = generator()
    with torch.no_grad():
        network.unets[-1].head.bias.fill_(0.2)  # everything brighter by 51
    save_weights(weights, network.state_dict(), architecture=ARCHITECTURE, working_size=64, training={})
    Image.fromarray(np.array(picture(60, 40)) // 2).save(tmp_path / "a.png")
    picture(60, 40).save(tmp_path / "b.jpg", quality=71)
    assert run(tmp_path / "a.png", tmp_path / "b.jpg", "--strength", "0") == 0
    for name in ("a.png", "b.jpg"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    results = []
    for strength in ("0.5", "1"):
        assert run(tmp_path / "a.png", "--strength", strength, "--overwrite") == 0
        results.append(pixels(tmp_path / "out" / "a.png").astype(int) - pixels(tmp_path / "a.png"))
    half, whole = results
    assert whole.mean() > 40 and abs(half.mean() / whole.mean() - 0.5) < 0.08


@pytest.mark.parametrize("words", [["", "-o", "out"], ["a.jpg", "-o", ""], ["a.jpg", "-o", "out", "-w", ""]])
def test_an_empty_name_is_not_the_current_folder(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        predict.parse_arguments(words)
    assert "an empty name" in capsys.readouterr().err


def test_an_ending_may_be_as_long_as_a_name(tmp_path, run):
    name = "a." + "x" * 230
    picture(60, 40).save(tmp_path / name, "JPEG")
    assert run(tmp_path / name) == 0 and len(list((tmp_path / "out").iterdir())) == 1


def test_released_weights_go_by_their_name_and_a_file_of_that_name_before_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["x.jpg", "-o", "out", "-w"]
    (tmp_path / "msec").mkdir()
    released = REPOSITORY / "weights" / "msec.safetensors"
    assert predict.parse_arguments([*words, "msec"]).weights == predict.parse_arguments(words[:-1]).weights == released
    (tmp_path / "zero_dce").write_bytes(b"")
    assert predict.parse_arguments([*words, "zero_dce"]).weights == Path("zero_dce")


def test_careful_is_half_where_lights_are_exposed(tmp_path, run, weights):
    network = generator()
    with torch.no_grad():
        network.unets[-1].head.bias.fill_(0.1)
    save_weights(weights, network.state_dict(), architecture=ARCHITECTURE, working_size=64, training={})
    for name, share in (("right", 0.8), ("dark", 0.2)):
        picture(60, 40).point(lambda value, share=share: value * share).save(tmp_path / f"{name}.png")
    results = []
    for options in (["--careful"], ["--strength", "0.5"], []):
        assert run(tmp_path / "right.png", tmp_path / "dark.png", *options, "--overwrite") == 0
        results.append([pixels(tmp_path / "out" / name) for name in ("right.png", "dark.png")])
    careful, half, full = results
    assert np.array_equal(careful[0], half[0]) and not np.array_equal(careful[0], full[0])
    assert np.array_equal(careful[1], full[1]) and not np.array_equal(careful[1], half[1])


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
def test_interruption_leaves_only_whole_photos(tmp_path, weights, fork, number, code):
    folder = tmp_path / "in"
    folder.mkdir()
    picture(450, 300).save(tmp_path / "one.png")
    for index in range(200):
        (folder / f"{index:03}.png").hardlink_to(tmp_path / "one.png")
    process = fork("predict", folder, "-o", tmp_path / "out", "-w", weights)
    while not list((tmp_path / "out").glob("[!.]*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == code
    written = os.listdir(tmp_path / "out")
    assert 0 < len(written) < 200
    assert all(pixels(tmp_path / "out" / name).shape == (300, 450, 3) for name in written)


def test_a_signal_waits_for_a_place_where_no_lock_is_held(tmp_path, run, monkeypatch):
    picture(45, 30).save(tmp_path / "a.png")
    wait, came_back = predict.wait, []

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        came_back.append(True)
        return wait(*arguments, **options)

    monkeypatch.setattr(predict, "wait", interrupted)
    assert run("a.png") == 130 and came_back == [True]


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


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("1", ".png", "L"),
        ("L", ".jpg", "L"),
        ("LA", ".png", "LA"),
        ("P", ".png", "RGB"),
        ("RGBA", ".webp", "RGBA"),
        ("RGBA", ".tif", "RGBA"),
        ("CMYK", ".jpg", "RGB"),
        ("CMYK", ".tif", "RGB"),
        ("LAB", ".tif", "RGB"),
        ("YCbCr", ".jpg", "RGB"),
        ("I;16", ".png", "I;16"),
        ("I;16", ".tif", "I;16"),
    ],
)
def test_every_mode_comes_out_as_a_person_expects(tmp_path, run, mode, suffix, expected):
    if mode == "I;16":
        image = Image.fromarray((np.array(picture(64, 48).convert("L")).astype(np.uint16) * 257) ^ 3)
    elif mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(picture(64, 48), *profiles, outputMode="LAB")
    else:
        image = picture(64, 48).convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(picture(64, 48, seed=1).convert("L"))
    image.save(tmp_path / f"a{suffix}")
    assert run(f"a{suffix}") == 0
    with Image.open(tmp_path / "out" / f"a{suffix}") as after, Image.open(tmp_path / f"a{suffix}") as before:
        assert after.mode == expected and after.size == (64, 48)
        if mode == "I;16":
            assert np.array_equal(np.array(after), np.array(before))
        elif mode != "LAB":
            error = np.abs(np.array(after.convert("RGB")).astype(int) - np.array(before.convert("RGB")))
            assert error.mean() < (12 if mode == "CMYK" else 3)


def test_a_palette_with_transparency_keeps_it(tmp_path, run):
    image = picture(64, 48).quantize(16)
    image.save(tmp_path / "a.png", transparency=3)
    assert run("a.png") == 0
    with Image.open(tmp_path / "a.png") as before, Image.open(tmp_path / "out" / "a.png") as after:
        assert after.mode == "RGBA"
        assert np.array_equal(np.array(before.convert("RGBA"))[..., 3], np.array(after)[..., 3])


def test_a_folder_of_phone_photos_comes_out_as_a_person_wants_it(tmp_path, run, monkeypatch):
    """Sideways, in the phone's wide colours, a HEIC beside its JPEG, in sub-folders, with other files between."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = srgb.replace(b"sRGB built-in", b"Wide built-in")
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "Phone"
    folder = tmp_path / "DCIM"
    for name in ("100/IMG_1.JPG", "101/IMG_1.JPG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(120, 90).save(folder / name, "JPEG", exif=exif, icc_profile=wide, quality=93)
    (folder / "100" / "IMG_1.AAE").write_text("edits")
    (folder / "100" / "IMG_1.MOV").write_bytes(b"film")
    expected = {"100/IMG_1.JPG", "101/IMG_1.JPG"}
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
        picture(120, 90).save(folder / "100" / "IMG_1.HEIC", quality=90)
        expected |= {"100/IMG_1.HEIC"}
    assert run(folder, "-r") == 0
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")} == expected
    with Image.open(tmp_path / "out" / "100" / "IMG_1.JPG") as after:
        assert after.size == (90, 120) and after.getexif().get(0x0112, 1) == 1 and after.getexif()[0x0110] == "Phone"
        assert after.info["icc_profile"] == wide
