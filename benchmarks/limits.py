"""Ask what the error of a correction is made of: what a change of the whole photo, with the target in sight, would win.

On real pairs, as `python evaluate.py sets` takes them: PSNR of the photo, alone and after the best gamma; of the photo
under the local curves fitted to the target itself, what a network that knew the answer would reach, alone and after the
best gamma; of the correction, and of it after the best gamma, after the best gain and offset for all channels and for
each, and after the best polynomial of degree five for each channel. What a gamma wins is error in how bright the photo
should be. Then how far the brightness of photos, targets and corrections goes together.

example:
  python benchmarks/limits.py PAIRS
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pairs import pairs_of, sets_of
from models import Corrector, curves, grain
from utils.evaluation.metrics import psnr, quantise
from utils.photos.predictor import Predictor

Values = npt.NDArray[np.float64]


def tensor(values: Values) -> torch.Tensor:
    """Return a photo `(H, W, 3)` as `(1, 3, H, W)`."""
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def decibels(result: Values, target: Values) -> float:
    """Return the PSNR of two photos in [0, 1], the first rounded to 8 bits."""
    images, targets = tensor(result), tensor(target)
    return psnr(quantise(images), targets).item()


def best_gamma(result: Values, target: Values) -> Values:
    """Return the result raised to the power, from 0.2 to 5, that brings it nearest to the target."""
    powers = np.exp(np.linspace(-np.log(5), np.log(5), 65))
    candidates = (result.clip(1e-6, 1) ** power for power in powers)
    return max(candidates, key=lambda candidate: decibels(candidate, target))


def under_curves_of_target(photo: Values, target: Values, corrector: Corrector) -> Values:
    """Return the photo under the curves that lead from its small copy to the target's."""
    maps = curves.fit(corrector.small_copy(tensor(photo)), corrector.small_copy(tensor(target)))
    return curves.apply(grain.reduce(tensor(photo), maps), maps)[0].permute(1, 2, 0).double().numpy()


def best_polynomial(result: Values, target: Values, degree: int) -> Values:
    """Return the polynomial of all channels' values that fits the target best."""
    return np.asarray(np.polyval(np.polyfit(result.ravel(), target.ravel(), degree), result))


def each_channel(result: Values, target: Values, degree: int) -> Values:
    """Return the polynomials of each channel's values that fit the target best."""
    return np.stack([best_polynomial(result[..., c], target[..., c], degree) for c in range(3)], axis=-1)


ORACLES: dict[str, Callable[[Values, Values], Values]] = {
    "corrected": lambda result, target: result,
    "best gamma": best_gamma,
    "best gain and offset": lambda result, target: best_polynomial(result, target, 1),
    "the same, each channel": lambda result, target: each_channel(result, target, 1),
    "best curve of each channel": lambda result, target: each_channel(result, target, 5),
}


def main() -> None:
    """Print a row per set and the spread of brightness."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of sets")
    parser.add_argument("-w", "--weights", type=Path, default=Path("weights/msec.safetensors"))
    arguments = parser.parse_args()
    predictor = Predictor.from_weights(arguments.weights)
    names = ["set", "as it is", "its best gamma", "curves of the target", "best gamma", *ORACLES]
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    table, means = [], []
    for folder in sets_of(arguments.root):
        rows = []
        for pixels, wanted in pairs_of(folder):
            photo, result, target = (array / 255.0 for array in (pixels, predictor.predict(pixels), wanted))
            alone = photo, under_curves_of_target(photo, target, predictor.corrector)
            firsts = [decibels(values, target) for one in alone for values in (one, best_gamma(one, target))]
            rows.append([*firsts, *(decibels(f(result, target), target) for f in ORACLES.values())])
            means.append([array.mean() for array in (photo, result, target)])
        table.append(np.mean(rows, axis=0))
        print(f"| {folder.name} | " + " | ".join(f"{value:.2f}" for value in table[-1]) + " |", flush=True)
    print("| mean over sets | " + " | ".join(f"{value:.2f}" for value in np.mean(table, axis=0)) + " |")
    before, after, wished = np.array(means).T
    print(
        f"mean brightness of the targets {wished.mean():.3f}, standard deviation {wished.std():.3f}; root mean square "
        f"difference from it: as it is {rms(before - wished):.3f}, corrected {rms(after - wished):.3f}; slope on the "
        f"photo's: target {np.polyfit(before, wished, 1)[0]:.3f}, corrected {np.polyfit(before, after, 1)[0]:.3f}"
    )


def rms(values: Values) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))


if __name__ == "__main__":
    main()
