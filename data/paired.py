"""Real pairs of a mis-exposed photo and its target, in the layouts in which the field's data sets are published.

Pairs are matched by name, never by position. Whatever cannot be paired is named as a problem.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from utils.files import fingerprint
from utils.photos.reading import PhotoError, find_photos, open_photo, upright_size

HOLD_OUT = 20
"""One in so many targets of a training set is kept for validation, where the set has none of its own."""
SPLITS = ("train", "valid", "test")
EXPERTS = ("a", "b", "c", "d", "e")
_MSEC_INPUT = re.compile(r"(?P<scene>.+)_(?P<exposure>0|[NP]1(?:\.5)?)")
_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")


class Pair(NamedTuple):
    """A mis-exposed photo and what it should look like."""

    input: Path
    target: Path
    group: str
    """What the set's tables tell apart: "under", "over" or "proper", or the set; "" where they tell nothing apart."""
    target_group: str = ""
    """Whose target it is: "expert_c" of MSEC's five, else ""."""
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels, of both."""


class Problem(NamedTuple):
    """A file that is in no pair, or a pair that cannot be used."""

    path: Path
    reason: str


class Pairs(NamedTuple):
    """What a folder holds."""

    pairs: list[Pair]
    problems: list[Problem]


class LayoutError(ValueError):
    """A folder that is not laid out as the data set that was named. The message says what was looked for."""


def find_pairs(dataset: str, root: Path, split: str) -> Pairs:
    """Return the pairs of a data set, sorted by the path of the input, and its problems.

    Both files of a pair are opened, not decoded: those that cannot be, or are of unequal size, are problems.

    Args:
        dataset: one of `DATASETS`.
        root: its folder.
        split: "train", "valid" or "test". Where a set has no photos for validation, the last targets of its training
            set, one in `HOLD_OUT`, are kept for it: the best epoch is not to be chosen on the test set. A plain folder
            without sub-folders of these names is its own test set.

    Raises:
        LayoutError: `dataset` is unknown, or `root` is not laid out like it.
    """
    if dataset not in DATASETS:
        raise LayoutError(f"data set {dataset} is unknown: there are {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise LayoutError(f"split {split} is unknown: there are {', '.join(SPLITS)}")
    if not root.is_dir():
        raise LayoutError(f"{root}: there is no such folder")
    has_valid = dataset == "msec" or (dataset == "folder" and (root / "valid").is_dir())
    pairs, problems = DATASETS[dataset](root, split if has_valid or split == "test" else "train")
    if not has_valid and split != "test":
        kept = _held_out(pairs)
        pairs = [pair for pair in pairs if (pair.target in kept) == (split == "valid")]
    pairs, unusable = _usable(pairs)
    problems = sorted({*problems, *unusable})
    return Pairs(sorted(pairs, key=lambda pair: (str(pair.input), pair.target_group)), problems)


def photos_alone(root: Path) -> Pairs:
    """Return every photo below a folder as its own target, for what can be asked of a correction without one.

    Raises:
        LayoutError: there is no such folder.
    """
    if not root.is_dir():
        raise LayoutError(f"{root}: there is no such folder")
    return _usable([Pair(path, path, "") for path in sorted(_photos(root))])


def _held_out(pairs: list[Pair]) -> set[Path]:
    """Return the targets to validate on: the last ones, as neighbours show the same scene, and none that is doubled."""
    targets = sorted({pair.target for pair in pairs})
    count = max(len(targets) // HOLD_OUT, 1)
    trained = {fingerprint(path) for path in targets[:-count]}
    return {path for path in targets[-count:] if fingerprint(path) not in trained}


def _photos(folder: Path) -> list[Path]:
    """Return the photos below a folder, without what file managers and archives leave there."""
    return [
        path
        for path in find_photos(folder)
        if not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
    ]


def _name(path: Path, folder: Path) -> str:
    """Return a photo's path below its folder, without the suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _msec(root: Path, split: str) -> Pairs:
    """Afifi et al. 2021: {training,validation,testing}/INPUT_IMAGES and GT_IMAGES or expert_{a..e}_testing_set."""
    folder = _folder(root, {"train": "training", "valid": "validation", "test": "testing"}[split])
    input_folder = _folder(folder, "INPUT_IMAGES")
    problems: list[Problem] = []
    inputs: list[_Input] = []
    for path in _photos(input_folder):
        match = _MSEC_INPUT.fullmatch(path.name.removesuffix(path.suffix))
        if match is None:
            problems.append(Problem(path, "its name ends in none of _0, _N1, _N1.5, _P1, _P1.5"))
            continue
        scene = _name(path.with_name(match["scene"] + path.suffix), input_folder)
        group = {"0": "proper", "N": "under", "P": "over"}[match["exposure"][0]]
        inputs.append(_Input(path, scene, group, f"{scene}_{match['exposure']}"))
    names = {f"expert_{e}": f"expert_{e}_testing_set" for e in EXPERTS}
    looked_up = {name: _find(folder, folder_name) for name, folder_name in names.items()}
    targets = {name: path for name, path in looked_up.items() if path is not None}
    for name in names.keys() - targets.keys() if targets else ():
        problems.append(Problem(folder / names[name], "missing: the set has five experts"))
    if not targets:
        targets = {"expert_c": _folder(folder, "GT_IMAGES")}
    pairs: list[Pair] = []
    for name, target_folder in targets.items():
        found, missing = _match(inputs, [(path, _name(path, target_folder)) for path in _photos(target_folder)])
        pairs += [pair._replace(target_group=name) for pair in found]
        where = f" in {target_folder.name}"
        problems += [Problem(p, reason + where if reason == "no target" else reason) for p, reason in missing]
    return Pairs(pairs, problems)


def _sice(root: Path, split: str) -> Pairs:
    """Cai et al. 2018: numbered folders of a bracketed scene, darkest first, and Label with a target for each.

    The second darkest frame is "under" and the second brightest "over". `Dataset_Part1` is for training,
    `Dataset_Part2` for test; splits and choices of frames differ between papers.
    """
    part = _find(root, "Dataset_Part1" if split == "train" else "Dataset_Part2") or root
    label = _folder(part, "Label")
    pairs: list[Pair] = []
    problems: list[Problem] = []
    folders = [path for path in part.iterdir() if path.is_dir() and path.name.isdigit()]
    scenes = _by_key([(path, str(int(path.name))) for path in folders], problems)
    photos = [(path, path.stem) for path in _photos(label)]
    targets = _by_key([(p, str(int(stem)) if stem.isdigit() else stem) for p, stem in photos], problems)
    for key, scene in scenes.items():
        numbered = [(path, _LAST_NUMBER.search(path.stem)) for path in _photos(scene)]
        numberless = [path for path, match in numbered if match is None]
        problems += [Problem(path, "has no number: its place among the frames is unknown") for path in numberless]
        frames = _by_key([(path, match[1].lstrip("0")) for path, match in numbered if match is not None], problems)
        ordered = [frames[number] for number in sorted(frames, key=lambda number: int(number or 0))]
        if key not in targets:
            problems.append(Problem(scene, f"no target {label.name}/{scene.name}"))
        elif len(ordered) < 3:
            problems.append(Problem(scene, f"has {len(ordered)} frames: at least 3 are needed"))
        elif not numberless and len(ordered) == len(numbered):
            pairs += [Pair(ordered[1], targets[key], "under"), Pair(ordered[-2], targets[key], "over")]
    problems += [Problem(path, "no folder of frames") for key, path in targets.items() if key not in scenes]
    return Pairs(pairs, problems)


def _lol_v1(root: Path, split: str) -> Pairs:
    """Wei et al. 2018: our485 and eval15, each with low and high; targets have their input's name."""
    return _two_folders(_folder(root, "our485" if split == "train" else "eval15"), "low", "high", group="under")


def _lol_v2(name: str) -> Callable[[Path, str], Pairs]:
    def pairs(root: Path, split: str) -> Pairs:
        """Yang et al. 2021: NAME/{Train,Test}/{Low,Normal}; low00690.png belongs to normal00690.png."""
        folder = _folder(_find(root, name) or root, "Train" if split == "train" else "Test")
        return _two_folders(folder, "Low", "Normal", group="under", prefix=r"(^|/)(low|normal)(?=[^/]*$)")

    return pairs


def _plain_folder(root: Path, split: str) -> Pairs:
    """Return the pairs of input and gt in `root`, or in its sub-folder of the split's name; suffixes may differ."""
    return _two_folders(root / split if (root / split).is_dir() else root, "input", "gt", group="")


def _sets(root: Path, split: str) -> Pairs:
    """Return the pairs of SET/input and SET/gt of every such folder, each set a group, whatever the split."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and (_find(path, "input") or _find(path, "gt")))
    if not folders:
        raise LayoutError(f"{root}: has no folders of pairs, SET/input and SET/gt")
    found = [_two_folders(folder, "input", "gt", group=folder.name) for folder in folders]
    return Pairs([pair for part in found for pair in part.pairs], [one for part in found for one in part.problems])


DATASETS: dict[str, Callable[[Path, str], Pairs]] = {
    "msec": _msec,
    "sice": _sice,
    "lol_v1": _lol_v1,
    "lol_v2_real": _lol_v2("Real_captured"),
    "lol_v2_synthetic": _lol_v2("Synthetic"),
    "folder": _plain_folder,
    "sets": _sets,
}
"""The readers, by the names that the command line and conf.json give them."""


class _Input(NamedTuple):
    path: Path
    key: str
    """What its target is called."""
    group: str
    identity: str
    """What two files of the same photo have in common."""


def _find(root: Path, name: str) -> Path | None:
    """Return a sub-folder, whatever the case of its name; None if there is none."""
    for path in [root / name, *(p for p in root.iterdir() if p.name.lower() == name.lower())]:
        if path.is_dir():
            return path
    return None


def _folder(root: Path, name: str) -> Path:
    """Return a sub-folder, whatever the case of its name."""
    found = _find(root, name)
    if found is None:
        raise LayoutError(f"{root}: has no folder {name}")
    return found


def _two_folders(folder: Path, inputs: str, targets: str, *, group: str, prefix: str = "") -> Pairs:
    """Pair two folders, and their sub-folders, by name; `prefix` matches what the two names do not share."""
    keys = []
    for part in (_folder(folder, inputs), _folder(folder, targets)):
        names = [(path, _name(path, part)) for path in _photos(part)]
        keys.append([(path, re.sub(prefix, r"\1", name, flags=re.I) if prefix else name) for path, name in names])
    return _match([_Input(path, key, group, key) for path, key in keys[0]], keys[1])


def _match(inputs: Iterable[_Input], targets: Iterable[tuple[Path, str]]) -> Pairs:
    """Pair inputs with the targets of their keys. Doubled files are problems, and none of them is in a pair."""
    problems: list[Problem] = []
    by_key = _by_key(targets, problems)
    inputs = list(inputs)
    unique = set(_by_key([(item.path, item.identity) for item in inputs], problems).values())
    pairs = []
    for item in inputs:
        if item.path in unique and item.key in by_key:
            pairs.append(Pair(item.path, by_key[item.key], item.group))
        elif item.path in unique:
            problems.append(Problem(item.path, "no target"))
    wanted = {item.key for item in inputs}
    problems += [Problem(path, "no input") for key, path in by_key.items() if key not in wanted]
    return Pairs(pairs, problems)


def _by_key(paths: Iterable[tuple[Path, str]], problems: list[Problem]) -> dict[str, Path]:
    """Return paths by their keys, without those that share one, which are problems."""
    found: dict[str, list[Path]] = {}
    for path, key in paths:
        found.setdefault(key, []).append(path)
    for doubled in (group for group in found.values() if len(group) > 1):
        for path in doubled:
            other = next(p for p in doubled if p != path)
            problems.append(Problem(path, f"is there twice: {other.name} has the same name but for suffix or prefix"))
    return {key: group[0] for key, group in found.items() if len(group) == 1}


def _usable(pairs: list[Pair]) -> Pairs:
    """Return the pairs whose files can be opened and are of equal size, and the others as problems."""
    sizes: dict[Path, tuple[int, int] | str] = {}
    for path in sorted({path for pair in pairs for path in (pair.input, pair.target)}):
        try:
            with open_photo(path) as image:
                sizes[path] = upright_size(image)
        except PhotoError as error:
            sizes[path] = str(error)
    problems = [Problem(path, size) for path, size in sizes.items() if isinstance(size, str)]
    usable = []
    for pair in pairs:
        first, second = sizes[pair.input], sizes[pair.target]
        if isinstance(first, str) or isinstance(second, str):
            continue
        if first == second:
            usable.append(pair._replace(size=first))
        else:
            own, other = ("x".join(map(str, size)) for size in (first, second))
            problems.append(Problem(pair.input, f"is {own} px, its target {pair.target.name} {other}"))
    return Pairs(usable, problems)
