import json
import sys

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from benchmarks import blind

METHODS = ("alpha", "beta", "gamma")


@pytest.fixture
def results(tmp_path):
    for number, method in enumerate(METHODS):
        for name in range(4):
            path = tmp_path / "results" / method / "sub" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(80, 60, seed=name).point(lambda value, number=number: value // (number + 1)).save(path)
    return [tmp_path / "results" / method for method in METHODS]


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["blind.py", *(str(word) for word in words)])
    return blind.main()


def key_of(folder):
    return json.loads((folder / "key.json").read_text())


def vote(path, key, best_first):
    """Write the votes of a judge who ranks by method."""
    lines = []
    for page, letters in key.items():
        by_method = {method: letter for letter, method in letters.items()}
        lines.append(f"{page},{''.join(by_method[method] for method in best_first(letters['photo']))}")
    path.write_text("\n".join(lines) + "\n")


def test_a_page_for_each_photo_and_a_key_beside(results, tmp_path, monkeypatch):
    out = tmp_path / "pages"
    assert run(monkeypatch, *results, "-o", out, "--side", "320") == 0
    key = key_of(out)
    assert sorted(path.name for path in out.glob("*.png")) == [f"{page}.png" for page in key] and len(key) == 4
    assert {letters["photo"] for letters in key.values()} == {f"sub/{name}" for name in range(4)}
    assert len({tuple(letters[letter] for letter in "ABC") for letters in key.values()}) > 1
    for page, letters in key.items():
        sheet = np.asarray(Image.open(out / f"{page}.png")).astype(int)
        assert sheet.shape[1] == 2 * 320 + 3 * blind.GAP  # two columns fit a screen largest
        for index, letter in enumerate("ABC"):
            version = Image.open(results[METHODS.index(letters[letter])] / f"{letters['photo']}.png")
            top = 2 * blind.LABEL + index // 2 * (240 + blind.LABEL + blind.GAP)
            left = blind.GAP + index % 2 * (320 + blind.GAP)
            shown = sheet[top : top + 240, left : left + 320]
            assert np.abs(shown - np.asarray(version.resize((320, 240), Image.Resampling.LANCZOS))).max() == 0
    assert run(monkeypatch, *results, "-o", out) == 2  # votes may exist


def test_seeds_give_other_orders_and_the_same_seed_the_same(results, tmp_path, monkeypatch):
    for name, seed in (("first", 0), ("again", 0), ("second", 1)):
        assert run(monkeypatch, *results, "-o", tmp_path / name, "--seed", seed, "--side", "40") == 0
    assert key_of(tmp_path / "first") == key_of(tmp_path / "again") != key_of(tmp_path / "second")


def test_versions_that_do_not_match_are_refused(results, tmp_path, monkeypatch, capsys):
    (results[1] / "sub" / "3.png").unlink()
    assert run(monkeypatch, *results, "-o", tmp_path / "pages") == 2
    assert "beta lacks 1 of 4 photos, such as ['sub/3']" in capsys.readouterr().err
    picture(40, 30).save(results[1] / "sub" / "3.png")
    assert run(monkeypatch, *results, "-o", tmp_path / "pages") == 2
    assert "differ in size" in capsys.readouterr().err
    assert run(monkeypatch, results[0], results[0], "-o", tmp_path / "pages") == 2


def test_votes_become_ranks_and_preferences(results, tmp_path, monkeypatch, capsys):
    keys = []
    for seed in (0, 1):  # two judges, each with own pages
        assert run(monkeypatch, *results, "-o", tmp_path / f"{seed}", "--seed", seed, "--side", "40") == 0
        keys.append(tmp_path / f"{seed}" / "key.json")
    vote(tmp_path / "ann.csv", key_of(tmp_path / "0"), lambda photo: ("beta", "alpha", "gamma"))
    vote(
        tmp_path / "ben.csv",
        key_of(tmp_path / "1"),
        lambda photo: METHODS if photo == "sub/0" else ("beta", "gamma", "alpha"),
    )
    capsys.readouterr()
    votes = (tmp_path / "ann.csv", tmp_path / "ben.csv")
    assert run(monkeypatch, "--score", *votes, "--key", *keys) == 0
    output = capsys.readouterr().out
    assert "8 rankings of 4 photos" in output
    ranks = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in output.splitlines() if " | " in line}
    lines = [line for line in output.splitlines() if line.startswith("| beta |")]
    assert lines[0].startswith("| beta | 1.12 (1.00 to 1.38) | 7 (") and lines[0].endswith("| 0 (0 to 0) |")
    assert "gamma" in ranks
    # beta over alpha in 7 of 8, over gamma in all
    assert "88 (62 to 100)" in lines[1] and "100 (100 to 100)" in lines[1]


def test_votes_that_cannot_be_are_named(results, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, *results, "-o", tmp_path / "pages", "--side", "40") == 0
    votes = tmp_path / "votes.csv"
    votes.write_text("page,order\n# a note\n001,abc\n1,CBA\n002,ABD\n003,ABBC\n009,ABC\nnonsense\n")
    assert run(monkeypatch, "--score", votes, "--key", tmp_path / "pages" / "key.json") == 2
    error = capsys.readouterr().err
    for message in (
        "line 4: page 001 is there twice",
        "line 5: page 002: D unknown in ABD",
        "line 5: page 002: C missing in ABD",
        "line 6: page 003: B there twice in ABBC",
        "line 7: there is no page 009: pages are 001 to 004",
        "line 8: 'nonsense' is not PAGE,ORDER",
    ):
        assert message in error
    assert "line 3" not in error
    votes.write_text("002,CAB\n")
    assert run(monkeypatch, "--score", votes, "--key", tmp_path / "pages" / "key.json") == 0
    assert "1 of 4 pages" in capsys.readouterr().err
    assert run(monkeypatch, "--score", votes, "--key", votes) == 2
