"""Real pairs for the other benchmarks, by evaluate.py's protocol: reduced to a longest side of 512 px (Lanczos).

`python evaluate.py sets PAIRS` is the table; here are its parts for methods that have no weights file.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.paired import find_pairs
from utils.evaluation.methods import Method, Pixels, read
from utils.evaluation.metrics import psnr, ssim


def sets_of(root: Path) -> list[Path]:
    """Return the folders of sets of pairs in a folder."""
    return sorted(path for path in root.iterdir() if (path / "input").is_dir())


def pairs_of(folder: Path, longest: int | None = 512) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield inputs and targets of one set."""
    for pair in find_pairs("folder", folder, "test").pairs:
        yield read(pair.input, longest), read(pair.target, longest)


def score(method: Method, pairs: Iterable[tuple[Pixels, Pixels]]) -> tuple[float, float]:
    """Return mean PSNR and SSIM of a method over pairs of input and target."""
    scores = []
    for photo, target in pairs:
        first, second = (torch.from_numpy(x).permute(2, 0, 1)[None] / 255 for x in (method(photo), target))
        scores.append((psnr(first, second).item(), ssim(first, second).item()))
    return float(np.mean([s[0] for s in scores])), float(np.mean([s[1] for s in scores]))
