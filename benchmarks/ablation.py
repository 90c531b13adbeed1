"""Compare recipes of training: conf.json's and single changes of it, with equal steps, photos, seed and learning rate.

Most rows start from trained weights (`--init`) and show what a change does to a network that has learnt; the rows
"untrained" start from nothing. Every network is judged at the size of its views, on three kinds of photos: validation
photos mis-exposed by conf.json's jitter and camera, real pairs (as benchmarks/pairs.py), and the validation photos as
they are, which should stay so. Finished rows are kept in `--output` and not run again.

example:
  python benchmarks/ablation.py data/train data/valid PAIRS --steps 150
"""

import argparse
import dataclasses
import hashlib
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pairs import pairs_of, score, sets_of, untouched
from benchmarks.short_run import train_briefly
from data.sources import build_loader, open_folder
from models import Corrector
from models.generator import Generator
from models.pyramid import gaussian_expand, laplacian_pyramid
from train import validate
from utils.config import Config, load_config
from utils.device import Arithmetic
from utils.files import sha256
from utils.photos.predictor import Predictor
from utils.photos.reading import find_photos
from utils.training.progress import FailureLog
from utils.training.start import warm_start


class CodeWiring(Generator):
    """The released source's wiring: a level's output is UNet(u + L) + u, the coarsest level's UNet(L) alone."""

    def __init__(self, layer_counts: tuple[int, ...], channels: tuple[int, ...]) -> None:
        super().__init__(layer_counts, channels)
        for unet in self.unets:
            nn.init.kaiming_normal_(unet.head.weight)  # type: ignore[arg-type,union-attr]

    def forward(self, photo: Tensor) -> list[Tensor]:
        *bands, x = laplacian_pyramid(photo, len(self.unets))
        x = self.unets[0](x)
        outputs = []
        for unet, up, band in zip(self.unets[1:], self.up, reversed(bands), strict=True):
            height, width = band.shape[-2:]
            u = gaussian_expand(x, (height, width)) + up(x)[..., :height, :width]
            outputs.append(u)
            x = unet(u + band) + u
        return [x, *outputs[::-1]]


class PlainUpConvolution(Generator):
    """The figure's wiring with the 2x2 up-convolution alone between levels, started as nearest-neighbour."""

    def __init__(self, layer_counts: tuple[int, ...], channels: tuple[int, ...]) -> None:
        super().__init__(layer_counts, channels)
        with torch.no_grad():
            for name, parameter in self.up.named_parameters():
                if name.endswith("weight"):
                    parameter.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2))

    def forward(self, photo: Tensor) -> list[Tensor]:
        *bands, x = laplacian_pyramid(photo, len(self.unets))
        x = x + self.unets[0](x)
        outputs = []
        for unet, up, band in zip(self.unets[1:], self.up, reversed(bands), strict=True):
            height, width = band.shape[-2:]
            u = up(x)[..., :height, :width].float()
            outputs.append(u)
            x = u + band
            x = x + unet(x)
        return [x, *outputs[::-1]]


START = "the weights that all start from"
ROWS: dict[str, dict[str, Any]] = {
    START: {},
    "conf.json": {},
    "colour jitter": {"degradation": "color_jitter"},
    "mixture, half colour jitter": {"degradation": "mixture"},
    "stronger local maps, curves and contrast": {"camera_local_ev": 1.2, "camera_gamma": 0.4, "camera_contrast": 0.5},
    "EV from the photo's own exposure": {"camera_metered": False},
    "no gap of EV": {"camera_ev_least": 0.0},
    "no photos as they are": {"identity_share": 0.0},
    "targets of any brightness": {"normalise_targets": 0.0},
    "clipped pixels count wholly": {"clipped_weight": 1.0},
    "clipped pixels masked": {"clipped_weight": 0.0},
    "L1 + 0.2 SSIM": {"ssim_weight": 0.2},
    "no average of the weights": {"ema_decay": 0.0},
    "DAConv": {"conv": "daconv"},
    "untrained": {"init_weights": ""},
    "untrained, the figure's wiring with T alone": {"init_weights": ""},
    "untrained, the source's wiring": {"init_weights": ""},
    "192 px": {"image_size": (192, 192), "working_size": 192},
    "256 px": {"image_size": (256, 256), "working_size": 256},
    "384 px": {"image_size": (384, 384), "working_size": 384},
}
"""Name of each row and how it differs from conf.json."""

WIRINGS = {
    "untrained, the figure's wiring with T alone": PlainUpConvolution,
    "untrained, the source's wiring": CodeWiring,
}


def judge(network: nn.Module, base: Config, config: Config, pairs: Path) -> dict[str, float]:
    """Return the figures of a network at the sizes of `config`; mis-exposure is that of `base`."""
    failures, arithmetic = FailureLog(), Arithmetic(config.precision)
    predictor = Predictor(network, config.working_size, arithmetic)
    figures = {}
    degradations: dict[str, Any] = {"jitter": "color_jitter", "camera": "camera"}
    for name, degradation in degradations.items():
        changed = dataclasses.replace(base, degradation=degradation, image_size=config.image_size)
        photos = open_folder(changed, config.valid_data_dir, training=False)
        loader, _ = build_loader(changed, photos, config.batch_size, arithmetic)
        figures[name] = validate(Corrector(network, config.working_size), loader, arithmetic, failures)[0]["valid_psnr"]
    means = np.mean([score(predictor.predict, pairs_of(folder)) for folder in sets_of(pairs)], axis=0)
    figures["pairs"], figures["pairs_ssim"] = (float(mean) for mean in means)
    figures["untouched"] = statistics.median(untouched(predictor.predict, Path(config.valid_data_dir)))
    return figures


def row(name: str, base: Config, steps: int, pairs: Path) -> dict[str, float]:
    """Train one network and return its figures."""
    batches = math.ceil(len(find_photos(Path(base.train_data_dir))) / base.batch_size)
    epochs = max(1, round(steps / batches))
    config = dataclasses.replace(base, epochs=epochs, **ROWS[name])
    if name == START:
        return {**judge(warm_start(config), base, config, pairs), "steps": 0}
    network = None
    if name in WIRINGS:
        torch.manual_seed(config.seed)
        network = WIRINGS[name](config.layer_count_of_every_unet, config.first_layer_out_channels_of_every_unet)
    state, _, _ = train_briefly(config, network)
    return {**judge(state.released, base, config, pairs), "steps": epochs * batches}


def main() -> None:
    """Run the rows that are not in the output yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="folder of normally exposed photos")
    parser.add_argument("valid", help="another one")
    parser.add_argument("pairs", type=Path, help="folder of sets of real pairs")
    parser.add_argument("--steps", type=int, default=150, help="of 16 views each, rounded to whole epochs")
    parser.add_argument("--init", default="weights/msec.safetensors", help="weights that the rows start from")
    parser.add_argument("--row", action="append", choices=ROWS, help="row to run; repeatable (default: all)")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation.jsonl"), help="where finished rows are kept")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of conf.json")
    arguments = parser.parse_args()
    options = [f"train_data_dir={arguments.train}", f"valid_data_dir={arguments.valid}"]
    config = load_config("conf.json", [f"init_weights={arguments.init}", *arguments.set, *options])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    text = arguments.output.read_text() if arguments.output.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # a kill may have cut the last one short
    code = [sha256(path) for folder in ("data", "models", "utils") for path in sorted(Path(folder).glob("*.py"))]
    settings = [dataclasses.asdict(config), arguments.steps, sha256(Path(arguments.init)), str(arguments.pairs), code]
    digest = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:12]
    done = {entry["row"]: entry for entry in map(json.loads, lines) if entry["settings"] == digest}
    for name in arguments.row or ROWS:
        if name not in done:
            done[name] = {"row": name, "settings": digest, **row(name, config, arguments.steps, arguments.pairs)}
            with arguments.output.open("a") as file:
                file.write(json.dumps(done[name]) + "\n")
        print(json.dumps(done[name]), file=sys.stderr, flush=True)
    print("| | steps | jittered, dB | by a camera, dB | pairs, dB / SSIM | untouched, median dB |\n" + "|---" * 6 + "|")
    columns = ("steps", "jitter", "camera", "pairs", "pairs_ssim", "untouched")
    for name in filter(done.__contains__, ROWS):
        steps, jitter, camera, pairs, ssim, good = (done[name][key] for key in columns)
        print(f"| {name} | {steps} | {jitter:.2f} | {camera:.2f} | {pairs:.2f} / {ssim:.3f} | {good:.2f} |")


if __name__ == "__main__":
    main()
