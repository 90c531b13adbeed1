"""Score corrections on real pairs: one definition for each metric, one command for each figure.

examples:
  python evaluate.py --check msec /data/MSEC                 counts and problems of a data set, nothing else
  python evaluate.py msec /data/MSEC -o results/msec         the released weights, by expert and exposure
  python evaluate.py lol_v1 /data/LOL -w runs/x/best.safetensors --method gamma_to_mean --method clahe
  python evaluate.py folder PAIRS --predictions THEIRS       another tool's pictures; PAIRS holds input/ and gt/
"""

import argparse
import csv
import functools
import hashlib
import io
import json
import math
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from data.paired import DATASETS, SPLITS, LayoutError, Pair, Problem, find_pairs
from utils.colour import luma
from utils.device import Arithmetic
from utils.evaluation.baselines import BASELINES
from utils.evaluation.methods import EvaluationError, Method, Pixels, read, reduced
from utils.evaluation.metrics import ciede2000, psnr, ssim, studio_luma, with_mean_of
from utils.files import atomic_path, sha256, write_text
from utils.photos.predictor import Predictor
from utils.photos.reading import SUFFIXES, PhotoError, read_photo
from utils.training.run_folder import environment
from utils.weights import WeightsError, load_weights

WEIGHTS = Path(__file__).parent / "weights"

METRICS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "psnr": ("peak signal-to-noise ratio in dB over R, G and B of 8 bits; 100 where images are equal", psnr),
    "ssim": ("structural similarity (Wang et al. 2004; Gaussian 11, sigma 1.5, valid windows), mean of R, G, B", ssim),
    "ciede2000": ("mean CIEDE2000 colour difference of the pixels, sRGB under D65; lower is better", ciede2000),
}
"""What is always measured, on RGB of 8 bits, on each image; tables hold means over images."""

VARIANTS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "psnr_y": (
        "PSNR of the Y channel in [16, 235], as MATLAB's rgb2ycbcr",
        lambda x, y: psnr(studio_luma(x), studio_luma(y)),
    ),
    "ssim_grey": ("SSIM of the luma (BT.601)", lambda x, y: ssim(luma(x), luma(y))),
    "psnr_gt_mean": (
        "PSNR after scaling to the target's mean: it looks at the answer",
        lambda x, y: psnr(with_mean_of(x, y), y),
    ),
    "ssim_gt_mean": (
        "SSIM after scaling to the target's mean: it looks at the answer",
        lambda x, y: ssim(with_mean_of(x, y), y),
    ),
}
"""What papers also print, under the same names as the above. Measured with --variants."""

POOLED = "PSNR of the mean squared error of all images together (psnr_pooled, with --variants)"
NOT_UNDER = "proper and over"
BYTES_PER_PIXEL = 250
"""Memory for scoring a photo, for each of its pixels."""
OVERLAPS = {
    ("lol_v1", "lol_v2_real"): "LOL-v1's training set holds photos of LOL-v2-real's test set",
    ("lol_v2_real", "lol_v1"): "LOL-v2-real contains LOL-v1's photos",
}


class UsageError(Exception):
    """A command line that cannot be followed. The message names the option and says what to do."""


@dataclass(frozen=True)
class Contestant:
    """A method in the table."""

    name: str
    digest: str
    """Of its weights, "" without."""
    correct: Callable[[Pair, Pixels], Pixels]
    trained_on: tuple[str, ...] = ()
    """Data sets of pairs, as `train_pairs` of conf.json has them."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0 for done, 1 for problems, 2 for wrong usage or layout, 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="DATASET", choices=list(DATASETS), help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("root", metavar="ROOT", type=Path, help="the data set's folder")
    parser.add_argument("--split", choices=SPLITS, help="default: test; with --check all of them")
    parser.add_argument("--check", action="store_true", help="decode every photo, print counts and problems, and stop")
    parser.add_argument("--skip-problems", action="store_true", help="score the pairs that are whole, count the others")
    parser.add_argument(
        "-w", "--weights", action="append", default=[], metavar="WEIGHTS", help="of a network; repeatable (msec)"
    )
    parser.add_argument("--size", type=positive, help="longest side at which the networks run (default: the weights')")
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        choices=[*BASELINES, "all"],
        help="a baseline in the same table; repeatable",
    )
    parser.add_argument("--predictions", type=Path, metavar="DIR", help="score a folder of pictures instead of weights")
    parser.add_argument("--longest", type=positive, help="first reduce both photos to this longest side (Lanczos)")
    parser.add_argument("--variants", action="store_true", help="also what papers print under the same names")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (AlexNet); needs the package and its weights")
    parser.add_argument("-o", "--output", type=Path, help="folder for results.csv, results.json and pictures")
    parser.add_argument("--save-images", action="store_true", help="keep every corrected photo in the output folder")
    parser.add_argument("--workers", type=positive, help="threads (default: as many as cores and memory allow)")
    arguments = parser.parse_args(argv)
    arguments.command = ["evaluate.py", *(sys.argv[1:] if argv is None else argv)]
    try:
        return check(arguments) if arguments.check else evaluate(arguments)
    except (LayoutError, UsageError, WeightsError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 2
    except (EvaluationError, OSError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = "; the same command goes on" if arguments.output is not None else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        return 130


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1 is expected")
    return number


def check(arguments: argparse.Namespace) -> int:
    """Decode every photo of a data set, print counts and problems; return 0 if all is well, else 1."""
    print("| part | target | input | pairs |\n|---|---|---|---|")
    problem_count, pair_count = 0, 0
    for split in [arguments.split] if arguments.split else SPLITS:
        try:
            pairs, problems = find_pairs(arguments.dataset, arguments.root, split)
        except LayoutError:
            if arguments.split or split == "test":
                raise
            continue  # a download of the test set alone
        damaged = undecodable(sorted({path for pair in pairs for path in (pair.input, pair.target)}), arguments)
        problems += [Problem(path, reason) for path, reason in damaged.items()]
        pairs = [pair for pair in pairs if not {pair.input, pair.target} & damaged.keys()]
        for path, reason in problems:
            print(f"PROBLEM {path}: {reason}", file=sys.stderr)
        groups = Counter((pair.target_group or "-", pair.group or "-") for pair in pairs)
        for (target, group), count in sorted(groups.items()):
            print(f"| {split} | {target} | {group} | {count} |")
        problem_count, pair_count = problem_count + len(problems), pair_count + len(pairs)
    print(f"{pair_count} pairs, {problem_count} problems")
    return 1 if problem_count or not pair_count else 0


def undecodable(paths: list[Path], arguments: argparse.Namespace) -> dict[Path, str]:
    """Return the photos that cannot be decoded to the end, and why."""

    def reason(path: Path) -> str | None:
        try:
            read_photo(path)
        except PhotoError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(arguments.workers or os.cpu_count()) as pool:
        reasons = list(tqdm(pool.map(reason, paths), total=len(paths), unit="photo", disable=None))
    return {path: found for path, found in zip(paths, reasons, strict=True) if found is not None}


def evaluate(arguments: argparse.Namespace) -> int:
    """Score what the command line names and return the exit code."""
    arguments.split = arguments.split or "test"
    if arguments.save_images and arguments.output is None:
        raise UsageError("--save-images needs a folder: add -o FOLDER")
    metrics = {**METRICS, **(VARIANTS if arguments.variants else {}), **(lpips_metric() if arguments.lpips else {})}
    pairs, problems = find_pairs(arguments.dataset, arguments.root, arguments.split)
    for path, reason in problems:
        print(f"PROBLEM {path}: {reason}", file=sys.stderr)
    if not pairs:
        raise EvaluationError(f"{arguments.root}: no pairs in split {arguments.split}")
    if problems and not arguments.skip_problems:
        raise EvaluationError(f"{len(problems)} problems, listed above: mend them, or leave them out (--skip-problems)")
    contestants = list_contestants(arguments, pairs)
    for warning in warnings_of(arguments, contestants):
        print(f"WARNING {warning}", file=sys.stderr)
    rows, left_out = score_all(arguments, pairs, contestants, metrics)
    summary = summarise(rows, list(metrics), pooled=arguments.variants)
    print(table(summary))
    if arguments.output is not None:
        for contestant in contestants:
            sheet(arguments, pairs, contestant, rows)
        write_results(arguments, rows, summary, contestants, metrics, len(problems) + left_out)
    if problems or left_out:
        print(f"{len(problems) + left_out} problems were left out", file=sys.stderr)
    return 0


def list_contestants(arguments: argparse.Namespace, pairs: list[Pair]) -> list[Contestant]:
    """Return the methods that the command line names: the given weights or pictures, then the baselines.

    Raises:
        UsageError: options exclude each other, or two methods have one name.
        EvaluationError: pictures are missing.
        WeightsError: weights cannot be used.
    """
    contestants = []
    if arguments.predictions is not None:
        if arguments.weights:
            raise UsageError("--predictions and --weights: score one of them at a time")
        contestants.append(predictions(arguments, pairs))
    names = arguments.weights or ([] if arguments.predictions or arguments.method else ["msec"])
    contestants += [network(Path(name), arguments.size) for name in names]
    for name in BASELINES if "all" in arguments.method else dict.fromkeys(arguments.method):
        contestants.append(Contestant(name, "", functools.partial(_without_pair, BASELINES[name])))
    for name, count in Counter(contestant.name for contestant in contestants).items():
        if count > 1:
            raise UsageError(f"two methods are called {name}: give one of the files or folders another name")
    return contestants


def _without_pair(method: Method, pair: Pair, photo: Pixels) -> Pixels:
    return method(photo)


def network(path: Path, size: int | None) -> Contestant:
    """Return the method of a weights file, or of a released one by its name; a run's best file is named by its run."""
    released = WEIGHTS / f"{path}.safetensors"
    if not path.suffix and not path.is_file() and released.is_file():
        path = released
    try:
        predictor = Predictor.from_weights(path, size=size)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    name = path.resolve().parent.name if path.stem == "best" else path.stem
    trained_on = load_weights(path).training.get("config", {}).get("train_pairs", ())
    return Contestant(name, sha256(path), functools.partial(_without_pair, predictor.predict), tuple(trained_on))


def predictions(arguments: argparse.Namespace, pairs: list[Pair]) -> Contestant:
    """Return the method that looks its results up in a folder, by as much of the input's path as tells inputs apart."""
    folder: Path = arguments.predictions
    if not folder.is_dir():
        raise UsageError(f"--predictions {folder}: there is no such folder")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            parts = path.relative_to(folder).with_suffix("").parts
            for length in range(1, len(parts) + 1):
                found.setdefault("/".join(parts[-length:]), []).append(path)
    inputs = sorted({pair.input for pair in pairs})
    tails = {path: path.relative_to(arguments.root).with_suffix("").parts for path in inputs}
    uses = Counter("/".join(parts[-length:]) for parts in tails.values() for length in range(1, len(parts) + 1))
    chosen: dict[Path, Path] = {}
    for path, parts in tails.items():
        for length in range(len(parts), 0, -1):
            key = "/".join(parts[-length:])
            if uses[key] == 1 and len(found.get(key, ())) == 1:
                chosen[path] = found[key][0]
                break
    missing = [path for path in inputs if path not in chosen]
    if missing:
        raise EvaluationError(
            f"--predictions {folder}: nothing, or more than one picture, for {len(missing)} of {len(inputs)} inputs, "
            f"such as {missing[0]}: give each the input's name, in the input's folder where names repeat"
        )
    state = "".join(f"{path}{path.stat().st_size}{path.stat().st_mtime_ns}" for path in chosen.values())

    def look_up(pair: Pair, photo: Pixels) -> Pixels:
        result = read(chosen[pair.input], None)
        if result.shape[:2] == pair.size[::-1]:  # of the target's full size: reduced as the target is
            return reduced(Image.fromarray(result), arguments.longest)
        return result

    digest = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()
    return Contestant(folder.resolve().name, digest, look_up)


def warnings_of(arguments: argparse.Namespace, contestants: list[Contestant]) -> list[str]:
    """Return what is known to make figures too good: weights that were trained on what they are tested on."""
    warnings = []
    for contestant in contestants:
        for source in contestant.trained_on:
            dataset, _, root = source.partition(":")
            if (dataset, arguments.dataset) in OVERLAPS:
                warnings.append(f"{contestant.name} was trained on {source}: {OVERLAPS[dataset, arguments.dataset]}")
            is_same = dataset == arguments.dataset and (arguments.split != "test" or dataset == "folder")
            if is_same or (Path(root).resolve() == arguments.root.resolve() and arguments.split != "test"):
                warnings.append(f"{contestant.name} was trained on {source}: these may be the same photos")
    if arguments.dataset == "lol_v2_real" and arguments.predictions:
        warnings.append(f"{OVERLAPS['lol_v1', 'lol_v2_real']}: were these made by a network trained on LOL-v1?")
    return warnings


def lpips_metric() -> dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """Return LPIPS, if its package and the weights of its network are installed; nothing is downloaded.

    Raises:
        UsageError: they are not.
    """
    try:
        import lpips
    except ImportError:
        raise UsageError("--lpips needs the package lpips: pip install lpips") from None
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(folder.glob("alexnet-*.pth")):
        raise UsageError(f"--lpips needs torchvision's AlexNet weights (alexnet-*.pth) in {folder}")
    network = lpips.LPIPS(net="alex", verbose=False).eval()

    @torch.no_grad()
    def measure(images: Tensor, targets: Tensor) -> Tensor:
        return network(images * 2 - 1, targets * 2 - 1).flatten()

    return {"lpips": ("LPIPS with AlexNet (Zhang et al. 2018), version 0.1; lower is better", measure)}


def score_all(
    arguments: argparse.Namespace,
    pairs: list[Pair],
    contestants: list[Contestant],
    metrics: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]],
) -> tuple[list[dict[str, Any]], int]:
    """Return a row for each pair and method, and how many pairs cannot be read; what an interrupted run has is kept.

    Raises:
        EvaluationError: a photo cannot be read (and is not to be skipped), or sizes of output and target differ.
    """
    settings = settings_of(arguments, pairs, contestants, metrics)
    partial = None if arguments.output is None else arguments.output / "results.partial.jsonl"
    done = {} if partial is None else read_partial(partial, settings)
    by_input: dict[Path, list[Pair]] = {}  # all targets of an input are scored at once: it is corrected once
    for pair in pairs:
        by_input.setdefault(pair.input, []).append(pair)
    todo = [
        (group, one)
        for group in by_input.values()
        for one in contestants
        if any(key_of(arguments, pair, one.name) not in done for pair in group)
    ]
    threads, workers = torch.get_num_threads(), arguments.workers or worker_count(pairs)
    torch.set_num_threads(1)  # a thread for each photo instead
    unreadable: set[Path] = set()
    try:
        with (
            PartialResults(partial, settings, is_new=not done) as file,
            tqdm(total=len(by_input) * len(contestants), unit="photo", disable=None) as bar,
            ThreadPoolExecutor(workers) as pool,
        ):
            bar.update(bar.total - len(todo))
            work = functools.partial(score_photo, arguments, metrics)
            results = pool.map(lambda item: work(*item), todo)
            try:
                for (group, _), rows in zip(todo, results, strict=True):
                    if rows is None:
                        unreadable.add(group[0].input)
                    for row in rows or ():
                        done[row["input"], row["target"], row["method"]] = row
                        file.add(row)
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)
    whole = [pair for pair in pairs if pair.input not in unreadable]
    if not whole:
        raise EvaluationError(f"{arguments.root}: none of its pairs can be read")
    return [done[key_of(arguments, pair, one.name)] for one in contestants for pair in whole], len(unreadable)


def settings_of(
    arguments: argparse.Namespace, pairs: list[Pair], contestants: list[Contestant], metrics: Iterable[str]
) -> dict[str, Any]:
    """Return all that the rows depend on: those of an interrupted run are taken over if it is the same."""
    files = sorted({path for pair in pairs for path in (pair.input, pair.target)})
    state = "".join(f"{path}{path.stat().st_size}{path.stat().st_mtime_ns}" for path in files)
    return {
        "dataset": arguments.dataset,
        "files": hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest(),
        "longest": arguments.longest,
        "size": arguments.size,
        "metrics": list(metrics),
        "methods": {contestant.name: contestant.digest for contestant in contestants},
        "save_images": arguments.save_images,
    }


def worker_count(pairs: list[Pair]) -> int:
    """Return how many photos may be in work at once: one for each core, if the memory suffices."""
    largest = max(math.prod(pair.size) for pair in pairs)
    return max(1, min(os.cpu_count() or 1, int(free_memory() / (largest * BYTES_PER_PIXEL))))


def free_memory() -> float:
    """Return the free memory in bytes; 8 GB where the system does not tell."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return 8e9


def key_of(arguments: argparse.Namespace, pair: Pair, method: str) -> tuple[str, str, str]:
    """Return what identifies a row."""
    root = arguments.root
    return pair.input.relative_to(root).as_posix(), pair.target.relative_to(root).as_posix(), method


class PartialResults:
    """The rows of a run in progress, one JSON object a line, for the next run if this one is interrupted."""

    def __init__(self, path: Path | None, settings: dict[str, Any], *, is_new: bool) -> None:
        self._file: Any = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w" if is_new else "a", encoding="utf-8")  # noqa: SIM115  # closed in __exit__
            if is_new:
                self.add(settings)

    def __enter__(self) -> "PartialResults":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        """Write a line."""
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()


def read_partial(path: Path, settings: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the rows that an interrupted run with the same settings has left; whole lines only."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = {}
    with suppress(ValueError, KeyError, IndexError):
        if json.loads(lines[0]) != settings:
            return {}
        for line in lines[1:]:
            row = json.loads(line)
            rows[row["input"], row["target"], row["method"]] = row
    if rows and not text.endswith("\n"):  # cut in the middle of a line
        write_text(path, "\n".join(lines) + "\n")
    return rows


def score_photo(
    arguments: argparse.Namespace,
    metrics: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]],
    pairs: list[Pair],
    contestant: Contestant,
) -> list[dict[str, Any]] | None:
    """Return the rows of one input, one for each of its targets; None if a photo cannot be read and is skipped."""
    try:
        photo = read(pairs[0].input, arguments.longest)
        targets = [read(pair.target, arguments.longest) for pair in pairs]
    except EvaluationError as error:
        if not arguments.skip_problems:
            raise EvaluationError(f"{error}; --skip-problems leaves it out") from None
        tqdm.write(f"PROBLEM {error}", file=sys.stderr)
        return None
    try:
        result = contestant.correct(pairs[0], photo)
    except ValueError as error:
        raise EvaluationError(f"{pairs[0].input}: {contestant.name}: {error}") from None
    if arguments.save_images:
        name = pairs[0].input.relative_to(arguments.root).with_suffix(".png")
        path = arguments.output / "images" / contestant.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            Image.fromarray(result).save(temporary)
    return [
        score(arguments, metrics, pair, contestant.name, result, target)
        for pair, target in zip(pairs, targets, strict=True)
    ]


def score(
    arguments: argparse.Namespace,
    metrics: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]],
    pair: Pair,
    method: str,
    result: Pixels,
    target: Pixels,
) -> dict[str, Any]:
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
    row: dict[str, Any] = dict(
        zip(("input", "target", "method"), key_of(arguments, pair, method), strict=True),
        group=pair.group,
        target_group=pair.target_group,
        width=target.shape[1],
        height=target.shape[0],
        mse=(images - targets).double().square().mean().item(),
    )
    for name, (_, measure) in metrics.items():
        try:
            row[name] = measure(images, targets).item()
        except ValueError as error:
            raise EvaluationError(f"{pair.input}: {name}: {error}") from None
    return row


def summarise(rows: list[dict[str, Any]], metrics: list[str], *, pooled: bool) -> list[dict[str, Any]]:
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


def table(summary: list[dict[str, Any]]) -> str:
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


def write_results(
    arguments: argparse.Namespace,
    rows: list[dict[str, Any]],
    summary: list[dict[str, Any]],
    contestants: Iterable[Contestant],
    metrics: dict[str, tuple[str, Any]],
    problem_count: int,
) -> None:
    """Write results.csv, a row for each image, and results.json, what they mean and how they were made."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(
        arguments.output / "results.csv", text.getvalue().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    )
    facts = {
        "dataset": arguments.dataset,
        "split": arguments.split,
        "longest": arguments.longest,
        "root": str(arguments.root),
        "size": arguments.size,
        "left_out": problem_count,
        "methods": {contestant.name: contestant.digest or None for contestant in contestants},
        "metrics": {name: meaning for name, (meaning, _) in metrics.items()}
        | ({"psnr_pooled": POOLED} if arguments.variants else {}),
        "means": summary,
        "environment": environment(str(Arithmetic()), 1),
        "command": arguments.command,
    }
    write_text(arguments.output / "results.json", json.dumps(facts, indent=2) + "\n")
    (arguments.output / "results.partial.jsonl").unlink(missing_ok=True)


def sheet(
    arguments: argparse.Namespace,
    pairs: list[Pair],
    contestant: Contestant,
    rows: list[dict[str, Any]],
    side: int = 360,
    each: int = 2,
) -> None:
    """Write a contact sheet of a method's best, median and worst images by PSNR: input, result, target."""
    own = sorted((row for row in rows if row["method"] == contestant.name), key=lambda row: -row["psnr"])
    middle = max((len(own) - each) // 2, 0)
    chosen = [*own[:each], *own[middle : middle + each], *own[-each:]]
    chosen = list({(row["input"], row["target"]): row for row in chosen}.values())
    by_key = {key_of(arguments, pair, contestant.name): pair for pair in pairs}
    font = ImageFont.load_default(14)
    image = Image.new("RGB", (3 * (side + 8) + 8, len(chosen) * (side + 30) + 8), "white")
    draw = ImageDraw.Draw(image)
    for number, row in enumerate(chosen):
        pair = by_key[row["input"], row["target"], row["method"]]
        photo, target = read(pair.input, arguments.longest), read(pair.target, arguments.longest)
        top = 8 + number * (side + 30)
        label = f"{row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}   {row['input']}"
        draw.text((8, top), label.encode("latin-1", "replace").decode("latin-1"), font=font, fill="black")
        for column, pixels in enumerate((photo, contestant.correct(pair, photo), target)):
            small = Image.fromarray(pixels)
            small.thumbnail((side, side))
            image.paste(small, (8 + column * (side + 8), top + 22))
    with atomic_path(arguments.output / f"sheet_{contestant.name}.png") as temporary:
        image.save(temporary)


if __name__ == "__main__":
    sys.exit(main())
