"""Ask how a network is best shown the small copy: how bright, and at which size, by the same weights.

On real pairs, as `python evaluate.py sets` takes them: PSNR, SSIM and PSNR with the target's mean, means over sets, and
the difference in PSNR from the way that the weights file asks for, with its 95 % interval (bootstrap within sets); and
how far good photos are changed, the median and tenth percentile of the PSNR between before and after.

example:
  python benchmarks/shown.py PAIRS GOOD
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pairs import pairs_of, sets_of
from models import Corrector, build_generator
from utils.evaluation.intervals import means
from utils.evaluation.methods import Pixels, read
from utils.evaluation.metrics import psnr, quantise, ssim, with_power_to_mean_of
from utils.photos.reading import find_photos
from utils.weights import load_weights

STOPS = (0.0, 0.75, 1.5, 2.25, 3.0)
SIZES = (48, 56, 72, 85, 96, 112, 128)


def tensor(pixels: Pixels) -> Tensor:
    """Return pixels as `(1, 3, H, W)` in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def score(corrector: nn.Module, photo: Tensor, target: Tensor) -> tuple[float, float, float]:
    """Return PSNR, SSIM and matched PSNR of a photo's correction."""
    result = quantise(corrector(photo))
    matched = with_power_to_mean_of(result, target)
    return psnr(result, target).item(), ssim(result, target).item(), psnr(matched, target).item()


def main() -> None:
    """Print a row for each brightness, and for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of sets of pairs")
    parser.add_argument("good", type=Path, help="folder of good photos")
    parser.add_argument("-w", "--weights", type=Path, default=Path("weights/msec.safetensors"))
    arguments = parser.parse_args()
    weights = load_weights(arguments.weights)
    network = build_generator(weights.architecture).eval()
    network.load_state_dict(weights.state)
    asked = network.shown_brighter, weights.working_size
    ways = [asked, *((stops, asked[1]) for stops in STOPS), *((asked[0], size) for size in SIZES)]
    folders = sets_of(arguments.root)
    pairs = [(folder.name, tensor(photo), tensor(target)) for folder in folders for photo, target in pairs_of(folder)]
    groups = [name for name, _, _ in pairs]
    good = [tensor(read(path, 512)) for path in find_photos(arguments.good)]
    columns = "stops brighter", "size", "PSNR", "SSIM", "matched", "difference in PSNR", "good photos: median", "tenth"
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    first = None
    for network.shown_brighter, size in dict.fromkeys(ways):
        corrector = Corrector(network, size)
        with torch.inference_mode():
            scores = np.array([score(corrector, photo, target) for _, photo, target in pairs])
            changes = [psnr(quantise(corrector(photo)), photo).item() for photo in good]
        first = scores if first is None else first
        values = np.concatenate((scores, scores[:, :1] - first[:, :1]), axis=1)
        (*mean, difference), (*_, interval) = means(values, np.ones(len(pairs)), groups, of_strata=True)
        low, high = interval or (float("nan"), float("nan"))
        row = [f"{network.shown_brighter}", f"{size}", "{:.2f} | {:.3f} | {:.2f}".format(*mean)]
        row += [
            f"{difference:+.2f} ({low:+.2f} to {high:+.2f})",
            "{:.1f} | {:.1f}".format(*np.percentile(changes, (50, 10))),
        ]
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
