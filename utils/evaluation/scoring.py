"""A row of figures for every pair and method, several photos at once."""

import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..files import atomic_path
from ..stop import StopRequest
from .errors import EvaluationError
from .methods import Contestant, PhotoPair, Pixels, read
from .metrics import Metric
from .partial import Key, PartialResults, Row

BYTES_PER_PIXEL = 250
"""Memory for scoring a photo, for each of its pixels."""


@dataclass(frozen=True)
class Measurement:
    """What is done with every pair."""

    root: Path
    """Rows name the files below it."""
    longest: int | None
    """Side to which both photos are first reduced."""
    metrics: dict[str, Metric]
    skip_problems: bool = False
    """Whether photos that cannot be read are left out."""
    images: Path | None = None
    """Folder for the corrected photos."""

    def key(self, pair: PhotoPair, method: str) -> Key:
        """Return what identifies a row."""
        return pair.input.relative_to(self.root).as_posix(), pair.target.relative_to(self.root).as_posix(), method


def score_all(
    measurement: Measurement,
    pairs: Sequence[PhotoPair],
    contestants: Sequence[Contestant],
    partial: PartialResults,
    workers: int | None = None,
) -> tuple[list[Row], int]:
    """Return a row for each pair and method, and how many inputs were left out as they cannot be read.

    Args:
        measurement: what is measured.
        pairs: all targets of an input are scored at once: it is corrected once.
        contestants: the methods.
        partial: rows that are there already; new ones are added.
        workers: threads; None takes as many as cores and memory allow.

    Raises:
        EvaluationError: a photo cannot be read (and is not to be skipped), or sizes of output and target differ.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM came; rows that were finished are in `partial`.
    """
    by_input: dict[Path, list[PhotoPair]] = {}
    for pair in pairs:
        by_input.setdefault(pair.input, []).append(pair)
    todo = [
        (group, one)
        for group in by_input.values()
        for one in contestants
        if any(measurement.key(pair, one.name) not in partial.rows for pair in group)
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a thread for each photo instead
    unreadable: set[Path] = set()
    try:
        with (
            tqdm(total=len(by_input) * len(contestants), unit="photo", disable=None) as bar,
            ThreadPoolExecutor(workers or _worker_count(pairs)) as pool,
            StopRequest() as stop,  # an exception in the middle of waiting would leave locks behind
        ):
            bar.update(bar.total - len(todo))
            results = pool.map(lambda item: score_photo(measurement, *item), todo)
            try:
                for (group, _), rows in zip(todo, results, strict=True):
                    if rows is None:
                        unreadable.add(group[0].input)
                    for row in rows or ():
                        partial.add(row)
                    bar.update()
                    stop.raise_it()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)
    whole = [pair for pair in pairs if pair.input not in unreadable]
    if not whole:
        raise EvaluationError(f"{measurement.root}: none of its pairs can be read")
    return [partial.rows[measurement.key(pair, one.name)] for one in contestants for pair in whole], len(unreadable)


def _worker_count(pairs: Sequence[PhotoPair]) -> int:
    """Return how many photos may be in work at once: one for each core, if the memory suffices."""
    largest = max(math.prod(pair.size) for pair in pairs)
    return max(1, min(os.cpu_count() or 1, int(_free_memory() / (largest * BYTES_PER_PIXEL))))


def _free_memory() -> float:
    """Return the free memory in bytes; 8 GB where the system does not tell."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return 8e9


def score_photo(measurement: Measurement, pairs: Sequence[PhotoPair], contestant: Contestant) -> list[Row] | None:
    """Return the rows of one input, one for each of its targets; None if a photo cannot be read and is skipped."""
    source = pairs[0].input
    try:
        photo = read(source, measurement.longest)
        targets = [read(pair.target, measurement.longest) for pair in pairs]
    except EvaluationError as error:
        if not measurement.skip_problems:
            raise EvaluationError(f"{error}; --skip-problems leaves it out") from None
        tqdm.write(f"PROBLEM {error}", file=sys.stderr)
        return None
    try:
        result = contestant.correct(pairs[0], photo)
    except ValueError as error:
        raise EvaluationError(f"{source}: {contestant.name}: {error}") from None
    if measurement.images is not None:
        path = measurement.images / contestant.name / source.relative_to(measurement.root).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            Image.fromarray(result).save(temporary)
    return [
        _score(measurement, pair, contestant.name, result, target) for pair, target in zip(pairs, targets, strict=True)
    ]


def _score(measurement: Measurement, pair: PhotoPair, method: str, result: Pixels, target: Pixels) -> Row:
    """Return the row of one pair.

    Raises:
        EvaluationError: result and target differ in size.
    """
    if result.shape != target.shape:
        sizes = " and ".join(f"{x.shape[1]}x{x.shape[0]}" for x in (result, target))
        raise EvaluationError(
            f"{pair.input}: {method}'s result and the target differ in size, {sizes} px: resizing one of them "
            "would hide errors"
        )
    images, targets = (torch.from_numpy(np.array(x)).permute(2, 0, 1)[None] / 255 for x in (result, target))
    row: Row = dict(
        zip(("input", "target", "method"), measurement.key(pair, method), strict=True),
        group=pair.group,
        target_group=pair.target_group,
        width=target.shape[1],
        height=target.shape[0],
        mse=(images - targets).double().square().mean().item(),
    )
    for name, metric in measurement.metrics.items():
        try:
            row[name] = metric.measure(images, targets).item()
        except ValueError as error:
            raise EvaluationError(f"{pair.input}: {name}: {error}") from None
    return row
