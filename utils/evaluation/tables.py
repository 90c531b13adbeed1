"""Means of rows, as tables."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from .partial import Row

NOT_UNDER = "proper and over"


def summarise(rows: Sequence[Row], metrics: Iterable[str], *, pooled: bool) -> list[dict[str, Any]]:
    """Return means over images: for each method all, and for each kind of target and input that the set tells apart."""
    summary = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        targets = sorted({row["target_group"] for row in own})
        groups = sorted({row["group"] for row in own})
        selections: list[tuple[str, str]] = [("all", "all")]
        if len(targets) > 1:
            selections += [(target, "all") for target in targets]
        if len(groups) > 1:
            selections += [("all", group) for group in groups]
        if {"proper", "over"} <= set(groups):
            groups.append(NOT_UNDER)  # one column of MSEC's tables
            selections.append(("all", NOT_UNDER))
        if len(targets) > 1 and len(groups) > 1:
            selections += [(target, group) for target in targets for group in groups]
        for target, group in selections:
            kinds = {"all": set(groups), NOT_UNDER: {"proper", "over"}}.get(group, {group})
            chosen = [r for r in own if target in ("all", r["target_group"]) and r["group"] in kinds]
            if not chosen:
                continue
            line = {"method": method, "targets": target, "inputs": group, "images": len(chosen)}
            line.update({name: statistics.fmean(row[name] for row in chosen) for name in metrics})
            if pooled:
                error = statistics.fmean(row["mse"] for row in chosen)
                line["psnr_pooled"] = -10 * math.log10(max(error, 1e-10))
            summary.append(line)
    return summary


def table(summary: Sequence[dict[str, Any]]) -> str:
    """Return the summary as a Markdown table."""
    names = list(summary[0])
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for line in summary:
        cells = [
            f"{value:.{2 if 'psnr' in name else 3}f}" if isinstance(value, float) else str(value)
            for name, value in line.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
