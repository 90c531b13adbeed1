"""Means of rows with their intervals, and the differences between methods, as tables."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .errors import EvaluationError
from .intervals import means
from .metrics import Metric
from .partial import Row

Line = dict[str, Any]
"""A line of a table: what it is of, its figures, and under "intervals" where 95 % of resampled sets of photos lie."""

ALL, OF_SETS, NOT_UNDER = "all", "mean over sets", "proper and over"


def summarise(
    rows: Sequence[Row],
    metrics: Iterable[str],
    *,
    pooled: bool = False,
    of_sets: bool = False,
    by_scene: bool = False,
) -> list[Line]:
    """Return means over images: for each method all, and for each kind of target and input that the set tells apart.

    Intervals are those of `intervals.means`, over input photos within their groups.

    Args:
        rows: of all methods.
        metrics: columns of the rows.
        pooled: whether to add the PSNR of the mean squared error of all images together.
        of_sets: whether groups are sets that weigh alike in the mean over all.
        by_scene: whether photos that share a target are drawn together: the exposures of a scene are alike, and drawn
            one by one they make intervals too narrow. Then groups are left out where scenes have photos in several.
    """
    names = [*metrics, *(["mse"] if pooled else [])]
    summary = []
    for method, own in by_method(rows).items():
        for what, chosen in _selections(own, of_sets):
            line = {"method": method, **what, **_means(chosen, names, what["inputs"] == OF_SETS, by_scene)}
            intervals = line["intervals"]
            if pooled:
                line["psnr_pooled"] = _decibels(line.pop("mse"))
                ends = intervals.pop("mse")
                intervals["psnr_pooled"] = None if ends is None else (_decibels(ends[1]), _decibels(ends[0]))
            summary.append(line)
    return summary


def differences(
    rows: Sequence[Row],
    first: Sequence[Row],
    metrics: dict[str, Metric],
    *,
    of_sets: bool = False,
    by_scene: bool = False,
) -> list[Line]:
    """Return the paired differences of each method of `rows` to another method's rows of the same images.

    A line has the mean difference of every metric, its interval, and under "won" the share of images for which the
    method is better, ties counting half.

    Raises:
        EvaluationError: an image is missing from either.
    """
    others = {(row["input"], row["target"]): row for row in first}
    lines = []
    for method, own in by_method(rows).items():
        lonely = others.keys() ^ {(row["input"], row["target"]) for row in own}
        if lonely:
            raise EvaluationError(
                f"{method} and {first[0]['method']} cannot be compared: {len(lonely)} images were left out of one of "
                f"them, such as {min(lonely)[0]}"
            )
        pairs = [(row, others[row["input"], row["target"]]) for row in own]
        changes = [{**row, **{name: row[name] - other[name] for name in metrics}} for row, other in pairs]
        for what, chosen in _selections(changes, of_sets):
            line = {"method": method, "to": first[0]["method"], **what}
            line.update(_means(chosen, list(metrics), what["inputs"] == OF_SETS, by_scene))
            signs = {name: -1 if metric.lower_is_better else 1 for name, metric in metrics.items()}
            line["won"] = {
                name: float(np.mean([np.heaviside(sign * row[name], 0.5) for row in chosen]))
                for name, sign in signs.items()
            }
            lines.append(line)
    return lines


def table(lines: Sequence[Line]) -> str:
    """Return lines as a Markdown table, those of all images first."""
    names = [name for name in lines[0] if name != "intervals"]
    return markdown(names, [[cell(line, name) for name in names] for line in _whole_first(lines)])


def difference_table(lines: Sequence[Line]) -> str:
    """Return the lines of `differences` as a Markdown table; where an interval holds 0 it says "no difference"."""
    what = ("targets", "inputs", "images")
    names = list(lines[0]["won"])
    cells = []
    for line in _whole_first(lines):
        row = [f"{line['method']} - {line['to']}", *(str(line[name]) for name in what)]
        for name in names:
            ends = line["intervals"][name]
            verdict = " (no difference)" if ends is not None and ends[0] <= 0 <= ends[1] else ""
            row.append(f"{cell(line, name, sign='+')}, {line['won'][name]:.0%} won{verdict}")
        cells.append(row)
    return markdown(["difference", *what, *names], cells)


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each method."""
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return methods


def _selections(rows: list[Row], of_sets: bool) -> Iterator[tuple[dict[str, Any], list[Row]]]:
    """Yield what is averaged of a method: kinds of target and of input, the number of images, and their rows."""
    targets = {row["target_group"]: {row["target_group"]} for row in sorted(rows, key=lambda row: row["target_group"])}
    groups = {row["group"]: {row["group"]} for row in sorted(rows, key=lambda row: row["group"])}
    every_target, every_group = (ALL, {*targets}), (OF_SETS if of_sets else ALL, {*groups})
    if not of_sets and {"proper", "over"} <= groups.keys():
        groups[NOT_UNDER] = {"proper", "over"}  # one column of MSEC's tables
    selections = [(every_target, every_group)]
    if len(targets) > 1:
        selections += [(target, every_group) for target in targets.items()]
    if len(groups) > 1 or of_sets:
        selections += [(every_target, group) for group in groups.items()]
    if len(targets) > 1 and len(groups) > 1:
        selections += [(target, group) for target in targets.items() for group in groups.items()]
    for (target, target_kinds), (group, group_kinds) in selections:
        chosen = [row for row in rows if row["target_group"] in target_kinds and row["group"] in group_kinds]
        if chosen:
            yield {"targets": target, "inputs": group, "images": len(chosen)}, chosen


def _means(rows: Sequence[Row], names: Sequence[str], of_sets: bool, by_scene: bool) -> Line:
    """Return the means of columns over rows, with their intervals as `summarise` says."""
    drawn = _alike(rows, ("input", "target") if by_scene else ("input",))
    sums = np.array([[math.fsum(row[name] for row in own) for name in names] for own in drawn])
    counts = np.array([float(len(own)) for own in drawn])
    groups = [{row["group"] for row in own} for own in drawn]
    strata = [min(own) for own in groups] if all(len(own) == 1 for own in groups) else [ALL] * len(groups)
    mean, intervals = means(sums, counts, strata, of_strata=of_sets)
    return {**dict(zip(names, mean.tolist(), strict=True)), "intervals": dict(zip(names, intervals, strict=True))}


def _alike(rows: Sequence[Row], names: Sequence[str]) -> list[list[Row]]:
    """Return rows in groups that share a value in one of some columns, directly or not."""
    place: dict[tuple[str, str], int] = {}  # of each value, the number of its group
    groups: dict[int, list[Row]] = {}
    for number, row in enumerate(rows):
        values = [(name, row[name]) for name in names]
        known = {place[value] for value in values if value in place}
        group = min(known, default=number)
        for other in known - {group}:
            groups[group] += groups.pop(other)
            place.update({value: group for value, old in place.items() if old == other})
        groups.setdefault(group, []).append(row)
        place.update(dict.fromkeys(values, group))
    return list(groups.values())


def _decibels(error: float) -> float:
    return -10 * math.log10(max(error, 1e-10))


def _whole_first(lines: Sequence[Line]) -> list[Line]:
    return sorted(
        lines, key=lambda line: (line.get("targets", ALL), line.get("inputs", ALL)) not in ((ALL, ALL), (ALL, OF_SETS))
    )


def cell(line: Line, name: str, sign: str = "") -> str:
    """Return a figure and its interval as text."""
    value = line[name]
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    form = f"{sign}.{2 if 'psnr' in name or name == 'ciede2000' else 3}f"
    ends = line["intervals"].get(name)
    interval = "" if ends is None else f" ({ends[0]:{form}} to {ends[1]:{form}})"
    return f"{value:{form}}{interval}"


def markdown(names: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (names, ["---"] * len(names), *cells))
