"""Compare ways to carry a correction from the network's small picture to the photo.

What the constants of our own way are worth is asked by benchmarks/choices.py.

On pairs, as `python evaluate.py sets` takes them, at a longest side of 512 px or in their own size; or on large
photos that are mis-exposed here, by -2 and +1.5 EV in linear light, and are their own targets.

examples:
  python benchmarks/transfer.py PAIRS --size 128
  python benchmarks/transfer.py PAIRS --size 128 --sets sice brackets_students --own-size --short
  python benchmarks/transfer.py --synthesise PHOTOS --size 128 --short
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pairs import pairs_of, score, sets_of
from models import Corrector, build_generator, curves
from utils.colour import from_linear, to_linear
from utils.device import Arithmetic
from utils.evaluation.methods import Method, Pixels, read
from utils.photos.full_size import apply_curves
from utils.photos.reading import find_photos
from utils.weights import load_weights

Transfer = Callable[[Pixels, Tensor, Tensor], Pixels]


def resize(pixels: Pixels, small: Tensor, corrected: Tensor) -> Pixels:
    """Bring the small correction up by bicubic interpolation: no detail of the photo is used."""
    return to_pixels(F.interpolate(corrected, pixels.shape[:2], mode="bicubic", antialias=True))


def ours(pixels: Pixels, small: Tensor, corrected: Tensor) -> Pixels:
    """Return the photo under the curves of models/curves.py, with its grain."""
    result = pixels.copy()
    apply_curves(result, curves.fit(small, corrected)[0])
    return result


def logistic(floor: float, ridge: float = 0.1) -> Transfer:
    """Return curves sigmoid(a logit(x) + b), fitted in the logit domain; `floor` keeps black from infinity."""

    def logit(x: Tensor) -> Tensor:
        return torch.logit(x * (1 - 2 * floor) + floor)

    def transfer(pixels: Pixels, small: Tensor, corrected: Tensor) -> Pixels:
        radius = max(round(max(small.shape[-2:]) / curves.WINDOW), 1)
        x, y = logit(small), logit(corrected)
        mean_x, mean_y, squares, products = (curves.box_mean(t, radius) for t in (x, y, x * x, x * y))
        variance, covariance = squares - mean_x.square(), products - mean_x * mean_y
        a = ((covariance + ridge) / (variance.clamp_min(0) + ridge)).clamp(0.3, 2.5)
        maps = curves.box_mean(torch.cat((a, mean_y - a * mean_x), dim=1), radius)
        a, b = F.interpolate(maps, pixels.shape[:2], mode="bilinear").chunk(2, dim=1)
        photo = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        return to_pixels((torch.sigmoid(a * logit(photo) + b) - floor) / (1 - 2 * floor))

    return transfer


def affine(share: float, epsilon: float, *, pull_to_gain: bool = True) -> Transfer:
    """Return `scale * x + offset`, both fitted in windows of `share` of the longest side: the transfer up to 0.3.

    `pull_to_gain=False` is the guided filter as published: `scale` is pulled towards 0 where the photo is flat, and not
    towards the local gain.
    """

    def transfer(pixels: Pixels, small: Tensor, corrected: Tensor) -> Pixels:
        radius = max(round(max(small.shape[-2:]) * share), 1)
        if pull_to_gain:
            scale, offset = local_affine(small, corrected, radius, epsilon)
        else:
            scale, offset = guided_filter(small, corrected, radius, epsilon)
        maps = F.interpolate(torch.cat((scale, offset)), pixels.shape[:2], mode="bilinear")
        photo = torch.from_numpy(pixels).permute(2, 0, 1) / 255
        return to_pixels(maps[:1] * photo + maps[1:])

    return transfer


def local_affine(guide: Tensor, target: Tensor, radius: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return scale and offset `(1, C, H, W)`; `scale` is pulled towards the gain of the window's means."""
    mean_guide, mean_target = curves.box_mean(guide, radius), curves.box_mean(target, radius)
    variance = curves.box_mean(guide * guide, radius) - mean_guide.square()
    covariance = curves.box_mean(guide * target, radius) - mean_guide * mean_target
    gain = ((mean_target + 1e-3) / (mean_guide + 1e-3)).clamp(0, 32)
    scale = (covariance + epsilon * gain) / (variance.clamp_min(0) + epsilon)
    return curves.box_mean(scale, radius), curves.box_mean(mean_target - scale * mean_guide, radius)


def to_pixels(photo: Tensor) -> Pixels:
    """Return `(1, 3, H, W)` in [0, 1] as an array of bytes."""
    return (photo[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def guided_filter(guide: Tensor, target: Tensor, radius: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return scale and offset of the guided filter (He et al., 2013, equations 5, 6 and 8)."""

    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)

    mean_guide, mean_target = mean(guide), mean(target)
    variance = mean(guide * guide) - mean_guide.square()
    scale = (mean(guide * target) - mean_guide * mean_target) / (variance + epsilon)
    return mean(scale), mean(mean_target - scale * mean_guide)


def correct_copy(generator: torch.nn.Module, photo: torch.Tensor) -> torch.Tensor:
    """Return what the network itself makes of a photo `(1, 3, H, W)`, in [0, 1], neither held back nor mirrored."""
    with torch.inference_mode():
        output: torch.Tensor = generator(Corrector(generator, max(photo.shape)).shown(photo))[0]
    return output.float().clamp(0, 1).cpu()


def method(generator: torch.nn.Module, arithmetic: Arithmetic, size: int, transfer: Transfer) -> Method:
    """Return the whole correction: network at `size` px, then `transfer`."""

    def correct(pixels: Pixels) -> Pixels:
        image = Image.fromarray(pixels)
        image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=None)
        small = arithmetic.photos(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
        return transfer(pixels, small.cpu(), correct_copy(generator, small))

    return correct


def at_full_size(generator: torch.nn.Module, arithmetic: Arithmetic) -> Method:
    """Return the network run on the photo itself."""

    def correct(pixels: Pixels) -> Pixels:
        return to_pixels(correct_copy(generator, arithmetic.photos(torch.from_numpy(pixels).permute(2, 0, 1)[None])))

    return correct


def synthesised(folder: Path) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield large photos two stops too dark and a stop and a half too bright, 8 bits, and as they are."""
    light = to_linear(torch.arange(256, dtype=torch.float64) / 255)
    for path in find_photos(folder):
        target = read(path, None)
        for stops in (-2.0, 1.5):
            table = (from_linear((light * 2**stops).clamp(0, 1)) * 255).round().to(torch.uint8).numpy()
            yield table[target], target


def main() -> None:
    """Print a row per way, the mean over the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", help="folder of sets")
    parser.add_argument("--sets", nargs="*", help="only these sets")
    parser.add_argument("--own-size", action="store_true", help="photos in their own size rather than 512 px")
    parser.add_argument("--synthesise", type=Path, metavar="PHOTOS", help="folder of large, well exposed photos")
    parser.add_argument("--short", action="store_true", help="leave out the ways that are known to be worse")
    parser.add_argument("-w", "--weights", type=Path, default=Path("weights/msec.safetensors"))
    parser.add_argument("--size", type=int, action="append", required=True, help="working size; repeatable")
    arguments = parser.parse_args()
    if (arguments.root is None) == (arguments.synthesise is None):
        parser.error("give a folder of sets, or --synthesise")
    weights = load_weights(arguments.weights)
    arithmetic = Arithmetic()
    generator = build_generator(weights.architecture)
    generator.load_state_dict(weights.state)
    arithmetic.place(generator).eval()

    def sets() -> list[Iterator[tuple[Pixels, Pixels]]]:
        if arguments.synthesise:
            return [synthesised(arguments.synthesise)]
        folders = sets_of(arguments.root)
        longest = None if arguments.own_size else 512
        return [pairs_of(folder, longest) for folder in folders if folder.name in (arguments.sets or [folder.name])]

    transfers: dict[str, Transfer] = {"bicubic": resize, "affine, radius 1/8, eps 1e-05": affine(1 / 8, 1e-5)}
    transfers["rational curves (ours)"] = ours
    for floor in (2.0, 0.5):
        transfers[f"logistic curves, floor {floor:g}/255"] = logistic(floor / 255)
    if not arguments.short:
        transfers["guided filter, radius 1/32, eps 1e-05"] = affine(1 / 32, 1e-5, pull_to_gain=False)
    cases = [
        (f"{size} px", name, method(generator, arithmetic, size, transfer))
        for size in arguments.size
        for name, transfer in transfers.items()
    ]
    cases += [("-", "the photo as it is", lambda pixels: pixels)]
    cases += [("full size", "none", at_full_size(generator, arithmetic))]
    print("| network at | transfer | PSNR / SSIM |\n|---|---|---|")
    for size, name, way in cases:
        quality, structure = np.mean([score(way, pairs) for pairs in sets()], axis=0)
        print(f"| {size} | {name} | {quality:.2f} / {structure:.3f} |", flush=True)


if __name__ == "__main__":
    main()
