"""Ask what each choice around a network is worth, by the same weights: how it is shown photos, and what curves allow.

On real pairs, as `python evaluate.py sets` takes them: PSNR, SSIM and PSNR with the target's mean, means over sets, and
the differences from the choices as they are, with their 95 % intervals (bootstrap within sets); and how far good photos
are changed, the median and tenth percentile of the PSNR between before and after.

examples:
  python benchmarks/choices.py PAIRS GOOD
  python benchmarks/choices.py PAIRS GOOD --only shown_brighter working_size
"""

import argparse
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pairs import pairs_of, sets_of
from models import Corrector, build_generator, corrector, curves, grain
from utils.evaluation.intervals import means
from utils.evaluation.methods import Pixels, read
from utils.evaluation.metrics import psnr, quantise, ssim, with_power_to_mean_of
from utils.photos.reading import find_photos
from utils.weights import Weights, load_weights

CHOICES = {
    "shown_brighter": (0.0, 0.75, 2.25, 3.0),
    "working_size": (40, 48, 64, 72, 80),
    "least_size": (0,),
    "mirrored": (0,),
    "HELD_BACK": (0.0, 0.3),
    "LEFT_ALONE": (-1e6, 0.5),  # the first: no photo is
    "SHARED_FALL": (0.0, 0.15, 0.6, 1.0),
    "NOISE": (0.0, 1 / 255, 3 / 255),
    "COLOURED": (1e-6, 12 / 255, 48 / 255),  # the first as good as 0, by which it cannot divide
    "IN_COMMON": (0.0, 1.0),
    "LEVEL": (1.0, 2.0, 4.0),
    "WINDOW": (8, 3),
    "BRIGHTEST": (4.0, 16.0),
    "DARKEST": (3.0, 16.0),
    "RIDGE": (1e-5, 1e-3),
}
CONSTANTS = {
    **dict.fromkeys(("SHARED_FALL", "IN_COMMON", "LEVEL", "WINDOW", "BRIGHTEST", "DARKEST", "RIDGE"), curves),
    **dict.fromkeys(("NOISE", "COLOURED"), grain),
    **dict.fromkeys(("HELD_BACK", "LEFT_ALONE"), corrector),
}


def tensor(pixels: Pixels) -> Tensor:
    """Return pixels as `(1, 3, H, W)` in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


class Chosen(nn.Module):
    """A correction with one choice made otherwise."""

    def __init__(self, network: nn.Module, weights: Weights, name: str, value: float) -> None:
        super().__init__()
        self.corrector = Corrector(network, weights.working_size, weights.least_size)
        if name in ("working_size", "least_size"):
            setattr(self.corrector, name, int(value))
        if name == "mirrored":  # what the network makes of the small copy alone
            self.corrector.output = lambda given: network(given)[0].float()  # type: ignore[method-assign]
        self.name, self.value = name, value

    def forward(self, photo: Tensor) -> Tensor:
        """Return the corrected photo, in 8 bits."""
        if self.name in CONSTANTS:
            with mock.patch.object(CONSTANTS[self.name], self.name, self.value):
                return quantise(self.corrector(photo))
        brighter = self.value if self.name == "shown_brighter" else self.corrector.network.shown_brighter
        with mock.patch.object(self.corrector.network, "shown_brighter", brighter):
            return quantise(self.corrector(photo))


def score(result: Tensor, target: Tensor) -> tuple[float, float, float]:
    """Return PSNR, SSIM and matched PSNR of a correction."""
    matched = with_power_to_mean_of(result, target)
    return psnr(result, target).item(), ssim(result, target).item(), psnr(matched, target).item()


def main() -> None:
    """Print a row for each choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of sets of pairs")
    parser.add_argument("good", type=Path, help="folder of good photos")
    parser.add_argument("-w", "--weights", type=Path, default=Path("weights/msec.safetensors"))
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=[*CHOICES], metavar="NAME", help="these choices")
    arguments = parser.parse_args()
    weights = load_weights(arguments.weights)
    network = build_generator(weights.architecture).eval()
    network.load_state_dict(weights.state)
    folders = sets_of(arguments.root)
    pairs = [(folder.name, tensor(photo), tensor(target)) for folder in folders for photo, target in pairs_of(folder)]
    groups = [name for name, _, _ in pairs]
    good = [tensor(read(path, 512)) for path in find_photos(arguments.good)]
    columns = "choice", "PSNR", "SSIM", "matched", "differences", "", "", "good photos: median", "tenth"
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    first = None
    ways = [("as it is", 0.0), *((choice, value) for choice in arguments.only for value in CHOICES[choice])]
    for name, value in ways:
        correct = Chosen(network, weights, name, value)
        with torch.inference_mode():
            scores = np.array([score(correct(photo), target) for _, photo, target in pairs])
            changes = [psnr(correct(photo), photo).item() for photo in good]
        first = scores if first is None else first
        values, intervals = means(
            np.concatenate((scores, scores - first), axis=1), np.ones(len(pairs)), groups, of_strata=True
        )
        row = [f"{name} {value:.3g}" if name in CHOICES else name, "{:.2f} | {:.3f} | {:.2f}".format(*values[:3])]
        for digits, difference, interval in zip((2, 4, 2), values[3:], intervals[3:], strict=True):
            low, high = interval or (float("nan"), float("nan"))
            row.append(f"{difference:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})")
        row.append("{:.1f} | {:.1f}".format(*np.percentile(changes, (50, 10))))
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
