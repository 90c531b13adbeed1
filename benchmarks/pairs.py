"""Score weights on folders of real pairs, SET/input and SET/gt with equal names, by one stated protocol.

Input and target are reduced to a longest side of 512 px (Lanczos), the input is corrected as predict.py does it, and
PSNR and SSIM are means over RGB images of 8 bits; the last row is the mean over the sets. `--untouched` asks instead
how much of well-exposed photos survives: the PSNR between them, reduced likewise, and their corrections.

examples:
  python benchmarks/pairs.py PAIRS -w weights/msec.safetensors --size 128 --size 256
  python benchmarks/pairs.py --untouched PHOTOS
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from models import build_generator
from utils.evaluation.methods import Method, Pixels, read
from utils.evaluation.metrics import psnr, ssim
from utils.photos.predictor import Predictor
from utils.photos.reading import find_photos
from utils.weights import load_weights


def sets_of(root: Path) -> list[Path]:
    """Return the folders of sets of pairs in a folder."""
    return sorted(path for path in root.iterdir() if (path / "input").is_dir())


def pairs_of(folder: Path, longest: int | None = 512) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield inputs and targets of one set."""
    for path in sorted((folder / "input").iterdir()):
        yield read(path, longest), read(folder / "gt" / path.name, longest)


def score(method: Method, pairs: Iterable[tuple[Pixels, Pixels]]) -> tuple[float, float]:
    """Return mean PSNR and SSIM of a method over pairs of input and target."""
    scores = []
    for photo, target in pairs:
        result = method(photo)
        if result.shape != target.shape:
            raise SystemExit(f"ERROR sizes of output and target differ: {result.shape}, {target.shape}")
        first, second = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 for pixels in (result, target))
        scores.append((psnr(first, second).item(), ssim(first, second).item()))
    return float(np.mean([s[0] for s in scores])), float(np.mean([s[1] for s in scores]))


def untouched(method: Method, folder: Path) -> list[float]:
    """Return the PSNR between each photo of a folder and what a method makes of it."""
    photos = (read(path, 512) for path in find_photos(folder))
    return [score(method, [(photo, photo)])[0] for photo in photos]


def main() -> None:
    """Print a table: a row per set, a column per working size, beside the photo as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", help="folder of sets")
    parser.add_argument("--untouched", type=Path, metavar="PHOTOS", help="folder of well-exposed photos")
    parser.add_argument("-w", "--weights", type=Path, default=Path("weights/msec.safetensors"))
    parser.add_argument("--size", type=int, action="append", help="working size; repeatable (default: the weights')")
    arguments = parser.parse_args()
    if (arguments.root is None) == (arguments.untouched is None):
        parser.error("give a folder of sets, or --untouched PHOTOS")
    weights = load_weights(arguments.weights)
    generator = build_generator(weights.architecture)
    generator.load_state_dict(weights.state)
    sizes = arguments.size or [weights.working_size]
    methods: dict[str, Method] = {f"{size} px": Predictor(generator, size).predict for size in sizes}
    if arguments.untouched:
        for name, method in methods.items():
            values = untouched(method, arguments.untouched)
            lowest, median = np.quantile(values, [0.1, 0.5])
            print(f"{name}: median {median:.2f} dB, mean {np.mean(values):.2f}, a tenth below {lowest:.2f}")
        return
    methods = {"as it is": lambda pixels: pixels, **methods}
    print("| set | " + " | ".join(methods) + " |\n" + "|---" * (1 + len(methods)) + "|")
    table = []
    for folder in sets_of(arguments.root):
        table.append([score(method, pairs_of(folder)) for method in methods.values()])
        print(f"| {folder.name} | " + " | ".join(f"{p:.2f} / {s:.3f}" for p, s in table[-1]) + " |", flush=True)
    means = np.mean(table, axis=0)
    print("| mean over sets | " + " | ".join(f"{p:.2f} / {s:.3f}" for p, s in means) + " |")


if __name__ == "__main__":
    main()
