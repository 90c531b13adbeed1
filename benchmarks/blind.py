"""Let people rank versions of the same photos without knowing whose they are.

Makes a page for each photo, its versions in random order under letters, and a key that says which is which: keep it
from the judges. A judge looks once at each page and writes a line for it, best first: "007,BDAC". Pages stand in random
order too; with another `--seed` and folder, a second judge sees other letters. `--score` turns the votes into firsts,
lasts, mean ranks and preferences, with 95 % intervals (bootstrap over photos).

examples:
  python evaluate.py looks PHOTOS -w msec --method identity --method auto_levels --save-images -o results/looks
  python benchmarks/blind.py results/looks/images/* -o results/pages
  python benchmarks/blind.py --score ann.csv ben.csv --key results/pages/key.json
"""

import argparse
import csv
import json
import math
import random
import string
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils.evaluation.errors import EvaluationError
from utils.evaluation.intervals import means
from utils.evaluation.methods import read
from utils.evaluation.tables import markdown
from utils.files import atomic_path, write_text
from utils.photos.reading import find_photos

Key = dict[str, dict[str, str]]
"""By page: "photo", and the version under each letter."""

GAP, LABEL = 12, 40
GREY = "#808080"
"""Around the photos, so that none looks bright or dark by contrast."""
SHAPE = 1.6
"""Width of a screen by its height: the grid is the one that fits it largest."""


def main() -> int:
    """Make pages, or score votes; return 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="results of a method, named by it")
    parser.add_argument("-o", "--output", type=Path, help="folder for the pages and key.json")
    parser.add_argument("--side", type=int, default=600, help="longest side of each version in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the order of pages and letters")
    parser.add_argument("--score", type=Path, nargs="+", metavar="VOTES", help="a file for each judge")
    parser.add_argument(
        "--key", type=Path, nargs="+", metavar="KEY", help="key.json of the pages: one for all judges, or one for each"
    )
    arguments = parser.parse_args()
    scores = arguments.score is not None
    if scores != (arguments.key is not None) or scores == bool(arguments.folders):
        parser.error("give folders of results and -o, or --score VOTES --key KEY")
    if not scores and (arguments.output is None or len(arguments.folders) < 2):
        parser.error("at least two folders of results, and -o for the pages")
    if scores and len(arguments.key) not in (1, len(arguments.score)):
        parser.error(f"{len(arguments.key)} keys for {len(arguments.score)} files of votes: one, or as many")
    try:
        if scores:
            print(score(arguments.score, arguments.key * (len(arguments.score) // len(arguments.key))))
        else:
            make_pages(arguments.folders, arguments.output, arguments.side, arguments.seed)
    except (EvaluationError, OSError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 2
    return 0


def make_pages(folders: Sequence[Path], output: Path, side: int, seed: int) -> None:
    """Write a page for each photo, 001.png and so on, and key.json.

    Raises:
        EvaluationError: folders hold different photos or sizes of them, or share a name, or `output` has a key.
    """
    versions = {folder.resolve().name: _by_name(folder) for folder in folders}
    if len(versions) < len(folders):
        raise EvaluationError("two folders have one name: methods are called by their folders")
    if len(versions) > len(string.ascii_uppercase):
        raise EvaluationError(f"{len(versions)} versions: there are {len(string.ascii_uppercase)} letters")
    photos = sorted(set.union(*(set(found) for found in versions.values())))
    for method, found in versions.items():
        missing = [name for name in photos if name not in found]
        if missing or not photos:
            raise EvaluationError(f"{method} lacks {len(missing)} of {len(photos)} photos, such as {missing[:1]}")
    if (output / "key.json").exists():
        raise EvaluationError(f"{output / 'key.json'}: there are pages already, and perhaps votes: give another folder")
    output.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    rng.shuffle(photos)
    key: Key = {}
    for number, name in enumerate(photos, 1):
        order = rng.sample(list(versions), len(versions))
        images = [Image.fromarray(read(versions[method][name], None)) for method in order]
        if len({image.size for image in images}) > 1:
            sizes = ", ".join(f"{m} {i.width}x{i.height}" for m, i in zip(order, images, strict=True))
            raise EvaluationError(f"{name}: versions differ in size ({sizes}), which would tell them apart")
        page = f"{number:03}"
        with atomic_path(output / f"{page}.png") as temporary:
            draw_page(page, images, side).save(temporary, compress_level=1)
        key[page] = {"photo": name, **dict(zip(string.ascii_uppercase, order, strict=False))}
    write_text(output / "key.json", json.dumps(key, indent=2) + "\n")
    print(f"{len(photos)} pages of {len(versions)} versions in {output}; key.json is not for the judges")


def _by_name(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in find_photos(folder)}


def draw_page(page: str, images: Sequence[Image.Image], side: int) -> Image.Image:
    """Return a page: images of equal size under letters, in the grid that fits a screen largest."""
    scale = side / max(images[0].size)
    width, height = (max(round(length * scale), 1) for length in images[0].size)
    across, down = width + GAP, height + LABEL + GAP
    columns = min(range(1, len(images) + 1), key=lambda n: max(n * across / SHAPE, math.ceil(len(images) / n) * down))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * across + GAP, rows * down + LABEL), GREY)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 6), page, font=ImageFont.load_default(24), fill="white")
    for index, (letter, image) in enumerate(zip(string.ascii_uppercase, images, strict=False)):
        left, top = GAP + index % columns * across, LABEL + index // columns * down
        draw.text((left, top), letter, font=ImageFont.load_default(32), fill="white")
        sheet.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, top + LABEL))
    return sheet


def score(votes: Sequence[Path], keys: Sequence[Path]) -> str:
    """Return tables of ranks and of preferences.

    Args:
        votes: a file for each judge.
        keys: key.json of the pages that each judge has seen.

    Raises:
        EvaluationError: votes or keys cannot be used.
    """
    rankings: list[tuple[str, list[str]]] = []
    for path, key_path in zip(votes, keys, strict=True):
        key = read_key(key_path)
        own = read_votes(path, key)
        rankings += [(key[page]["photo"], [key[page][letter] for letter in order]) for page, order in own.items()]
        if len(own) < len(key):
            print(f"{path}: {len(own)} of {len(key)} pages", file=sys.stderr)
    methods = sorted(rankings[0][1])
    if any(sorted(order) != methods for _, order in rankings):
        raise EvaluationError("the keys are of different methods")
    return tables(rankings, methods)


def read_key(path: Path) -> Key:
    """Return what `make_pages` wrote.

    Raises:
        EvaluationError: it is something else.
    """
    try:
        key: Key = json.loads(path.read_text(encoding="utf-8"))
        if key and all("photo" in letters for letters in key.values()):
            return key
    except (ValueError, AttributeError, TypeError):
        pass
    raise EvaluationError(f"{path}: is not a key of pages")


def read_votes(path: Path, key: Key) -> dict[str, str]:
    """Return the order of letters, best first, of every page that a file of votes has.

    Raises:
        EvaluationError: lines are not "PAGE,ORDER", name pages or letters that there are not, or leave out or repeat
            some. The message names them all.
    """
    found: dict[str, str] = {}
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if len(cells) != 2:
            problems.append(f"line {number}: {line.strip()!r} is not PAGE,ORDER such as 007,BDAC")
            continue
        if number == 1 and cells == ["page", "order"]:
            continue
        page, order = cells[0].zfill(3), cells[1].upper()
        if page not in key:
            problems.append(f"line {number}: there is no page {cells[0]}: pages are {min(key)} to {max(key)}")
            continue
        if page in found:
            problems.append(f"line {number}: page {page} is there twice")
        letters = [letter for letter in key[page] if letter != "photo"]
        for what, named in (
            ("unknown", [letter for letter in dict.fromkeys(order) if letter not in letters]),
            ("missing", [letter for letter in letters if letter not in order]),
            ("there twice", [letter for letter in letters if order.count(letter) > 1]),
        ):
            if named:
                problems.append(f"line {number}: page {page}: {', '.join(named)} {what} in {cells[1]}")
        found[page] = order
    if not found and not problems:
        problems.append("no votes")
    if problems:
        raise EvaluationError(f"{path}: " + "\n  ".join(problems))
    return found


def tables(rankings: Sequence[tuple[str, list[str]]], methods: Sequence[str]) -> str:
    """Return two Markdown tables of rankings, pairs of a photo and its methods from best to worst."""
    last = len(methods) - 1
    columns: dict[str, list[float]] = {}
    for name in methods:
        ranks = [order.index(name) for _, order in rankings]
        columns[f"{name} mean"] = [rank + 1 for rank in ranks]
        columns[f"{name} first"] = [rank == 0 for rank in ranks]
        columns[f"{name} last"] = [rank == last for rank in ranks]
        for other in methods:
            columns[f"{name} over {other}"] = [order.index(name) < order.index(other) for _, order in rankings]
    values = np.array(list(columns.values()), dtype=np.float64).T
    photos, places = np.unique([photo for photo, _ in rankings], return_inverse=True)
    sums = np.zeros((len(photos), values.shape[1]))
    np.add.at(sums, places, values)
    counts = np.bincount(places).astype(np.float64)
    mean, intervals = means(sums, counts, [""] * len(photos), of_strata=False)
    facts = dict(zip(columns, zip(mean.tolist(), intervals, strict=True), strict=True))

    def text(name: str, form: str, factor: float = 1) -> str:
        value, ends = facts[name]
        interval = "" if ends is None else f" ({ends[0] * factor:{form}} to {ends[1] * factor:{form}})"
        return f"{value * factor:{form}}{interval}"

    by_rank = sorted(methods, key=lambda name: facts[f"{name} mean"][0])
    total = len(rankings)
    standings = [
        [name, text(f"{name} mean", ".2f"), text(f"{name} first", ".0f", total), text(f"{name} last", ".0f", total)]
        for name in by_rank
    ]
    preferences = [
        [name, *("" if name == other else text(f"{name} over {other}", ".0f", 100) for other in by_rank)]
        for name in by_rank
    ]
    return "\n\n".join(
        [
            f"{total} rankings of {len(photos)} photos; 95 % intervals over photos",
            markdown(["method", "mean rank", "firsts", "lasts"], standings),
            markdown(["preferred, in %, to", *by_rank], preferences),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
