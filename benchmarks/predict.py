"""Time and memory of predict.py beside what any tool must do: decode and re-encode the same JPEG.

The photo is scaled to the sizes below and written as JPEG of quality 90 into a temporary folder.

example:
  python benchmarks/predict.py PHOTO.jpg
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from utils.photos.full_size import apply_curves
from utils.photos.predictor import Predictor, reduced
from utils.photos.reading import load_photo, read_photo
from utils.photos.writing import save_photo

WEIGHTS = ROOT / "weights" / "msec.safetensors"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    original = read_photo(arguments.photo)
    predictor = Predictor.from_weights(WEIGHTS)
    print(f"{predictor.arithmetic}, torch {torch.__version__}, network at {predictor.size} px; {arguments.photo.name}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        twelve = [write(original, 12, folder / "twelve" / f"{index:02}.jpg") for index in range(20)]

        print("\ntwenty photos of 12 MP | seconds per photo | x floor")
        floors, ours = [], []
        for _ in range(arguments.rounds):
            floors.append(seconds(lambda: resave(twelve, folder / "out.jpg")) / 20)
            ours.append(correct(twelve, folder / "corrected") / 20)
        ratio = statistics.median(a / b for a, b in zip(ours, floors, strict=True))
        print(f"decode and re-encode, one after the other (the floor) | {statistics.median(floors):.3f} | 1.00")
        print(f"correct | {statistics.median(ours):.3f} | {ratio:.2f}")

        print("\nparts of one photo of 12 MP, one thread | milliseconds")
        torch.set_num_threads(1)
        photo = load_photo(twelve[0])
        maps = predictor.fit(photo.pixels)
        parts: dict[str, Callable[[], object]] = {
            "decode": lambda: load_photo(twelve[0]),
            "shrink": lambda: reduced(photo.pixels, predictor.size),
            "network and curves": lambda: predictor.fit(reduced(photo.pixels, predictor.size)),
            "apply": lambda: apply_curves(photo.pixels, maps),
            "encode and write": lambda: save_photo(folder / "out.jpg", photo),
        }
        for part, function in parts.items():
            times = [seconds(function) for _ in range(arguments.rounds)]
            print(f"{part} | {1e3 * statistics.median(times):.0f}")

        print("\nnetwork run plainly in float32 at full size | seconds | predict() | ratio")
        torch.set_num_threads(2)
        for label, megapixels in (("512 px", 0.2), ("2 MP", 2), ("12 MP", 12)):
            pixels = np.array(scaled(original, megapixels))
            batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
            predictor.predict(pixels)
            with torch.inference_mode():
                plain = seconds(lambda batch=batch: predictor.corrector.network(batch))  # type: ignore[misc]
            times = [seconds(lambda pixels=pixels: predictor.predict(pixels)) for _ in range(3)]  # type: ignore[misc]
            print(f"{label} | {plain:.2f} | {statistics.median(times):.3f} | {plain / statistics.median(times):.0f}")

        print("\none photo, a process of its own | seconds per megapixel, correction alone | peak memory, MB | allowed")
        for megapixels in (1, 3, 12, 24, 48, 100):
            path = write(original, megapixels, folder / f"{megapixels}" / "a.jpg")
            loaded = load_photo(path).pixels
            times = [seconds(lambda loaded=loaded: predictor.correct_in_place(loaded)) for _ in range(3)]  # type: ignore[misc]
            peak = peak_memory(path, folder / "d" / str(megapixels))
            print(
                f"{megapixels} MP | {statistics.median(times) / megapixels:.4f} | {peak:.0f} | {600 + 16 * megapixels}"
            )
        print(
            f"the folder of twenty | | {peak_memory(twelve[0].parent, folder / 'd' / 'twelve'):.0f} | {600 + 16 * 12}"
        )

        print("\nphotos of 0.3 MP | seconds per photo")
        small = [write(original, 0.3, folder / "small" / f"{index:04}.jpg") for index in range(1000)]
        for count in (10, 100, 1000):
            print(f"{count} | {correct(small[:count], folder / 's') / count:.4f}")

    print("\nstart | seconds")
    for words in (["--help"], ["nothing.jpg"], ["--version"]):
        command = [sys.executable, str(ROOT / "predict.py"), *words]
        times = [seconds(lambda command=command: subprocess.run(command, capture_output=True)) for _ in range(5)]  # type: ignore[misc]
        print(f"predict.py {' '.join(words)} | {statistics.median(times):.2f}")


def scaled(image: Image.Image, megapixels: float) -> Image.Image:
    """Return the image at another number of pixels."""
    factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def write(image: Image.Image, megapixels: float, path: Path) -> Path:
    """Write the image at another number of pixels; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scaled(image, megapixels).save(path, quality=90)
    return path


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def resave(paths: list[Path], to: Path) -> None:
    """Decode JPEGs and encode them with the same quality: what any tool must do."""
    for path in paths:
        with Image.open(path) as image:
            image.save(to, quality="keep")


def correct(paths: list[Path], folder: Path) -> float:
    """Return the seconds in which predict.py corrects files, without its start: without those of the first alone."""
    times = [
        seconds(lambda chosen=chosen: run(chosen, folder))  # type: ignore[misc]
        for chosen in (paths[:1], paths)
    ]
    return (times[1] - times[0]) / max(len(paths) - 1, 1) * len(paths)


def run(paths: list[Path], folder: Path) -> None:
    """Correct files by the command line."""
    words = [*map(str, paths), "-o", str(folder), "--overwrite", "-q"]
    subprocess.run([sys.executable, str(ROOT / "predict.py"), *words], check=True)


def peak_memory(source: Path, output: Path) -> float:
    """Return the peak resident memory in MB of predict.py on a photo or folder (Linux).

    It reads its own peak at its end: what the system tells about a child counts what the parent was before the start.
    """
    program = "import runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    program += "finally: print(*[line for line in open('/proc/self/status') if 'VmHWM' in line], file=sys.stderr)"
    command = [sys.executable, "-c", program, str(ROOT / "predict.py"), str(source), "-o", str(output), "-q"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stderr.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
