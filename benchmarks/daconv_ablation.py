"""Does DAConv help? Train a network plain and with DAConv from the same initial function, on the same photos and draws.

Adam moves each of DAConv's two kernels by the learning rate. The merged kernel's outer taps then move by up to
2 s(1) = 1.46 times as much as a plain kernel's, the own tap by more, as the sums of both kernels enter there. So the
plain network is also trained with 1.46 times the learning rate.

examples:
  python benchmarks/daconv_ablation.py data/train data/valid --model msec
  python benchmarks/daconv_ablation.py data/train data/valid --model zero_dce --seeds 8
"""

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.short_run import train_briefly
from data import make_pairs
from utils.config import Config, load_config
from utils.device import Arithmetic
from utils.training.objective import weighted_losses

LEARNING_RATE_FACTOR = 2 * torch.sigmoid(torch.tensor(1.0)).item()
ARMS: dict[str, tuple[Literal["plain", "daconv"], float]] = {
    "plain": ("plain", 1.0),
    "plain, lr x 1.46": ("plain", LEARNING_RATE_FACTOR),
    "daconv": ("daconv", 1.0),
}
SCORES = ("valid_psnr", "valid_ssim", "valid_loss")


def main() -> None:
    """Train every arm with every seed, and print the paired differences to the plain arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="folder of normally exposed photos")
    parser.add_argument("valid", help="another one")
    parser.add_argument("--model", default="msec", help="network to train, as in conf.json")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=4, help="how many")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of conf.json")
    arguments = parser.parse_args()
    overrides = [*arguments.set, f"train_data_dir={arguments.train}", f"valid_data_dir={arguments.valid}"]
    config = load_config("conf.json", [*overrides, f"model={arguments.model}", f"epochs={arguments.epochs}"])
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    for seed in range(arguments.seeds):
        for name, (conv, factor) in ARMS.items():
            arm = dataclasses.replace(config, seed=seed, conv=conv, init_lr=factor * config.init_lr)
            scores[name].append(train_once(arm))
            print(f"seed {seed}, {name}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores[name][-1].items()), flush=True)
    print(f"\n{arguments.model}, {arguments.epochs} epochs, {arguments.seeds} seeds: mean over the seeds")
    for name, runs in scores.items():
        cells = [name]
        for score in SCORES:
            cells.append(f"{score} {statistics.mean(run[score] for run in runs):.4f}")
            if name != "plain":
                differences = [run[score] - plain[score] for run, plain in zip(runs, scores["plain"], strict=True)]
                spread = statistics.stdev(differences) if len(differences) > 1 else float("nan")
                better = sum(difference > 0 for difference in differences)
                cells.append(f"({statistics.mean(differences):+.4f} ± {spread:.4f}, higher in {better})")
        print(" ".join(cells))


def train_once(config: Config) -> dict[str, float]:
    """Train with one configuration; return its validation figures and the training loss on the validation views."""
    state, figures, valid_loader = train_briefly(config)
    arithmetic = Arithmetic(config.precision)
    loss, count = 0.0, 0
    with torch.no_grad():
        for batch in valid_loader:
            if not batch.names:
                continue
            inputs, targets = make_pairs(batch, arithmetic, config.normalise_targets)
            with arithmetic.autocast():
                done = state.released.correct(inputs)
            terms = weighted_losses(state, inputs, done, targets).values()
            loss += sum(term.item() for term in terms) * len(batch.names)
            count += len(batch.names)
    return {**figures, "valid_loss": loss / count}


if __name__ == "__main__":
    main()
