"""Score corrections on real pairs: one definition for each metric, one command for each figure, with 95 % intervals.

Two methods or more are compared photo by photo with the first, or with the first of an earlier run (--against).

examples:
  python evaluate.py --check msec /data/MSEC                 counts and problems of a data set, nothing else
  python evaluate.py msec /data/MSEC -o results/msec         the released weights, by expert and exposure
  python evaluate.py lol_v1 /data/LOL -w runs/x/best.safetensors --method gamma_to_mean --method clahe
  python evaluate.py folder PAIRS --predictions THEIRS       another tool's pictures; PAIRS holds input/ and gt/
  python evaluate.py sets PAIRS -w NEW --against results/old/results.json     PAIRS holds such folders; mean over them
  python evaluate.py looks PHOTOS -w msec                    photos without targets: whites, blacks, what else changes
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.paired import DATASETS, SPLITS, LayoutError, Pair, Pairs, Problem, find_pairs, photos_alone
from utils.device import Arithmetic
from utils.evaluation.baselines import BASELINES
from utils.evaluation.errors import EvaluationError, UsageError
from utils.evaluation.looks import LOOKS, MEANINGS, summarise_looks
from utils.evaluation.methods import Contestant, baseline, network, predictions, undecodable
from utils.evaluation.metrics import METRICS, POOLED, VARIANTS, Metric, lpips_metric
from utils.evaluation.partial import PartialResults, Row
from utils.evaluation.results import Run, fingerprints, read_run, require_alike, write_run
from utils.evaluation.scoring import Measurement, score_all
from utils.evaluation.sheets import write_sheet
from utils.evaluation.tables import Line, difference_table, differences, summarise, table
from utils.files import state_of
from utils.training.run_folder import environment
from utils.weights import WeightsError

OF_ITSELF = "looks"
"""In place of a data set: photos without targets."""
OVERLAPS = {
    ("lol_v1", "lol_v2_real"): "LOL-v1's training set holds photos of LOL-v2-real's test set",
    ("lol_v2_real", "lol_v1"): "LOL-v2-real contains LOL-v1's photos",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0 for done, 1 for problems, 2 for wrong usage or layout, 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    datasets = [*DATASETS, OF_ITSELF]
    parser.add_argument("dataset", metavar="DATASET", choices=datasets, help=f"one of {', '.join(datasets)}")
    parser.add_argument("root", metavar="ROOT", type=Path, help="the data set's folder")
    parser.add_argument("--split", choices=SPLITS, help="default: test; with --check all of them")
    parser.add_argument("--check", action="store_true", help="decode every photo, print counts and problems, and stop")
    parser.add_argument("--skip-problems", action="store_true", help="score the pairs that are whole, count the others")
    parser.add_argument(
        "-w", "--weights", action="append", default=[], metavar="WEIGHTS", help="of a network; repeatable (msec)"
    )
    parser.add_argument(
        "--size", type=positive, help="longest side at which the networks run, or more (default: the weights')"
    )
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        choices=[*BASELINES, "all"],
        help="a baseline in the same table; repeatable",
    )
    parser.add_argument("--predictions", type=Path, metavar="DIR", help="score a folder of pictures instead of weights")
    parser.add_argument("--longest", type=positive, help="first reduce both photos to this longest side (Lanczos)")
    parser.add_argument("--variants", action="store_true", help="also what papers print under the same names, and more")
    parser.add_argument(
        "--metric", action="append", default=[], choices=list(VARIANTS), help="one of the --variants; repeatable"
    )
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (AlexNet); needs the package and its weights")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RESULTS",
        help="results.json of another run, whose first method to compare with",
    )
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
    if arguments.dataset == OF_ITSELF:
        raise UsageError(f"--check is for data sets of pairs, not {OF_ITSELF}")
    print("| part | target | input | pairs |\n|---|---|---|---|")
    problem_count, pair_count = 0, 0
    for split in [arguments.split] if arguments.split else SPLITS:
        try:
            pairs, problems = find_pairs(arguments.dataset, arguments.root, split)
        except LayoutError:
            if arguments.split or split == "test":
                raise
            continue  # a download of the test set alone
        damaged = undecodable({path for pair in pairs for path in (pair.input, pair.target)}, arguments.workers)
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


def evaluate(arguments: argparse.Namespace) -> int:
    """Score what the command line names and return the exit code."""
    output: Path | None = arguments.output
    if arguments.save_images and output is None:
        raise UsageError("--save-images needs a folder: add -o FOLDER")
    metrics = metrics_of(arguments)
    arguments.split = arguments.split or "test"
    pairs, problems = pairs_of(arguments)
    facts = facts_of(arguments, pairs, metrics)
    other = None if arguments.against is None else read_run(arguments.against)
    if other is not None:
        require_alike(facts, other)
    contestants = list_contestants(arguments, pairs)
    for warning in warnings_of(arguments, contestants):
        print(f"WARNING {warning}", file=sys.stderr)
    images = output / "images" if output is not None and arguments.save_images else None
    measurement = Measurement(arguments.root, arguments.longest, metrics, arguments.skip_problems, images)
    partial = None if output is None else output / "results.partial.jsonl"
    with PartialResults(partial, settings_of(arguments, pairs, contestants, metrics)) as kept:
        rows, left_out = score_all(measurement, pairs, contestants, kept, arguments.workers)
    summary, changes = summaries(arguments, rows, metrics, other)
    print(table(summary))
    if changes:
        print(f"\nDifferences, paired by photo, with 95 % intervals:\n\n{difference_table(changes)}")
    if output is not None:
        for contestant in contestants:
            write_sheet(output / f"sheet_{contestant.name}.png", measurement, pairs, contestant, rows)
        facts |= {
            "left_out": len(problems) + left_out,
            "methods": {one.name: one.digest or None for one in contestants},
        }
        facts |= {"looks" if arguments.dataset == OF_ITSELF else "means": summary, "differences": changes}
        facts |= {"environment": environment(str(Arithmetic()), 1), "command": arguments.command}
        write_run(output, facts, rows)
        (output / "results.partial.jsonl").unlink(missing_ok=True)
    if problems or left_out:
        print(f"{len(problems) + left_out} problems were left out", file=sys.stderr)
    return 0


def metrics_of(arguments: argparse.Namespace) -> dict[str, Metric]:
    """Return what the command line asks to measure.

    Raises:
        UsageError: options do not go together, or LPIPS is not installed.
    """
    if arguments.dataset == OF_ITSELF:
        unfit = [name for name in ("split", "variants", "metric", "lpips", "against") if getattr(arguments, name)]
        if unfit:
            raise UsageError(f"--{unfit[0]} is for pairs: it does not go with {OF_ITSELF}")
        return LOOKS
    variants = VARIANTS if arguments.variants else {name: VARIANTS[name] for name in arguments.metric}
    return {**METRICS, **variants, **(lpips_metric() if arguments.lpips else {})}


def pairs_of(arguments: argparse.Namespace) -> Pairs:
    """Return the pairs of the data set, or photos as their own targets; print problems.

    Raises:
        LayoutError: there is no such data set.
        EvaluationError: there are no pairs, or problems that are not to be skipped.
    """
    if arguments.dataset == OF_ITSELF:
        found, what = photos_alone(arguments.root), "no photos"
    else:
        found, what = (
            find_pairs(arguments.dataset, arguments.root, arguments.split),
            f"no pairs in split {arguments.split}",
        )
    for path, reason in found.problems:
        print(f"PROBLEM {path}: {reason}", file=sys.stderr)
    if not found.pairs:
        raise EvaluationError(f"{arguments.root}: {what}")
    if found.problems and not arguments.skip_problems:
        count = len(found.problems)
        raise EvaluationError(f"{count} problems, listed above: mend them, or leave them out (--skip-problems)")
    return found


def facts_of(arguments: argparse.Namespace, pairs: Sequence[Pair], metrics: dict[str, Metric]) -> dict[str, Any]:
    """Return how a run's rows are made, for results.json and for the comparison with another run."""
    meanings = {name: metric.meaning for name, metric in metrics.items()}
    if arguments.dataset == OF_ITSELF:
        meanings |= MEANINGS
    elif arguments.variants:
        meanings["psnr_pooled"] = POOLED
    is_wanted = arguments.output is not None or arguments.against is not None
    files = [path for pair in pairs for path in (pair.input, pair.target)] if is_wanted else []
    return {
        "dataset": arguments.dataset,
        "split": arguments.split,
        "longest": arguments.longest,
        "root": str(arguments.root),
        "size": arguments.size,
        "metrics": meanings,
        "files": fingerprints(files, arguments.root),
    }


def summaries(
    arguments: argparse.Namespace, rows: Sequence[Row], metrics: dict[str, Metric], other: Run | None
) -> tuple[list[Line], list[Line]]:
    """Return the figures of each method, and its differences to the first, or to the first of another run."""
    if arguments.dataset == OF_ITSELF:
        return summarise_looks(rows), []
    of_sets = arguments.dataset == "sets"
    summary = summarise(rows, metrics, pooled=arguments.variants, of_sets=of_sets, by_scene=True)
    against = rows if other is None else other.rows
    first = [row for row in against if row["method"] == against[0]["method"]]
    if other is None:
        rows = rows[len(first) :]
    else:
        label = f"{first[0]['method']} of {other.path.resolve().parent.name}"
        first = [{**row, "method": label} for row in first]
    return summary, differences(rows, first, metrics, of_sets=of_sets, by_scene=True)


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
            is_same = dataset == arguments.dataset and (arguments.split != "test" or dataset in ("folder", "sets"))
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


if __name__ == "__main__":
    sys.exit(main())
