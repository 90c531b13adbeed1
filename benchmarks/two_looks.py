"""Ask what it brings that the network looks twice: other looks at the same photos, by the same weights.

On real pairs, as `python evaluate.py sets` takes them, PSNR, SSIM and PSNR with the target's mean, means over sets; and
how far good photos are changed, the median and tenth percentile of the PSNR between before and after.

example:
  python benchmarks/two_looks.py PAIRS GOOD
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pairs import pairs_of, sets_of
from models import build_generator, curves
from models.corrector import ASIDE, agreed, shrink
from utils.evaluation.methods import Pixels, read
from utils.evaluation.metrics import psnr, quantise, ssim, with_power_to_mean_of
from utils.photos.reading import find_photos
from utils.weights import load_weights

Look = tuple[float, bool]
"""By what the odds are multiplied, and whether the copy is mirrored."""
WAYS: dict[str, list[Look]] = {
    "as it is": [(1, False)],
    "darker": [(1 / ASIDE, False)],
    "brighter, mirrored": [(ASIDE, True)],
    "as it is; mirrored": [(1, False), (1, True)],
    "darker; brighter": [(1 / ASIDE, False), (ASIDE, False)],
    "**darker; brighter, mirrored**": [(1 / ASIDE, False), (ASIDE, True)],
    "a stop each way, mirrored": [(1 / 2, False), (2, True)],
    "two stops each way, mirrored": [(1 / 4, False), (4, True)],
    "the four": [(gain, mirrored) for gain in (1 / ASIDE, ASIDE) for mirrored in (False, True)],
}


class Looks(nn.Module):
    """The correction from some looks: `models.corrector.Corrector` with others than its two."""

    def __init__(self, network: nn.Module, size: int, looks: Sequence[Look]) -> None:
        super().__init__()
        self.network, self.size, self.looks = network, size, looks

    def forward(self, photo: Tensor) -> Tensor:
        """Return corrected photos."""
        small = shrink(photo, self.size)
        shown = [mirror(curves.multiply_odds(small, gain), is_mirrored) for gain, is_mirrored in self.looks]
        guesses = self.network(torch.cat(shown))[0].float().clamp(0, 1).chunk(len(shown))
        upright = [mirror(guess, is_mirrored) for guess, (_, is_mirrored) in zip(guesses, self.looks, strict=True)]
        while len(upright) > 1:  # two by two: as many looks as a power of two
            upright = [agreed(torch.cat((a, b.flip(-1)))) for a, b in zip(upright[::2], upright[1::2], strict=True)]
        return curves.apply(photo, curves.fit(small, upright[0]))


def mirror(photo: Tensor, is_mirrored: bool) -> Tensor:
    """Return a photo, mirrored or not."""
    return photo.flip(-1) if is_mirrored else photo


def tensor(pixels: Pixels) -> Tensor:
    """Return pixels as `(1, 3, H, W)` in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def main() -> None:
    """Print a row for each way to look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of sets of pairs")
    parser.add_argument("good", type=Path, help="folder of good photos")
    parser.add_argument("-w", "--weights", type=Path, default=Path("weights/msec.safetensors"))
    arguments = parser.parse_args()
    weights = load_weights(arguments.weights)
    network = build_generator(weights.architecture).eval()
    network.load_state_dict(weights.state)
    sets = [[(tensor(a), tensor(b)) for a, b in pairs_of(folder)] for folder in sets_of(arguments.root)]
    good = [tensor(read(path, 512)) for path in find_photos(arguments.good)]
    print("| looks | PSNR | SSIM | matched | good photos: median | tenth |\n|---|---|---|---|---|---|")
    for name, looks in WAYS.items():
        corrector = Looks(network, weights.working_size, looks)
        with torch.inference_mode():
            scores = [np.mean([score(corrector, *pair) for pair in pairs], axis=0) for pairs in sets]
            changes = [psnr(quantise(corrector(photo)), photo).item() for photo in good]
        means = "{:.2f} | {:.3f} | {:.2f}".format(*np.mean(scores, axis=0))
        print(f"| {name} | {means} | " + "{:.1f} | {:.1f} |".format(*np.percentile(changes, (50, 10))), flush=True)


def score(corrector: nn.Module, photo: Tensor, target: Tensor) -> tuple[float, float, float]:
    """Return PSNR, SSIM and matched PSNR of a photo's correction."""
    result = quantise(corrector(photo))
    matched = with_power_to_mean_of(result, target)
    return psnr(result, target).item(), ssim(result, target).item(), psnr(matched, target).item()


if __name__ == "__main__":
    main()
