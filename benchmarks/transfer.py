"""Compare ways to carry a correction from the network's small picture to the photo, on pairs as benchmarks/pairs.py.

example:
  python benchmarks/transfer.py PAIRS -w weights/msec.safetensors --size 192
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pairs import Method, Pixels, score
from models import build_generator
from utils.device import Arithmetic
from utils.full_resolution import apply_affine, local_affine
from utils.weights import load_weights

Transfer = Callable[[Pixels, Tensor, Tensor], Pixels]


def resize(pixels: Pixels, small: Tensor, corrected: Tensor) -> Pixels:
    """Bring the small correction up by bicubic interpolation: no detail of the photo is used."""
    large = F.interpolate(corrected, pixels.shape[:2], mode="bicubic", antialias=True)
    return (large[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def affine(share: float, epsilon: float, *, pull_to_gain: bool = True) -> Transfer:
    """Return the local affine transfer with windows of `share` of the longest side.

    `pull_to_gain=False` is the guided filter as published: `scale` is pulled towards 0.
    """

    def transfer(pixels: Pixels, small: Tensor, corrected: Tensor) -> Pixels:
        radius = max(round(max(small.shape[-2:]) * share), 1)
        if pull_to_gain:
            scale, offset = local_affine(small, corrected, radius, epsilon)
        else:
            scale, offset = guided_filter(small, corrected, radius, epsilon)
        result = pixels.copy()
        apply_affine(result, scale[0], offset[0])
        return result

    return transfer


def guided_filter(guide: Tensor, target: Tensor, radius: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return scale and offset of the guided filter (He et al., 2013, equations 5, 6 and 8)."""

    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)

    mean_guide, mean_target = mean(guide), mean(target)
    variance = mean(guide * guide) - mean_guide.square()
    scale = (mean(guide * target) - mean_guide * mean_target) / (variance + epsilon)
    return mean(scale), mean(mean_target - scale * mean_guide)


def method(generator: torch.nn.Module, arithmetic: Arithmetic, size: int, transfer: Transfer) -> Method:
    """Return the whole correction: network at `size` px, then `transfer`."""

    def correct(pixels: Pixels) -> Pixels:
        image = Image.fromarray(pixels)
        image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=None)
        small = arithmetic.photos(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
        with torch.inference_mode(), arithmetic.autocast():
            corrected = generator(small)[0].float().clamp(0, 1)
        return transfer(pixels, small.cpu(), corrected.cpu())

    return correct


def main() -> None:
    """Print a row per way, the mean over the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of sets")
    parser.add_argument("-w", "--weights", type=Path, default=Path("weights/msec.safetensors"))
    parser.add_argument("--size", type=int, action="append", required=True, help="working size; repeatable")
    arguments = parser.parse_args()
    weights = load_weights(arguments.weights)
    arithmetic = Arithmetic()
    generator = build_generator(weights.architecture)
    generator.load_state_dict(weights.state)
    arithmetic.place(generator).eval()
    folders = sorted(path for path in arguments.root.iterdir() if (path / "input").is_dir())
    transfers: dict[str, Transfer] = {"bicubic": resize}
    for epsilon in (1e-5, 1e-4, 1e-3):
        transfers[f"guided filter, radius 1/32, eps {epsilon:g}"] = affine(1 / 32, epsilon, pull_to_gain=False)
        transfers[f"ours, radius 1/32, eps {epsilon:g}"] = affine(1 / 32, epsilon)
    for radius in (8, 16, 64):
        transfers[f"ours, radius 1/{radius}, eps 1e-05"] = affine(1 / radius, 1e-5)
    cases = [(size, name, transfer) for size in arguments.size for name, transfer in transfers.items()]
    print("| network at | transfer | PSNR / SSIM |\n|---|---|---|")
    for size, name, transfer in cases:
        table = [score(method(generator, arithmetic, size, transfer), folder) for folder in folders]
        quality, structure = np.mean(table, axis=0)
        print(f"| {size} | {name} | {quality:.2f} / {structure:.3f} |", flush=True)


if __name__ == "__main__":
    main()
