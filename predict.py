"""Correct the exposure of photos.

examples:
  python predict.py                            correct data/examples into results/
  python predict.py PHOTO.jpg -o corrected     one photo
  python predict.py FOLDER -o corrected        every photo in a folder
  python predict.py FOLDER -o corrected -w runs/msec/best.safetensors
                                               weights that train.py wrote
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:  # torch takes seconds to import: only once the arguments are known to be good
    import numpy as np
    import numpy.typing as npt

    from models import Network
    from utils.device import Arithmetic

REPOSITORY = Path(__file__).resolve().parent
RELATIVE_RADIUS = 1 / 16
"""Radius of the local affine model's windows, as a share of the longest side of the small photo."""
EPSILON = 1e-5
"""Variance below which the local affine model takes the local gain rather than a fit."""


class Job(NamedTuple):
    """One photo to correct."""

    source: Path
    destination: Path


class Corrector:
    """Correct photos: network at a bounded size, then a local affine model at full size.

    Args:
        generator: a trained network.
        arithmetic: where and how it runs.
        size: longest side in pixels of what the network sees.
    """

    def __init__(self, generator: "Network", arithmetic: "Arithmetic", size: int) -> None:
        self.generator = arithmetic.place(generator).eval()
        self.arithmetic = arithmetic
        self.size = size

    def __call__(self, pixels: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.uint8]":
        """Return the corrected photo; `(H, W, 3)` sRGB in and out."""
        import numpy as np
        import torch
        from PIL import Image

        from utils.full_resolution import apply_affine, local_affine

        image = Image.fromarray(pixels)
        image.thumbnail((self.size, self.size), Image.Resampling.LANCZOS, reducing_gap=3.0)
        small = self.arithmetic.photos(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])  # (1, 3, h, w)
        with torch.inference_mode():
            with self.arithmetic.autocast():
                corrected = self.generator(small)[0]
            if not torch.isfinite(corrected).all():  # half precision can overflow: once more in float32
                corrected = self.generator(small)[0]
            if not torch.isfinite(corrected).all():
                raise ValueError("the network's output is not finite: the weights are not usable for this photo")
            radius = max(round(max(small.shape[-2:]) * RELATIVE_RADIUS), 1)
            scale, offset = local_affine(small, corrected.clamp(0, 1), radius, EPSILON)
        return apply_affine(pixels, scale[0].cpu(), offset[0].cpu())


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 all done, 1 some failed, 2 usage, 130 interrupted."""
    arguments = parse_arguments(argv)
    jobs, errors = plan(arguments.input, arguments.output)
    for error in errors:
        print(f"ERROR {error}", file=sys.stderr)
    if not jobs:
        print("ERROR no photo to correct", file=sys.stderr)
        return 2

    from models import build_generator
    from utils.device import Arithmetic
    from utils.weights import WeightsError, load_weights

    try:
        weights = load_weights(arguments.weights)
        generator = build_generator(weights.architecture)
        generator.load_state_dict(weights.state)
    except WeightsError as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 2
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        print(f"ERROR {arguments.weights}: its tensors do not fit its architecture ({error})", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, exit_on_sigterm)
    corrector = Corrector(generator, Arithmetic(), arguments.size or weights.working_size)
    print(f"{corrector.arithmetic}; network at {corrector.size} px", file=sys.stderr)
    try:
        written, skipped, failed = correct_all(jobs, corrector, overwrite=arguments.overwrite)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    failed += len(errors)
    total = len(jobs) + len(errors)
    print(f"done {total}: {written} written to {arguments.output}, {skipped} skipped, {failed} failed")
    return 1 if failed else 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "input", nargs="*", type=Path, default=[REPOSITORY / "data" / "examples"], help="photos and folders of photos"
    )
    parser.add_argument("-o", "--output", type=Path, help="folder for the corrected photos")
    parser.add_argument(
        "-w",
        "--weights",
        type=Path,
        default=REPOSITORY / "weights" / "msec.safetensors",
        help="weights file (default: the released weights)",
    )
    parser.add_argument(
        "--size", type=int, help="longest side in pixels at which the network runs (default: what the weights say)"
    )
    parser.add_argument("--overwrite", action="store_true", help="correct again what the output folder already holds")
    arguments = parser.parse_args(argv)
    if arguments.output is None:
        if arguments.input != [REPOSITORY / "data" / "examples"]:
            parser.error("say where the corrected photos go: -o FOLDER")
        arguments.output = Path("results")
    if arguments.size is not None and not 16 <= arguments.size <= 8192:
        parser.error(f"--size {arguments.size}: from 16 to 8192 pixels")
    return arguments


def plan(inputs: list[Path], output: Path) -> tuple[list[Job], list[str]]:
    """Return what to correct and where it goes, and what cannot be, with reasons.

    A folder stands for the photos directly in it. Every file keeps its name; none replaces an original or another.
    """
    from utils.photo import SUFFIXES

    jobs: dict[Path, Job] = {}
    errors = []
    for given in inputs:
        sources = [given]
        if os.path.isdir(given):
            try:
                sources = sorted(path for path in given.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
            except OSError as error:
                errors.append(f"{given}: {error.strerror}")
                continue
            if not sources:
                errors.append(f"{given}: no photos in this folder")
        for source in sources:
            destination = output / source.name
            if destination in jobs and not is_same_file(jobs[destination].source, source):
                errors.append(f"{source}: same name as {jobs[destination].source}: give it another output folder")
            elif is_same_file(destination, source):
                errors.append(f"{source}: would replace the original: give another output folder")
            else:
                jobs.setdefault(destination, Job(source, destination))
    return list(jobs.values()), errors


def is_same_file(first: Path, second: Path) -> bool:
    """Tell whether two paths lead to one file, or are equal where there is none."""
    try:
        return os.path.samefile(first, second)
    except OSError:
        return first.absolute() == second.absolute()


def correct_all(jobs: list[Job], corrector: Corrector, *, overwrite: bool) -> tuple[int, int, int]:
    """Correct every photo, one failure never stopping the others; return how many were written, skipped and failed."""
    from tqdm import tqdm

    from utils.photo import PhotoError, load_photo, save_photo

    written = skipped = failed = 0
    for source, destination in tqdm(jobs, unit="photo", disable=None):
        try:
            if destination.exists() and not overwrite:
                skipped += 1
                continue
            photo = load_photo(source)
            destination.parent.mkdir(parents=True, exist_ok=True)
            save_photo(destination, corrector(photo.pixels), like=photo)
            written += 1
        except Exception as error:  # whatever one photo does must not cost the others
            failed += 1
            reason = str(error) if isinstance(error, PhotoError | OSError) else f"{type(error).__name__}: {error}"
            tqdm.write(f"ERROR {source}: {reason}", file=sys.stderr)
    return written, skipped, failed


def exit_on_sigterm(number: int, frame: object) -> NoReturn:
    """Leave in an orderly way, so that no temporary file stays behind."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
