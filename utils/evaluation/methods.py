"""What is compared: a method makes a corrected photo of a photo, or looks it up in a folder of another tool's."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ..files import sha256, state_of, weights_file
from ..photos.predictor import Predictor
from ..photos.reading import SUFFIXES, PhotoError, read_photo
from ..weights import load_weights
from .baselines import BASELINES
from .errors import EvaluationError, UsageError

Pixels = npt.NDArray[np.uint8]
Method = Callable[[Pixels], Pixels]


class PhotoPair(Protocol):
    """A photo and what it should look like, as `data.paired.Pair` has them."""

    @property
    def input(self) -> Path: ...  # noqa: D102

    @property
    def target(self) -> Path: ...  # noqa: D102

    @property
    def group(self) -> str: ...  # noqa: D102

    @property
    def target_group(self) -> str: ...  # noqa: D102

    @property
    def size(self) -> tuple[int, int]: ...  # noqa: D102


@dataclass(frozen=True)
class Contestant:
    """A method in the table."""

    name: str
    digest: str
    """Of its weights, "" without."""
    correct: Callable[[PhotoPair, Pixels], Pixels]
    trained_on: tuple[str, ...] = ()
    """Data sets of pairs, as `train_pairs` of conf.json has them."""


def baseline(name: str) -> Contestant:
    """Return one of `BASELINES`."""
    return Contestant(name, "", _without_pair(BASELINES[name]))


def network(path: Path, size: int | None) -> Contestant:
    """Return the method of a weights file, or of a released one by its name; a run's best file is named by its run.

    Raises:
        UsageError: the network cannot be run as asked.
        WeightsError: the weights cannot be used.
    """
    path = weights_file(path)
    try:
        predictor = Predictor.from_weights(path, size=size)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    name = path.resolve().parent.name if path.stem == "best" else path.stem
    trained_on = load_weights(path).training.get("config", {}).get("train_pairs", ())
    return Contestant(name, sha256(path), _without_pair(predictor.predict), tuple(trained_on))


def _without_pair(method: Method) -> Callable[[PhotoPair, Pixels], Pixels]:
    return lambda pair, photo: method(photo)


def predictions(folder: Path, pairs: Sequence[PhotoPair], root: Path, longest: int | None) -> Contestant:
    """Return the method that looks its results up in a folder, by as much of the input's path as tells inputs apart.

    Where each input has one target of its own, the results may as well be named by the targets.

    Args:
        folder: another tool's pictures.
        pairs: what will be asked for.
        root: the data set's folder.
        longest: side to which pictures of the target's full size are reduced.

    Raises:
        UsageError: there is no such folder.
        EvaluationError: an input has no picture, or several.
    """
    if not folder.is_dir():
        raise UsageError(f"--predictions {folder}: there is no such folder")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            parts = path.relative_to(folder).with_suffix("").parts
            for length in range(1, len(parts) + 1):
                found.setdefault("/".join(parts[-length:]), []).append(path)
    inputs = sorted({pair.input for pair in pairs})
    chosen = _matches({path: path for path in inputs}, root, found)
    if len(chosen) < len(inputs) == len(pairs) == len({pair.target for pair in pairs}):  # one target each
        chosen = max(chosen, _matches({pair.input: pair.target for pair in pairs}, root, found), key=len)
    missing = [path for path in inputs if path not in chosen]
    if missing:
        raise EvaluationError(
            f"--predictions {folder}: nothing, or more than one picture, for {len(missing)} of {len(inputs)} inputs, "
            f"such as {missing[0]}: give each the input's name, in the input's folder where names repeat"
        )

    def look_up(pair: PhotoPair, photo: Pixels) -> Pixels:
        result = read(chosen[pair.input], None)
        if result.shape[:2] == pair.size[::-1]:  # of the target's full size: reduced as the target is
            return reduced(Image.fromarray(result), longest)
        return result

    return Contestant(folder.resolve().name, state_of(chosen.values()), look_up)


def _matches(names: dict[Path, Path], root: Path, found: dict[str, list[Path]]) -> dict[Path, Path]:
    """Return the one picture of each input whose path ends as the path below `root` that names the input, if any."""
    tails = {path: name.relative_to(root).with_suffix("").parts for path, name in names.items()}
    uses = Counter("/".join(parts[-length:]) for parts in tails.values() for length in range(1, len(parts) + 1))
    chosen: dict[Path, Path] = {}
    for path, parts in tails.items():
        for length in range(len(parts), 0, -1):
            key = "/".join(parts[-length:])
            if uses[key] == 1 and len(found.get(key, ())) == 1:
                chosen[path] = found[key][0]
                break
    return chosen


def read(path: Path, longest: int | None) -> Pixels:
    """Return a photo, `(H, W, 3)` uint8 sRGB, upright, reduced to a longest side.

    Raises:
        EvaluationError: it cannot be read.
    """
    try:
        return reduced(read_photo(path), longest)
    except PhotoError as error:
        raise EvaluationError(f"{path}: {error}") from None


def reduced(image: Image.Image, longest: int | None) -> Pixels:
    """Return an image reduced to a longest side, if one is given, with Lanczos's filter."""
    if longest is not None:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=None)
    return np.array(image)


def undecodable(paths: Iterable[Path], workers: int | None) -> dict[Path, str]:
    """Return the photos that cannot be decoded to the end, and why; by so many threads, or one for each core."""

    def reason(path: Path) -> str | None:
        try:
            read_photo(path)
        except PhotoError as error:
            return str(error)
        return None

    ordered = sorted(paths)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        reasons = list(tqdm(pool.map(reason, ordered), total=len(ordered), unit="photo", disable=None))
    return {path: found for path, found in zip(ordered, reasons, strict=True) if found is not None}
