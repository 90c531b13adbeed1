"""Score corrections on real pairs: one definition for each metric, one command for each figure.

examples:
  python evaluate.py --check msec /data/MSEC                 counts and problems of a data set, nothing else
  python evaluate.py msec /data/MSEC -o results/msec         the released weights, by expert and exposure
  python evaluate.py lol_v1 /data/LOL -w runs/x/best.safetensors --method gamma_to_mean --method clahe
  python evaluate.py folder PAIRS --predictions THEIRS       another tool's pictures; PAIRS holds input/ and gt/
"""

import argparse
import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.paired import DATASETS, SPLITS, LayoutError, Pair, Problem, find_pairs
from utils.device import Arithmetic
from utils.evaluation.baselines import BASELINES
from utils.evaluation.errors import EvaluationError, UsageError
from utils.evaluation.methods import Contestant, baseline, network, predictions
from utils.evaluation.metrics import METRICS, POOLED, VARIANTS, Metric, lpips_metric
from utils.evaluation.partial import PartialResults, Row
from utils.evaluation.scoring import Measurement, score_all
from utils.evaluation.sheets import write_sheet
from utils.evaluation.tables import summarise, table
from utils.files import state_of, write_text
from utils.photos.reading import PhotoError, read_photo
from utils.training.run_folder import environment
from utils.weights import WeightsError

OVERLAPS = {
    ("lol_v1", "lol_v2_real"): "LOL-v1's training set holds photos of LOL-v2-real's test set",
    ("lol_v2_real", "lol_v1"): "LOL-v2-real contains LOL-v1's photos",
}


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
    output: Path | None = arguments.output
    if arguments.save_images and output is None:
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
    images = output / "images" if output is not None and arguments.save_images else None
    measurement = Measurement(arguments.root, arguments.longest, metrics, arguments.skip_problems, images)
    partial = None if output is None else output / "results.partial.jsonl"
    with PartialResults(partial, settings_of(arguments, pairs, contestants, metrics)) as kept:
        rows, left_out = score_all(measurement, pairs, contestants, kept, arguments.workers)
    summary = summarise(rows, metrics, pooled=arguments.variants)
    print(table(summary))
    if output is not None:
        for contestant in contestants:
            write_sheet(output / f"sheet_{contestant.name}.png", measurement, pairs, contestant, rows)
        write_results(arguments, rows, summary, contestants, metrics, len(problems) + left_out)
    if problems or left_out:
        print(f"{len(problems) + left_out} problems were left out", file=sys.stderr)
    return 0


def list_contestants(arguments: argparse.Namespace, pairs: Sequence[Pair]) -> list[Contestant]:
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
        contestants.append(predictions(arguments.predictions, pairs, arguments.root, arguments.longest))
    names = arguments.weights or ([] if arguments.predictions or arguments.method else ["msec"])
    contestants += [network(Path(name), arguments.size) for name in names]
    contestants += [
        baseline(name) for name in (BASELINES if "all" in arguments.method else dict.fromkeys(arguments.method))
    ]
    for name, count in Counter(contestant.name for contestant in contestants).items():
        if count > 1:
            raise UsageError(f"two methods are called {name}: give one of the files or folders another name")
    return contestants


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


def settings_of(
    arguments: argparse.Namespace,
    pairs: Sequence[Pair],
    contestants: Sequence[Contestant],
    metrics: dict[str, Metric],
) -> dict[str, Any]:
    """Return all that the rows depend on: those of an interrupted run are taken over if it is the same."""
    return {
        "dataset": arguments.dataset,
        "files": state_of(sorted({path for pair in pairs for path in (pair.input, pair.target)})),
        "longest": arguments.longest,
        "size": arguments.size,
        "metrics": list(metrics),
        "methods": {contestant.name: contestant.digest for contestant in contestants},
        "save_images": arguments.save_images,
    }


def write_results(
    arguments: argparse.Namespace,
    rows: list[Row],
    summary: list[dict[str, Any]],
    contestants: Sequence[Contestant],
    metrics: dict[str, Metric],
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
        "metrics": {name: metric.meaning for name, metric in metrics.items()}
        | ({"psnr_pooled": POOLED} if arguments.variants else {}),
        "means": summary,
        "environment": environment(str(Arithmetic()), 1),
        "command": arguments.command,
    }
    write_text(arguments.output / "results.json", json.dumps(facts, indent=2) + "\n")
    (arguments.output / "results.partial.jsonl").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
