"""Time and memory of predict.py beside what any tool must do: decode and re-encode the same JPEG.

The photo is scaled to the sizes below and written as JPEG, of quality 90 with the standard's quantisation tables or
with its own, into a temporary folder. "twenty", "small" and "start" are timed on the wall, with all threads, and want
an idle machine; the others in the processor time of one thread, which other programs disturb least.

example:
  python benchmarks/predict.py PHOTO.jpg
  python benchmarks/predict.py PHOTO.jpg --only twenty
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from models import curves
from utils.photos.full_size import apply_curves
from utils.photos.predictor import Predictor, reduced
from utils.photos.reading import load_photo, read_photo
from utils.photos.writing import save_photo

WEIGHTS = ROOT / "weights" / "msec.safetensors"
SETTINGS = ("--strength", "0.7", "--exposure", "0.5")
"""Other than the defaults."""
FLOOR = "decode and re-encode with Pillow (the floor)"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), help="tables to print")
    arguments = parser.parse_args()
    original = read_photo(arguments.photo)
    with Image.open(arguments.photo) as image:
        tables = getattr(image, "quantization", None)
    predictor = Predictor.from_weights(WEIGHTS)
    print(f"{predictor.arithmetic}, torch {torch.__version__}, network at {predictor.size} px; {arguments.photo.name}")
    with tempfile.TemporaryDirectory() as name:
        torch.set_num_threads(1)
        for table in arguments.only:
            TABLES[table](Bench(original, tables, predictor, Path(name) / table, arguments.rounds))


class Bench:
    """What the tables are made of."""

    def __init__(
        self,
        original: Image.Image,
        tables: dict[int, list[int]] | None,
        predictor: Predictor,
        folder: Path,
        rounds: int,
    ) -> None:
        self.original, self.tables, self.predictor, self.folder, self.rounds = (
            original, tables, predictor, folder, rounds,
        )  # fmt: skip
        folder.mkdir()

    def write(self, megapixels: float, name: str, **options: Any) -> Path:
        """Write the photo at another number of pixels; return the path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scaled(self.original, megapixels).save(path, **(options or {"quality": 90}))
        return path

    def median(self, function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
        """Return the median seconds of a call."""
        return statistics.median(seconds(function, clock) for _ in range(self.rounds))


def twenty(bench: Bench) -> None:
    """Print the time of twenty photos of 12 MP, beside the floor, with the standard's tables and the photo's own."""
    for label, options in (("the standard's tables", {"quality": 90}), ("its own tables", {"qtables": bench.tables})):
        if options.get("qtables", True) is None:
            continue
        first = bench.write(12, f"{label}/00.jpg", **options)
        paths = [first, *(first.with_name(f"{index:02}.jpg") for index in range(1, 20))]
        for path in paths[1:]:
            path.write_bytes(first.read_bytes())
        print(f"\ntwenty photos of 12 MP, {label} | seconds per photo | x floor")
        floors, ours, others = [], [], []
        for _ in range(bench.rounds):
            floors.append(seconds(lambda paths=paths: resave(paths, bench.folder / "out.jpg")) / 20)  # type: ignore[misc]
            ours.append(correct(paths, bench.folder / "corrected") / 20)
            others.append(correct(paths, bench.folder / "corrected", SETTINGS) / 20)
        print(f"{FLOOR}, one after the other | {statistics.median(floors):.3f} | 1.00")
        for label_, times in (("correct", ours), (f"correct {' '.join(SETTINGS)}", others)):
            ratio = statistics.median(a / b for a, b in zip(times, floors, strict=True))
            print(f"{label_} | {statistics.median(times):.3f} | {ratio:.2f}")


def parts(bench: Bench) -> None:
    """Print what the parts of a correction take on one thread, of a large and a small photo."""
    predictor = bench.predictor
    for label, megapixels in (("12 MP", 12), ("0.3 MP", 0.3)):
        path = bench.write(megapixels, f"{label}.jpg")
        own = bench.write(megapixels, f"{label} own.jpg", qtables=bench.tables) if bench.tables else None
        photo = load_photo(path)
        pixels, image = np.array(photo.pixels), scaled(bench.original, megapixels)
        deep = pixels.astype(np.uint16) * 257
        longest = predictor.corrector.longest_side(*pixels.shape[:2])
        small = reduced(pixels, longest)
        seen = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
        maps = predictor.fit(small)
        other = curves.adjust(maps[None], 0.7, 0.5)[0]
        rows: dict[str, Callable[[], object]] = {
            FLOOR: lambda path=path: resave([path], bench.folder / "out.jpg"),  # type: ignore[misc]
            "decode": lambda path=path: load_photo(path),  # type: ignore[misc]
            "shrink": lambda pixels=pixels, longest=longest: reduced(pixels, longest),  # type: ignore[misc]
            "network and curves": lambda small=small: predictor.fit(small),  # type: ignore[misc]
            "of this, curves": lambda seen=seen: curves.fit(seen, seen),  # type: ignore[misc]
            "apply": lambda pixels=pixels, maps=maps: apply_curves(pixels, maps, less_grain=True),  # type: ignore[misc]
            f"apply {' '.join(SETTINGS)}": lambda pixels=pixels, maps=other: apply_curves(
                pixels, maps, less_grain=True
            ),  # type: ignore[misc]
            "apply to 16 bits": lambda pixels=deep, maps=maps: apply_curves(pixels, maps, less_grain=True),  # type: ignore[misc]
            "apply to an image of Pillow's": lambda pixels=image, maps=maps: apply_curves(
                pixels, maps, less_grain=True
            ),  # type: ignore[misc]
            "encode and write": lambda photo=photo: save_photo(bench.folder / "out.jpg", photo),  # type: ignore[misc]
        }
        if own:
            camera = load_photo(own)
            rows["the same with the photo's own tables"] = lambda photo=camera: save_photo(bench.folder / "o", photo)  # type: ignore[misc]
        times: dict[str, list[float]] = {part: [] for part in rows}
        for _ in range(bench.rounds):  # by turns, so that what disturbs disturbs all
            for part, function in rows.items():
                times[part].append(seconds(function, time.process_time))
        print(f"\nparts of one photo of {label}, one thread | milliseconds | least | x floor")
        for part, taken in times.items():
            ratio = statistics.median(a / b for a, b in zip(taken, times[FLOOR], strict=True))
            print(f"{part} | {1e3 * statistics.median(taken):.1f} | {1e3 * min(taken):.1f} | {ratio:.2f}")


def plain(bench: Bench) -> None:
    """Print what the network would take at full size."""
    print("\nnetwork run plainly in float32 at full size, one thread | seconds | predict() | ratio")
    for label, megapixels in (("512 px", 0.2), ("2 MP", 2), ("12 MP", 12)):
        pixels = np.array(scaled(bench.original, megapixels))
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        bench.predictor.predict(pixels)
        with torch.inference_mode():
            whole = seconds(lambda batch=batch: bench.predictor.corrector.network(batch), time.process_time)  # type: ignore[misc]
        ours = bench.median(lambda pixels=pixels: bench.predictor.predict(pixels), time.process_time)  # type: ignore[misc]
        print(f"{label} | {whole:.2f} | {ours:.3f} | {whole / ours:.0f}")


def memory(bench: Bench) -> None:
    """Print the time of a correction and the peak memory of the process, by size."""
    print(
        "\none photo, a process of its own | seconds per MP, correction alone, one thread | peak memory, MB | allowed"
    )
    for megapixels in (1, 3, 12, 24, 48, 100):
        path = bench.write(megapixels, f"{megapixels}/a.jpg")
        loaded = load_photo(path).pixels
        time_ = bench.median(lambda loaded=loaded: bench.predictor.correct_in_place(loaded), time.process_time)  # type: ignore[misc]
        peak = peak_memory(path, bench.folder / "d" / str(megapixels))
        print(f"{megapixels} MP | {time_ / megapixels:.4f} | {peak:.0f} | {600 + 16 * megapixels}")
    for index in range(20):
        first = bench.write(12, f"twelve/{index:02}.jpg")
    print(f"a folder of twenty of 12 MP | | {peak_memory(first.parent, bench.folder / 'd' / 'twelve'):.0f} | 792")
    for index in range(100):
        first = bench.write(0.3, f"small/{index:02}.jpg")
    print(f"a folder of a hundred of 0.3 MP | | {peak_memory(first.parent, bench.folder / 'd' / 'small'):.0f} | 605")
    for modules in ("torch", "numpy, PIL.Image, imagecodecs"):
        print(f"import {modules} | | {peak_of(f'import {modules}'):.0f} |")


def small(bench: Bench) -> None:
    """Print the time of folders of small photos."""
    print("\nphotos of 0.3 MP | seconds per photo | with the report")
    first = bench.write(0.3, "small/0000.jpg")
    paths = [first, *(first.with_name(f"{index:04}.jpg") for index in range(1, 1000))]
    for path in paths[1:]:
        path.write_bytes(first.read_bytes())
    for count in (10, 100, 1000):
        plain_, page = (correct(paths[:count], bench.folder / "s", words) / count for words in ((), ("--report",)))
        print(f"{count} | {plain_:.4f} | {page:.4f}")


def start(bench: Bench) -> None:
    """Print how soon predict.py answers."""
    print("\nstart | seconds")
    empty = bench.folder / "empty"
    empty.mkdir()
    for words in (["--help"], ["--version"], ["nothing.jpg", "-o", "o"], [str(empty), "-o", "o"]):
        command = [sys.executable, str(ROOT / "predict.py"), *words]
        took = bench.median(lambda command=command: subprocess.run(command, capture_output=True))  # type: ignore[misc]
        print(f"predict.py {' '.join(words).replace(str(empty), 'EMPTY_FOLDER')} | {took:.2f}")


TABLES: dict[str, Callable[[Bench], None]] = {
    function.__name__: function for function in (twenty, parts, plain, memory, small, start)
}


def scaled(image: Image.Image, megapixels: float) -> Image.Image:
    """Return the image at another number of pixels."""
    factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long a call takes."""
    started = clock()
    function()
    return clock() - started


def resave(paths: list[Path], to: Path) -> None:
    """Decode JPEGs and encode them with the same quality: what any tool must do."""
    for path in paths:
        with Image.open(path) as image:
            image.save(to, quality="keep")


def correct(paths: list[Path], folder: Path, words: tuple[str, ...] = ()) -> float:
    """Return the seconds in which predict.py corrects files, without its start: without those of the first alone."""
    times = [
        seconds(lambda chosen=chosen: run(chosen, folder, words))  # type: ignore[misc]
        for chosen in (paths[:1], paths)
    ]
    return (times[1] - times[0]) / max(len(paths) - 1, 1) * len(paths)


def run(paths: list[Path], folder: Path, words: tuple[str, ...]) -> None:
    """Correct files by the command line."""
    command = [sys.executable, str(ROOT / "predict.py"), *map(str, paths), "-o", str(folder), "--overwrite", "-q"]
    subprocess.run([*command, *words], check=True)


def peak_memory(source: Path, output: Path) -> float:
    """Return the peak resident memory in MB of predict.py on a photo or folder (Linux)."""
    program = "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return peak_of(program, str(ROOT / "predict.py"), str(source), "-o", str(output), "-q")


def peak_of(program: str, *words: str) -> float:
    """Return the peak resident memory in MB of a program in Python (Linux).

    It reads its own peak at its end: what the system tells about a child counts what the parent was before the start.
    """
    program = f"import sys\ntry: {program}\nfinally: print(*open('/proc/self/status'), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    return int(result.stderr.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
