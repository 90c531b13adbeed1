"""Correct the exposure of photos.

examples:
  python predict.py                            correct data/examples into results/
  python predict.py PHOTO.jpg -o corrected     one photo
  python predict.py FOLDER -o corrected        every photo in a folder
  python predict.py FOLDER -r -o corrected     and in its sub-folders, which are kept apart
  python predict.py FOLDER -o corrected --strength 0.7 --format jpeg --quality 90
  python predict.py FOLDER -o corrected -w runs/msec/best.safetensors
                                               weights that train.py wrote
"""

import argparse
import glob
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:  # torch takes seconds to import: only once the arguments are known to be good
    from PIL import Image

    from utils.photo import Photo
    from utils.predictor import Predictor
    from utils.report import Report

VERSION = "0.2.0"
REPOSITORY = Path(__file__).resolve().parent
EXAMPLES = REPOSITORY / "data" / "examples"
FORMATS = ("jpeg", "png", "webp", "tiff", "bmp", "avif")
BYTES_PER_PIXEL = 8
"""Memory that a photo of 8 bits takes while it is corrected; one of 16 bits takes twice as much."""


class Job(NamedTuple):
    """One photo to correct."""

    source: Path
    destination: Path


class Result(NamedTuple):
    """What became of a photo."""

    job: Job
    status: str
    """"written", "skipped" or "failed"."""
    reason: str = ""
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    pictures: tuple["Image.Image", "Image.Image"] | None = None
    """Small copies before and after, for the report."""


class Memory:
    """Let as many photos be in work at once as fit into twice the memory of the largest one, or 128 MB."""

    def __init__(self) -> None:
        self.used = self.largest = 0
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Wait until `amount` bytes fit."""
        with self.changed:
            self.largest = max(self.largest, amount)
            self.changed.wait_for(lambda: not self.used or self.used + amount <= max(2 * self.largest, 128 << 20))
            self.used += amount
        try:
            yield
        finally:
            with self.changed:
                self.used -= amount
                self.changed.notify_all()


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0 for all done, 1 for some failed, 2 for usage or no input, 130 if interrupted."""
    arguments = parse_arguments(argv)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names that are not UTF-8
    jobs, errors, ignored = plan(arguments)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    jobs, errors = jobs[rank::processes], errors if rank == 0 else []
    for error in errors:
        print(f"ERROR {printable(error)}", file=sys.stderr)
    if not jobs and not (processes > 1 and rank):
        print("ERROR no photo to correct", file=sys.stderr)
        return 2
    if arguments.dry_run:
        for source, destination in jobs:
            note = " (there already)" if os.path.lexists(destination) and not arguments.overwrite else ""
            print(f"{printable(source)} -> {printable(destination)}{note}")
        return 1 if errors else 0

    from utils.files import remove_unfinished
    from utils.predictor import Predictor
    from utils.weights import WeightsError

    try:
        predictor = Predictor.from_weights(arguments.weights, device_of(arguments.device), arguments.size)
    except (ValueError, WeightsError) as error:
        print(f"ERROR {printable(error)}", file=sys.stderr)
        return 2
    if not arguments.quiet:
        print(f"{predictor.arithmetic}; network at {predictor.size} px", file=sys.stderr)
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, exit_on_sigterm)
    for folder in {job.destination.parent for job in jobs}:
        remove_unfinished(folder)
    counts = {"written": 0, "skipped": 0, "failed": len(errors)}
    try:
        with report_of(arguments, rank) as page:
            for result in correct_all(jobs, predictor, arguments):
                counts[result.status] += 1
                add_to_report(page, result, arguments)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # whoever read the results has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            print(f"ERROR {printable(error.filename)}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    others = f"; {ignored} other files ignored" if ignored and arguments.verbose else ""
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    stream = sys.stderr if arguments.json else sys.stdout
    if not arguments.quiet:
        print(f"done {sum(counts.values())}: {summary}; photos in {printable(arguments.output)}{others}", file=stream)
    return 1 if counts["failed"] else 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "input",
        nargs="*",
        type=Path,
        default=[EXAMPLES],
        help="photos, folders of photos, and patterns such as '*.jpg'",
    )
    add("-o", "--output", type=Path, help="folder for the corrected photos")
    add("-r", "--recursive", action="store_true", help="sub-folders too; the output folder mirrors them")
    weights = REPOSITORY / "weights" / "msec.safetensors"
    add("-w", "--weights", type=Path, default=weights, help="weights file (default: the released weights)")
    add("--strength", type=float, default=1.0, help="from 0, the photo as it is, to 1, the full correction (default)")
    add("--size", type=int, help="longest side in pixels at which the network runs (default: what the weights say)")
    add("--format", choices=FORMATS, help="format to write (default: the photo's own)")
    add("--quality", type=int, help="1 to 100, for JPEG, WebP and AVIF (default: as the photo, or high)")
    add("--suffix", default="", help="text between the name and its ending, such as _corrected")
    add("--strip-metadata", action="store_true", help="leave out EXIF and XMP; the colour profile stays")
    add("--overwrite", action="store_true", help="correct again what the output folder already holds")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto, a GPU where there is one)")
    add("--workers", type=int, help="photos in work at once (default: one for each processor core)")
    add("--report", action="store_true", help="write index.html into the output folder: before and after, side by side")
    add("--dry-run", action="store_true", help="only say what would be written where")
    add("--json", action="store_true", help="print one JSON object for each photo; the summary goes to stderr")
    add("-q", "--quiet", action="store_true", help="errors only")
    add("-v", "--verbose", action="store_true", help="a line for each photo")
    add("--version", action="version", version=f"predict.py {VERSION}")
    arguments = parser.parse_args(argv)
    if arguments.output is None:
        if arguments.input != [EXAMPLES]:
            parser.error("say where the corrected photos go: -o FOLDER")
        arguments.output = Path("results")
    for name, low, high in (("size", 16, 8192), ("quality", 1, 100), ("workers", 1, 1024), ("strength", 0, 1)):
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name} {value}: from {low} to {high}")
    if set("/\\\0\n") & set(arguments.suffix):
        parser.error("--suffix: a text without slashes")
    return arguments


def plan(arguments: argparse.Namespace) -> tuple[list[Job], list[str], int]:
    """Return what to correct and where it goes, what cannot be, with reasons, and how many other files were met.

    Every file keeps its name; none replaces an original or another.
    """
    from utils.photo import OPTIONAL, SUFFIXES

    output, errors, ignored = arguments.output, [], 0
    found: dict[Path, Path] = {}  # photo -> folder of the output
    for given in arguments.input:
        paths = [given]
        if not os.path.lexists(given) and glob.has_magic(str(given)):
            paths = [Path(name) for name in sorted(glob.glob(str(given), recursive=True))]
            if not paths:
                errors.append(f"{given}: no such file")
        for path in paths:
            if not os.path.isdir(path):
                found.setdefault(path, output)
                continue
            try:
                files = sorted(walk(path, output, recursive=arguments.recursive))
            except OSError as error:
                errors.append(f"{error.filename}: {error.strerror}")
                continue
            photos = [file for file in files if file.suffix.lower() in SUFFIXES or file.suffix.lower() in OPTIONAL]
            photos = [file for file in photos if not is_own_work(file, arguments)]
            ignored += len(files) - len(photos)
            if not photos:
                errors.append(
                    f"{path}: no photos in this folder" + ("" if arguments.recursive else ": -r looks deeper")
                )
            for file in photos:
                found.setdefault(file, output / file.parent.relative_to(path))
    jobs: dict[Path, Job] = {}
    for job in destinations(found, arguments):
        source, destination = job
        if destination in jobs and not is_same_file(jobs[destination].source, source):
            errors.append(f"{source}: same name as {jobs[destination].source}: give it another output folder")
        elif is_same_file(destination, source):
            errors.append(f"{source}: would replace the original: give another output folder, or --suffix")
        else:
            jobs.setdefault(destination, job)
    return list(jobs.values()), errors, ignored


def walk(folder: Path, output: Path, *, recursive: bool) -> Iterator[Path]:
    """Yield the files in a folder that are not hidden, but nothing inside the output folder.

    Raises:
        OSError: `folder` cannot be listed.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # hidden, unfinished, and other systems' shadow files
                continue
            if recursive and entry.is_dir(follow_symlinks=False):
                if not is_same_file(Path(entry.path), output):
                    yield from walk(Path(entry.path), output, recursive=True)
            elif entry.is_file():
                yield Path(entry.path)


def is_own_work(file: Path, arguments: argparse.Namespace) -> bool:
    """Tell whether a file was written by an earlier run with --suffix into the folder of the photos."""
    suffix = arguments.suffix
    return bool(suffix) and file.stem.endswith(suffix) and is_same_file(file.parent, arguments.output)


def destinations(found: dict[Path, Path], arguments: argparse.Namespace) -> Iterator[Job]:
    """Yield where each photo goes; those that would get one name, as a.jpg and a.png as PNG, keep their old ending."""
    endings = {"jpeg": ".jpg", "tiff": ".tif"}
    named: dict[Path, list[Path]] = {}
    for source, folder in found.items():
        ending = source.suffix
        if arguments.format and not is_of_format(ending, arguments.format):
            ending = endings.get(arguments.format, f".{arguments.format}")
        elif is_raw(source):
            ending = ".jpg"
        named.setdefault(folder / f"{source.stem}{arguments.suffix}{ending}", []).append(source)
    for destination, sources in named.items():
        for source in sources:
            if len(sources) > 1 and source.suffix != destination.suffix:
                destination_of_one = destination.with_name(f"{source.name}{arguments.suffix}{destination.suffix}")
                yield Job(source, destination_of_one)
            else:
                yield Job(source, destination)


def is_of_format(ending: str, name: str) -> bool:
    """Tell whether a file's ending is one of a format's."""
    from utils.photo import FORMATS as ENDINGS

    return ending.lower() in ENDINGS[name.upper()].split()


def is_raw(path: Path) -> bool:
    """Tell whether a file is a camera's raw file, by its ending."""
    from utils.photo import OPTIONAL

    return OPTIONAL.get(path.suffix.lower()) == "rawpy"


def is_same_file(first: Path, second: Path) -> bool:
    """Tell whether two paths lead to one file, or are equal where there is none."""
    try:
        return os.path.samefile(first, second)
    except OSError:
        return first.absolute() == second.absolute()


def device_of(name: str) -> str:
    """Return the device of this process: under torchrun, "auto" and "cuda" mean its own GPU."""
    if "LOCAL_RANK" in os.environ and name in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return name


def correct_all(jobs: list[Job], predictor: "Predictor", arguments: argparse.Namespace) -> Iterator[Result]:
    """Correct every photo, several at once, one failure never stopping the others; yield and report what came of each.

    Decoding and encoding take most of the time, so every photo has one thread, and so has the network.
    """
    import torch
    from tqdm import tqdm

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(arguments.workers or cores, len(jobs)) or 1
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads // workers, 1))
    memory, pending, rest = Memory(), set[Future[Result]](), iter(jobs)
    bar = tqdm(total=len(jobs), unit="photo", disable=True if arguments.quiet else None)
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            while len(pending) < 2 * workers and (job := next(rest, None)) is not None:
                pending.add(pool.submit(correct_one, job, predictor, arguments, memory))
            if not pending:
                break
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                report(future.result(), arguments)
                bar.update()
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # photos in work are finished and written
        bar.close()
        torch.set_num_threads(threads)


def correct_one(job: Job, predictor: "Predictor", arguments: argparse.Namespace, memory: Memory) -> Result:
    """Correct one photo and write it; whatever goes wrong is in the result."""
    from utils.files import copy_file
    from utils.photo import PhotoError, load_photo, save_photo, size_of

    started = time.monotonic()
    source, destination = job
    try:
        if os.path.lexists(destination) and not arguments.overwrite:
            if not arguments.report:
                return Result(job, "skipped")
            original, corrected = load_photo(source), load_photo(destination)
            return Result(job, "skipped", "", *original.size, 0.0, (preview(original), preview(corrected)))
        pixels, is_deep = size_of(source)
        with memory.reserve(pixels * BYTES_PER_PIXEL * (2 if is_deep else 1)):
            photo = load_photo(source)
            kind = arguments.format.upper() if arguments.format else None
            before = preview(photo) if arguments.report else None
            predictor.correct_in_place(photo.pixels, photo.profile, arguments.strength)
            destination.parent.mkdir(parents=True, exist_ok=True)
            keeps_all = kind in (None, photo.format) and arguments.quality is None and not arguments.strip_metadata
            if arguments.strength == 0 and keeps_all and photo.format != "RAW":
                copy_file(source, destination)
            else:
                keep = not arguments.strip_metadata
                save_photo(destination, photo, format=kind, quality=arguments.quality, keep_metadata=keep)
            width, height = photo.size
            pictures = (before, preview(photo)) if before is not None else None
        return Result(job, "written", "", width, height, time.monotonic() - started, pictures)
    except Exception as error:  # whatever one photo does must not cost the others
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if not isinstance(error, PhotoError | OSError | ValueError):
            reason = f"{type(error).__name__}: {reason}"
        return Result(job, "failed", reason)


def preview(photo: "Photo") -> "Image.Image":
    """Return a small copy for the report, in sRGB."""
    from utils.photo import to_srgb
    from utils.predictor import shrink
    from utils.report import PREVIEW_SIZE

    return to_srgb(shrink(photo.pixels, PREVIEW_SIZE), photo.profile)


def report_of(arguments: argparse.Namespace, rank: int) -> AbstractContextManager["Report | None"]:
    """Return the page to write, or a context without one."""
    if not arguments.report:
        return nullcontext()
    from utils.report import Report

    arguments.output.mkdir(parents=True, exist_ok=True)
    return Report.open(arguments.output / (f"index-{rank}.html" if rank else "index.html"))


def add_to_report(page: "Report | None", result: Result, arguments: argparse.Namespace) -> None:
    """Add a photo to the page, if there is one."""
    if page is None:
        return
    name = printable(result.job.destination.relative_to(arguments.output))
    if result.pictures is not None:
        page.add(name, (result.width, result.height), result.seconds, *result.pictures)
    else:
        page.add_failure(name, result.reason)


def report(result: Result, arguments: argparse.Namespace) -> None:
    """Print what came of a photo: failures always, the others if asked."""
    from tqdm import tqdm

    job, status, reason, width, height, seconds, _ = result
    if status == "failed":
        tqdm.write(f"ERROR {printable(job.source)}: {printable(reason)}", file=sys.stderr)
    elif arguments.verbose:
        where = f"{printable(job.source)} -> {printable(job.destination)}"
        tqdm.write(f"{status} {where}" + (f" ({width}x{height}, {seconds:.2f} s)" if width else ""), file=sys.stderr)
    if arguments.json:
        facts: dict[str, Any] = {"input": str(job.source), "output": str(job.destination), "status": status}
        if reason:
            facts["reason"] = reason
        if width:
            facts |= {"width": width, "height": height, "seconds": round(seconds, 3)}
        print(json.dumps(facts), flush=True)


def printable(text: object) -> str:
    """Return a text on one line: control characters, as names may hold, are escaped."""
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else repr(c)[1:-1] for c in str(text))


def exit_on_sigterm(number: int, frame: object) -> NoReturn:
    """Leave in an orderly way, so that no temporary file stays behind."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
