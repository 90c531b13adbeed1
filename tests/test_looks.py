import json

import numpy as np
import pytest
from conftest import picture
from PIL import Image
from test_evaluate import rows, run


@pytest.fixture
def befores(tmp_path):
    """Before and after: 'a' loses a quarter of its whites and its blacks; 'night' is too dark for blacks to count."""
    bright, night = np.full((40, 50, 3), 128, np.uint8), np.full((40, 50, 3), 20, np.uint8)
    bright[:10, :40] = (255, 250, 251)  # 400 white
    bright[10:12] = (249, 255, 255)  # not quite
    bright[20:22, :] = (3, 0, 1)  # 100 black
    night[:10] = 0
    after_a, after_night = bright.copy(), night.copy()
    after_a[:10, :10] = (255, 224, 255)
    after_a[:10, 10:20] = 225  # still white
    after_a[20:22] = (0, 21, 0)
    after_night[:10] = 90
    for name, before, after in (("a", bright, after_a), ("night", night, after_night)):
        for folder, pixels in (("before", before), ("after", after)):
            (tmp_path / folder / "sub").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / "sub" / f"{name}.png")
    return tmp_path


def test_whites_blacks_and_change_are_what_they_are_defined_to_be(befores, capsys):
    out = befores / "out"
    assert run("looks", befores / "before", "--predictions", befores / "after", "--method", "identity", "-o", out) == 0
    counted = {(row["method"], row["input"]): row for row in rows(out)}
    bright, night = (counted["after", f"sub/{name}.png"] for name in ("a", "night"))
    assert [float(bright[name]) for name in ("white", "greyed", "black", "lifted")] == [400, 100, 100, 100]
    assert [float(night[name]) for name in ("white", "greyed", "black", "lifted")] == [0, 0, 0, 0]
    facts = json.loads((out / "results.json").read_text())
    after, identity = facts["looks"]
    assert after["photos"] == 2 and after["whites_greyed"] == 0.25 and after["blacks_lifted"] == 1
    levels = [float(row["psnr"]) for row in (bright, night)]
    assert after["psnr_median"] == pytest.approx(np.median(levels))
    assert after["psnr_tenth"] == pytest.approx(np.quantile(levels, 0.1))
    assert identity["whites_greyed"] == identity["blacks_lifted"] == 0 and identity["psnr_tenth"] == 100
    assert all(len(after["intervals"][name]) == 2 for name in ("whites_greyed", "blacks_lifted", "psnr_median"))
    assert {"white", "greyed", "whites_greyed", "psnr_tenth"} <= facts["metrics"].keys()
    assert "| after | 2 | 0.250 (0.250 to 0.250) | 1.000 (1.000 to 1.000) |" in capsys.readouterr().out
    assert (out / "sheet_after.png").is_file()


def test_photos_without_whites_have_no_share_of_them(tmp_path, capsys):
    for index in range(3):
        picture(60, 40, seed=index).point(lambda value: 60 + value // 2).save(tmp_path / f"{index}.png")
    assert run("looks", tmp_path, "-w", "msec", "--size", "32", "--longest", "48") == 0
    assert "| msec | 3 | - | - | " in capsys.readouterr().out


def test_what_needs_a_target_is_refused(befores, capsys):
    for words in (("--variants",), ("--metric", "psnr_y"), ("--split", "test"), ("--against", "x.json"), ("--check",)):
        assert run("looks", befores / "before", "--method", "identity", *words) == 2
        assert words[0] in capsys.readouterr().err
    assert run("looks", befores / "absent", "--method", "identity") == 2
    (befores / "empty").mkdir()
    assert run("looks", befores / "empty", "--method", "identity") == 1
