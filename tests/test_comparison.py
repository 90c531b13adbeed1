import json
import shutil

import numpy as np
import pytest
from PIL import Image
from test_evaluate import rows, run

from utils.evaluation import intervals
from utils.evaluation.metrics import METRICS
from utils.evaluation.tables import difference_table, differences, summarise


def row(input, method="m", group="", psnr=20.0, target="t", target_group=""):
    facts = {"input": input, "target": target, "method": method, "group": group, "target_group": target_group}
    return {**facts, "psnr": psnr, "ssim": psnr / 100, "ciede2000": 40 - psnr, "mse": 10 ** (-psnr / 10)}


def spread(values, **more):
    return [row(f"{index}.png", psnr=float(value), **more) for index, value in enumerate(values)]


def test_an_interval_of_a_mean_is_that_of_the_normal_law_and_the_same_every_time():
    values = np.random.default_rng(1).normal(20, 3, size=(200, 1))
    mean, [(low, high)] = intervals.means(values, np.ones(200), [""] * 200, of_strata=False)
    assert mean[0] == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(200)
    assert low == pytest.approx(mean[0] - half, abs=0.1 * half) and high == pytest.approx(
        mean[0] + half, abs=0.1 * half
    )
    assert intervals.means(values, np.ones(200), [""] * 200, of_strata=False)[1] == [(low, high)]


def test_nineteen_intervals_of_twenty_hold_the_truth(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 400)
    rng, held = np.random.default_rng(0), []
    for _ in range(300):
        values = rng.normal(size=(40, 1)) + np.repeat([[0.0], [5.0]], 20, axis=0)
        _, [(low, high)] = intervals.means(values, np.ones(40), ["a"] * 20 + ["b"] * 20, of_strata=True)
        held.append(low <= 2.5 <= high)
    assert 0.90 <= np.mean(held) <= 0.97


def test_photos_are_drawn_within_strata_and_strata_may_weigh_alike():
    values, strata = np.array([[1.0], [1.0], [1.0], [5.0], [5.0]]), ["a", "a", "a", "b", "b"]
    for of_strata, expected in ((True, 3.0), (False, 2.6)):
        mean, [ends] = intervals.means(values, np.ones(5), strata, of_strata=of_strata)
        assert mean[0] == pytest.approx(expected) and ends == pytest.approx((expected, expected))
    assert intervals.means(values, np.ones(5), ["a", "a", "a", "a", "b"], of_strata=True)[1] == [None]


def test_quantiles_have_intervals_too():
    values = np.random.default_rng(0).normal(20, 3, size=100)
    (tenth, median), (low, high) = intervals.quantiles(values, (0.1, 0.5))
    assert (tenth, median) == pytest.approx(tuple(np.quantile(values, (0.1, 0.5))))
    assert low[0] < tenth < low[1] < high[0] < median < high[1]
    assert high[1] - high[0] == pytest.approx(2 * 1.96 * 1.2533 * values.std() / 10, rel=0.3)  # of a normal median
    assert intervals.quantiles(values[:1], (0.1, 0.5))[1] == [None, None]


def test_a_photo_with_five_targets_counts_once():
    values = np.random.default_rng(0).normal(20, 3, size=12)
    one = summarise(spread(values), ["psnr"])[0]
    five = [r for e in "abcde" for r in spread(values, target=f"t{e}", target_group=f"expert_{e}")]
    whole, *experts = summarise(five, ["psnr"])
    assert whole["images"] == 60 and whole["intervals"]["psnr"] == pytest.approx(one["intervals"]["psnr"])
    assert [line["intervals"]["psnr"] for line in experts] == [pytest.approx(one["intervals"]["psnr"])] * 5


def test_exposures_of_a_scene_are_drawn_together():
    rng = np.random.default_rng(0)
    scenes = rng.normal(20, 3, size=30)
    rows = [
        row(f"{scene}_{ev}.jpg", psnr=value + rng.normal(), target=f"{expert}/{scene}", group=ev, target_group=expert)
        for scene, value in enumerate(scenes)
        for ev in ("under", "over")
        for expert in "ab"
    ]
    rng.shuffle(rows)
    low, high = summarise(rows, ["psnr"], by_scene=True)[0]["intervals"]["psnr"]
    assert high - low == pytest.approx(2 * 1.96 * scenes.std() / np.sqrt(30), rel=0.15)
    alone = summarise(rows, ["psnr"])[0]["intervals"]["psnr"]
    assert alone[1] - alone[0] < 0.8 * (high - low)
    under = [r for r in rows if r["group"] == "under"]
    for line in summarise(rows, ["psnr"], by_scene=True):
        if (line["targets"], line["inputs"]) == ("all", "under"):
            assert line["intervals"] == summarise(under, ["psnr"])[0]["intervals"]  # one exposure of each scene
    pairs = differences(rows, [{**r, "psnr": 20.0} for r in rows], {"psnr": METRICS["psnr"]}, by_scene=True)
    assert pairs[0]["intervals"]["psnr"] == pytest.approx((low - 20, high - 20))


def test_the_pooled_psnr_has_an_interval():
    line = summarise(spread([18, 20, 25, 21]), ["psnr"], pooled=True)[0]
    low, high = line["intervals"]["psnr_pooled"]
    assert low < line["psnr_pooled"] < high and line["psnr_pooled"] < line["psnr"] and "mse" not in line


def test_differences_are_paired_and_say_who_wins():
    rng = np.random.default_rng(0)
    scenes = rng.normal(20, 5, size=30)  # photos differ far more than methods
    gains = rng.normal(0.5, 0.5, size=30)
    first = spread(scenes, method="first")
    [better] = differences(spread(scenes + gains, method="better"), first, METRICS)
    assert better["psnr"] == pytest.approx(gains.mean()) and better["won"]["psnr"] == np.mean(gains > 0)
    low, high = better["intervals"]["psnr"]
    assert 0 < low < gains.mean() < high < 1
    assert better["ciede2000"] == pytest.approx(-gains.mean())  # lower is better
    assert better["won"]["ciede2000"] == better["won"]["psnr"]
    equal = differences(spread(scenes, method="equal"), first, METRICS)
    assert equal[0]["won"] == {"psnr": 0.5, "ssim": 0.5, "ciede2000": 0.5}
    lines = difference_table([better, *equal]).splitlines()
    assert lines[2].startswith("| better - first | all | all | 30 | +0.") and "no difference" not in lines[2]
    assert lines[3].count("50% won (no difference)") == 3


@pytest.fixture
def sets(pairs, tmp_path):
    shutil.copytree(pairs, tmp_path / "sets" / "five")
    for name in ("input", "gt"):
        (tmp_path / "sets" / "two" / name).mkdir(parents=True)
        for index in (1, 2):
            shutil.copy(pairs / name / f"{index}.png", tmp_path / "sets" / "two" / name / f"{index}.png")
    (tmp_path / "sets" / "notes").mkdir()
    return tmp_path / "sets"


def test_sets_have_a_row_each_and_weigh_alike(sets, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("sets", sets, "--method", "gamma_to_mean", "--variants", "-o", out) == 0
    facts = json.loads((out / "results.json").read_text())
    whole, five, two = facts["means"]
    assert [line["inputs"] for line in facts["means"]] == ["mean over sets", "five", "two"]
    assert [line["images"] for line in facts["means"]] == [7, 5, 2]
    for name in METRICS:
        assert whole[name] == pytest.approx((five[name] + two[name]) / 2)
        own = [float(r[name]) for r in rows(out) if r["group"] == "five"]
        assert five[name] == pytest.approx(np.mean(own))
    for line in facts["means"]:
        assert (
            line["intervals"].keys()
            == facts["metrics"].keys()
            == line.keys() - {"method", "targets", "inputs", "images", "intervals"}
        )
        for name, (low, high) in line["intervals"].items():
            assert low <= line[name] <= high
    low, high = whole["intervals"]["psnr"]
    assert f"| mean over sets | 7 | {whole['psnr']:.2f} ({low:.2f} to {high:.2f}) |" in capsys.readouterr().out


def test_sets_that_are_not_whole_are_named(sets, capsys):
    (sets / "two" / "gt" / "1.png").unlink()
    assert run("sets", sets, "--method", "identity") == 1
    assert f"PROBLEM {sets / 'two' / 'input' / '1.png'}: no target" in capsys.readouterr().err
    shutil.rmtree(sets / "two" / "gt")
    assert run("sets", sets, "--method", "identity") == 2
    assert run("sets", sets / "five", "--method", "identity") == 2
    assert "has no folders of pairs, SET/input and SET/gt" in capsys.readouterr().err


def test_methods_of_a_run_are_compared_with_the_first(sets, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("sets", sets, "--method", "gamma_to_mean", "--method", "identity", "-o", out) == 0
    output = capsys.readouterr().out
    lines = json.loads((out / "results.json").read_text())["differences"]
    assert [(line["method"], line["to"], line["inputs"]) for line in lines] == [
        ("identity", "gamma_to_mean", name) for name in ("mean over sets", "five", "two")
    ]
    values = {(r["input"], r["method"]): float(r["psnr"]) for r in rows(out)}
    change = [values[name, "identity"] - values[name, method] for name, method in values if method == "gamma_to_mean"]
    assert lines[0]["psnr"] == pytest.approx((np.mean(change[:5]) + np.mean(change[5:])) / 2)
    assert lines[0]["won"]["psnr"] == np.mean(np.array(change) > 0)
    low, high = lines[1]["intervals"]["psnr"]
    assert (
        f"| identity - gamma_to_mean | all | five | 5 | {lines[1]['psnr']:+.2f} ({low:+.2f} to {high:+.2f}), " in output
    )


def test_a_run_is_compared_with_an_earlier_one(pairs, tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    assert run("folder", pairs, "--method", "gamma_to_mean", "--method", "clahe", "-o", old) == 0
    moved = tmp_path / "moved"
    shutil.copytree(pairs, moved)  # copies are the same photos
    capsys.readouterr()
    words = ("folder", moved, "--method", "identity", "--method", "gamma_to_mean", "-o", new)
    assert run(*words, "--against", old / "results.json") == 0
    output = capsys.readouterr().out
    assert "| identity - gamma_to_mean of old | all | all | 5 |" in output
    same = next(line for line in output.splitlines() if line.startswith("| gamma_to_mean - gamma_to_mean of old |"))
    assert same.count("+0.00") >= 3 and same.count("50% won (no difference)") == 3
    lines = json.loads((new / "results.json").read_text())["differences"]
    first, second = (
        {r["input"]: float(r["psnr"]) for r in rows(folder) if r["method"] == name}
        for folder, name in ((new, "identity"), (old, "gamma_to_mean"))
    )
    assert lines[0]["psnr"] == pytest.approx(np.mean([first[name] - second[name] for name in first]))


def test_runs_over_different_files_metrics_or_sizes_are_not_compared(pairs, tmp_path, capsys):
    old = tmp_path / "old"
    against = ("--against", old / "results.json")
    assert run("folder", pairs, "--method", "identity", "-o", old) == 0
    capsys.readouterr()

    def refused(*words):
        assert run("folder", pairs, "--method", "identity", *words, *against) == 2
        return capsys.readouterr().err

    assert "longest is 40 here, not given there" in refused("--longest", "40")
    error = refused("--metric", "psnr_matched", "--metric", "ssim_matched")
    assert "2 metrics only here (psnr_matched, ssim_matched)" in error and " files " not in error
    path = pairs / "gt" / "3.png"
    Image.open(path).point(lambda value: 255 - value).save(path)
    assert "1 files with other contents (gt/3.png)" in refused()
    for name in ("input", "gt"):
        (pairs / name / "3.png").rename(pairs / name / "9.png")
    error = refused()
    assert (
        "2 files only here (gt/9.png, input/9.png)" in error and "2 files only there (gt/3.png, input/3.png)" in error
    )


def test_results_that_cannot_be_compared_with_are_named(pairs, tmp_path, capsys):
    old = tmp_path / "old"
    assert run("folder", pairs, "--method", "identity", "-o", old) == 0
    command = ("folder", pairs, "--method", "identity", "--against", old / "results.json")
    text = (old / "results.csv").read_text()
    (old / "results.csv").write_text(text.replace("identity", "another"))
    assert run(*command) == 2 and "is of another run, or was changed" in capsys.readouterr().err
    (old / "results.csv").unlink()
    assert run(*command) == 2 and "results.csv beside it" in capsys.readouterr().err
    (old / "results.json").write_text('{"means": []}')
    (old / "results.csv").write_text(text)
    assert run(*command) == 2 and "make it again" in capsys.readouterr().err


def test_images_left_out_of_one_run_are_named():
    with pytest.raises(Exception, match=r"b and a cannot be compared: 1 images .* such as 2\.png"):
        differences(spread([1, 2], method="b"), spread([1, 2, 3], method="a"), METRICS)
