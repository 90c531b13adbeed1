"""Compare the wirings of the generator's levels: same photos, draws, steps and seed; validation on fixed views.

example:
  python benchmarks/wiring.py data/train data/valid --steps 250
"""

import argparse
import dataclasses
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.short_run import train_briefly
from models.generator import Generator
from models.pyramid import gaussian_expand, laplacian_pyramid
from utils.config import load_config
from utils.photo import find_photos


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


VARIANTS: dict[str, type[Generator]] = {
    "figure: UNet(u+L) + (u+L), up-convolution on top of EXPAND": Generator,
    "figure: UNet(u+L) + (u+L), up-convolution alone": PlainUpConvolution,
    "code:   UNet(u+L) + u, up-convolution on top of EXPAND": CodeWiring,
}


def main() -> None:
    """Train every variant for the same steps and print its validation figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="folder of normally exposed photos")
    parser.add_argument("valid", help="another one")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of conf.json")
    arguments = parser.parse_args()
    folders = [f"train_data_dir={arguments.train}", f"valid_data_dir={arguments.valid}"]
    config = load_config("conf.json", [*arguments.set, *folders])
    batches = math.ceil(len(find_photos(Path(arguments.train))) / config.batch_size)
    config = dataclasses.replace(config, epochs=-(-arguments.steps // batches))
    for name, variant in VARIANTS.items():
        torch.manual_seed(config.seed)
        network = variant(config.layer_count_of_every_unet, config.first_layer_out_channels_of_every_unet)
        _, valid, _ = train_briefly(config, network)
        steps = config.epochs * batches
        print(f"{name}: {steps} steps, {valid['valid_psnr']:.2f} dB / {valid['valid_ssim']:.3f}", flush=True)


if __name__ == "__main__":
    main()
