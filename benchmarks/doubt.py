"""Ask what good photos and mis-exposed ones cost each other: how well can they be told apart, and what does less do?

First, of dark and of bright photos, whether the statistics of a photo (mean luma, five quantiles, white and black) tell
the inputs of real pairs, whose target's mean differs by more than --least, from good photos: the area under the curve
of logistic regressions that have not seen the photo they judge. 0.5 is guessing and 1 certainty. Then, of weights at
several strengths, and of a careful correction, PSNR on the pairs (mean over sets) beside how far good photos are
changed (median and tenth percentile of PSNR between before and after): the price of correcting less.

example:
  python benchmarks/doubt.py PAIRS GOOD
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pairs import pairs_of, score, sets_of
from utils.evaluation.methods import Method, Pixels, read
from utils.photos.predictor import Predictor
from utils.photos.reading import find_photos

Values = npt.NDArray[np.float64]
LUMA = np.array([0.299, 0.587, 0.114])
DARK, BRIGHT = 0.4, 0.5
"""Mean luma below which a photo counts as dark, and above which as bright."""


def statistics(photo: Pixels) -> Values:
    """Return mean luma, its quantiles .01, .1, .5, .9, .99, and the shares of white and of black: `(8,)`."""
    luma = photo @ LUMA / 255
    quantiles = np.quantile(luma, (0.01, 0.1, 0.5, 0.9, 0.99))
    return np.array([luma.mean(), *quantiles, (photo.min(axis=2) >= 250).mean(), (photo.max(axis=2) <= 3).mean()])


def logistic(features: Values, labels: Values, ridge: float = 1.0, steps: int = 30) -> Values:
    """Return the coefficients `(D + 1,)` of a logistic regression with a ridge, by Newton's method."""
    design = np.column_stack((features, np.ones(len(features))))
    penalty = ridge * np.diag([1.0] * features.shape[1] + [0.0])
    coefficients = np.zeros(design.shape[1])
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-(design @ coefficients).clip(-30, 30)))
        gradient = design.T @ (chance - labels) + penalty @ coefficients
        hessian = (design.T * (chance * (1 - chance))) @ design + penalty + 1e-9 * np.eye(len(penalty))
        coefficients -= np.linalg.solve(hessian, gradient)
    return coefficients


def area_under_curve(features: Values, labels: Values) -> float:
    """Return how often a photo with label 1 is ranked above one with label 0, each judged by what the others taught."""
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    ranks = np.empty(len(labels))
    for left_out in range(len(labels)):
        others = np.arange(len(labels)) != left_out
        coefficients = logistic(features[others], labels[others])
        ranks[left_out] = features[left_out] @ coefficients[:-1] + coefficients[-1]
    first, second = ranks[labels == 1][:, None], ranks[labels == 0][None]
    return float(np.mean((first > second) + 0.5 * (first == second)))


def main() -> None:
    """Print both answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of sets of real pairs")
    parser.add_argument("good", type=Path, help="folder of good photos, which are to stay as they are")
    parser.add_argument("-w", "--weights", type=Path, default=Path("weights/msec.safetensors"))
    parser.add_argument("--least", type=float, default=0.1, help="difference of mean luma that counts (0.1)")
    arguments = parser.parse_args()
    sets = [list(pairs_of(folder)) for folder in sets_of(arguments.pairs)]
    good = [read(path, 512) for path in find_photos(arguments.good)]
    wrong = [
        photo
        for pairs in sets
        for photo, target in pairs
        if abs(float(((photo / 255.0 - target / 255.0) @ LUMA).mean())) > arguments.least
    ]
    features = np.array([statistics(photo) for photo in (*good, *wrong)])
    labels = np.array([1.0] * len(good) + [0.0] * len(wrong))
    for name, which in (("dark", features[:, 0] < DARK), ("bright", features[:, 0] > BRIGHT)):
        area = area_under_curve(features[which], labels[which])
        counts = int(labels[which].sum()), int((1 - labels[which]).sum())
        print(f"{name}: {counts[0]} good photos, {counts[1]} mis-exposed, area under the curve {area:.2f}", flush=True)
    print("| strength | pairs | good photos, median | tenth |\n|---|---|---|---|")
    full, careful = (Predictor.from_weights(arguments.weights, careful=careful) for careful in (False, True))
    ways: dict[str, Method] = {
        f"{share:g}": partial(full.predict, strength=share) for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    }
    for strength, method in {**ways, "1, careful": careful.predict}.items():
        scores = np.mean([score(method, pairs) for pairs in sets], axis=0)
        changes = [score(method, [(photo, photo)])[0] for photo in good]
        median, tenth = np.quantile(changes, (0.5, 0.1))
        print(f"| {strength} | {scores[0]:.2f} / {scores[1]:.3f} | {median:.1f} | {tenth:.1f} |", flush=True)


if __name__ == "__main__":
    main()
