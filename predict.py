"""Correct the exposure of photos.

examples:
  python predict.py                            correct data/examples into results/
  python predict.py PHOTO.jpg -o corrected     one photo
  python predict.py FOLDER -o corrected        every photo in a folder
  python predict.py FOLDER -r -o corrected     and in its sub-folders, which are kept apart
  python predict.py FOLDER -o corrected --strength 0.7 --exposure 0.3 --format jpeg --quality 90
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
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from utils.files import RELEASED, weights_file
from utils.stop import StopRequest

if TYPE_CHECKING:  # torch takes seconds to import: only once the arguments are known to be good
    from PIL import Image
    from torch import Tensor

    from utils.photos.predictor import Predictor
    from utils.photos.reading import Photo
    from utils.photos.report import Report

VERSION = "0.2.0"
REPOSITORY = Path(__file__).resolve().parent
EXAMPLES = REPOSITORY / "data" / "examples"
FORMATS = ("jpeg", "png", "webp", "tiff", "bmp", "avif")


class Job(NamedTuple):
    """One photo to correct."""

    source: Path
    destination: Path


class Result(NamedTuple):
    """What became of a photo."""

    job: Job
    status: str
    """"written", "skipped", "failed" or, of a dry run, "planned"."""
    reason: str = ""
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    pictures: tuple["Image.Image", "Image.Image"] | None = None
    """Small copies before and after, for the report."""
    curves: "Tensor | None" = None
    """What leads from the one to the other, at full strength."""


class Memory:
    """Let as many photos be in work at once as fit into 16 bytes per pixel of the largest one, or 128 MB.

    One that does not fit is worked on alone.
    """

    def __init__(self) -> None:
        self.used = self.allowed = 0
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, pixels: int, amount: int) -> Iterator[None]:
        """Wait until `amount` bytes, for a photo of so many pixels, fit."""
        with self.changed:
            self.allowed = max(self.allowed, 16 * pixels, 128 << 20)
            self.changed.wait_for(lambda: not self.used or self.used + amount <= self.allowed)
            self.used += amount
        try:
            yield
        finally:
            with self.changed:
                self.used -= amount
                self.changed.notify_all()


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0 for all done, 1 for some failed, 2 for usage or no input, 130 if interrupted."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None where a stream is closed
    sys.stderr = sys.stderr or open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names that are not UTF-8
    try:
        code = run(parse_arguments(argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        with suppress(OSError):
            print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the results has gone
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of the report; a photo's own errors are named with it
        print(f"ERROR {printable(error.filename or 'standard output')}: {error.strerror}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace) -> int:
    """Correct what the arguments say and return the exit code."""
    refusals: list[tuple[Path, str]] = []
    jobs, ignored = plan(arguments, refusals)
    rank, processes = 0, 1
    if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun
        rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        jobs, refusals = jobs[rank::processes], refusals if rank == 0 else []
    for path, reason in refusals:
        say(Result(Job(path, path), "failed", reason), arguments)
    if not jobs and processes == 1:
        print("ERROR no photo to correct", file=sys.stderr)
        return 2
    if arguments.dry_run:
        for source, destination in jobs:
            is_there = os.path.lexists(destination) and not arguments.overwrite
            if arguments.json:
                say(Result(Job(source, destination), "skipped" if is_there else "planned"), arguments)
            else:
                print(f"{printable(source)} -> {printable(destination)}{' (there already)' if is_there else ''}")
        return 1 if refusals else 0

    from utils.files import remove_unfinished
    from utils.photos.predictor import Predictor
    from utils.weights import WeightsError

    try:
        predictor = Predictor.from_weights(
            arguments.weights, device_of(arguments.device), arguments.size, careful=arguments.careful
        )
    except (ValueError, WeightsError) as error:
        print(f"ERROR {printable(error)}", file=sys.stderr)
        return 2
    if not arguments.quiet:
        share = f"; process {rank + 1} of {processes}, {len(jobs)} photos" if processes > 1 else ""
        print(f"{predictor.arithmetic}; network at {predictor.size} px{share}", file=sys.stderr)
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, exit_on_sigterm)
    for folder in {job.destination.parent for job in jobs}:
        remove_unfinished(folder)
    counts = {"written": 0, "skipped": 0, "failed": len(refusals)}
    with all_together(processes), report_of(arguments, rank) as page:
        for path, reason in refusals:
            if page is not None:
                page.add_failure(printable(path), reason)
        for result in correct_all(jobs, predictor, arguments):
            counts[result.status] += 1
            add_to_report(page, result, arguments)
    others = f"; {ignored} other files ignored" if ignored and arguments.verbose else ""
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    if not arguments.quiet:
        stream = sys.stderr if arguments.json else sys.stdout
        print(f"done {sum(counts.values())}: {summary}; photos in {printable(arguments.output)}{others}", file=stream)
    return 1 if counts["failed"] else 0


@contextmanager
def all_together(processes: int) -> Iterator[None]:
    """Let the processes that torchrun started end together: it kills the others when one has ended with an error."""
    if processes == 1:
        yield
        return
    from torch import distributed

    distributed.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "input",
        nargs="*",
        type=path_of,
        default=[EXAMPLES],
        help="photos, folders of photos, and patterns such as '*.jpg'",
    )
    add("-o", "--output", type=path_of, help="folder for the corrected photos")
    add("-r", "--recursive", action="store_true", help="sub-folders too; the output folder mirrors them")
    weights = RELEASED / "msec.safetensors"
    add("-w", "--weights", type=path_of, default=weights, help="weights file, or the name of released weights (msec)")
    add("--strength", type=float, default=1.0, help="from 0, the photo as it is, to 1, the full correction (default)")
    add("--exposure", type=float, default=0.0, help="stops brighter than the correction, or darker: from -3 to 3 (0)")
    add("--careful", action="store_true", help="half the correction for photos whose lights are exposed, not clipped")
    add(
        "--size",
        type=int,
        help="longest side in pixels at which the network runs (default: what the weights say); more for long photos",
    )
    add("--format", choices=FORMATS, help="format to write (default: the photo's own)")
    add("--quality", type=int, help="1 to 100, for JPEG, WebP and AVIF (default: as the photo, or high)")
    add("--suffix", default="", help="text between the name and its ending, such as _corrected")
    add("--strip-metadata", action="store_true", help="leave out EXIF and XMP; the colour profile stays")
    add("--overwrite", action="store_true", help="correct again what the output folder already holds")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto, a GPU where there is one)")
    add("--workers", type=int, help="photos in work at once (default: two for each processor core)")
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
    limits = {"size": (16, 8192), "quality": (1, 100), "workers": (1, 1024), "strength": (0, 1), "exposure": (-3, 3)}
    for name, (low, high) in limits.items():
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name} {value}: from {low} to {high}")
    arguments.weights = weights_file(arguments.weights)
    if not os.path.exists(arguments.weights):
        parser.error(f"-w {arguments.weights}: no such file")
    if set("/\\\0\n") & set(arguments.suffix):
        parser.error("--suffix: a text without slashes")
    return arguments


def path_of(text: str) -> Path:
    """Return a path; "" is none, as from a variable of the shell that is not set, and not the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; the current folder is .")
    return Path(text)


def plan(arguments: argparse.Namespace, refusals: list[tuple[Path, str]]) -> tuple[list[Job], int]:
    """Return what to correct and where it goes, and how many other files were met; what cannot be goes to `refusals`.

    Every file keeps its name; none replaces an original or another.
    """
    ignored = 0
    found: dict[Path, Path] = {}  # photo -> folder of the output
    for given in arguments.input:
        paths = [given]
        if not os.path.lexists(given) and glob.has_magic(str(given)):
            paths = [Path(name) for name in sorted(glob.glob(str(given), recursive=True))]
            if not paths:
                refusals.append((given, "no such file"))
        for path in paths:
            try:
                os.stat(path)
            except OSError as error:
                refusals.append((path, str(error.strerror)))
                continue
            if not os.path.isdir(path):
                found.setdefault(path, arguments.output)
                continue
            if is_same_file(path, arguments.output) and not arguments.overwrite:
                beside = (other for other in (*arguments.input, *paths) if os.path.isfile(other))
                if any(is_same_file(path.absolute().parent, other.absolute().parent) for other in beside):
                    continue  # "*" means photos and, from the second run on, what was made of them
            before = len(refusals)
            files = sorted(walk(path, arguments, refusals))
            photos = [file for file in files if is_of_a_photo(file.suffix)]
            ignored += len(files) - len(photos)
            folders = {file: arguments.output / file.parent.relative_to(path) for file in photos}
            found |= {file: to for file, to in folders.items() if not is_own_work(file, to, arguments.suffix)}
            if not photos and len(refusals) == before:
                refusals.append(
                    (path, "no photos in this folder" + ("" if arguments.recursive else ": -r looks deeper"))
                )
    originals = {identity(source): source for source in found}
    jobs: dict[str, Job] = {}
    is_blind = is_case_blind(arguments.output)
    for job in destinations(found, arguments):
        source, destination = job
        key = str(destination).casefold() if is_blind else str(destination)
        if key in jobs and not is_same_file(jobs[key].source, source):
            refusals.append((source, f"same name as {jobs[key].source}: give it another output folder"))
        elif (original := originals.get(identity(destination))) is not None:
            what = "the original" if original == source else f"the original {original}"
            refusals.append((source, f"would replace {what}: give another output folder, or --suffix"))
        else:
            jobs.setdefault(key, job)
    return list(jobs.values()), ignored


def walk(folder: Path, arguments: argparse.Namespace, refusals: list[tuple[Path, str]]) -> Iterator[Path]:
    """Yield the files in a folder that are not hidden, but nothing inside the output folder."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        refusals.append((folder, str(error.strerror)))
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):  # hidden, unfinished, and other systems' shadow files
            continue
        if arguments.recursive and entry.is_dir(follow_symlinks=False):
            if not is_same_file(path, arguments.output):
                yield from walk(path, arguments, refusals)
        elif os.path.isfile(path) or (entry.is_symlink() and not os.path.exists(path)):  # broken links are named later
            yield path


def is_own_work(file: Path, folder: Path, suffix: str) -> bool:
    """Tell whether a file was written by an earlier run with --suffix: beside the photo that it was made from."""
    if not suffix or not file.stem.endswith(suffix) or not is_same_file(file.parent, folder):
        return False
    stem = file.stem.removesuffix(suffix)
    siblings = [other for other in file.parent.iterdir() if stem in (other.stem, other.name) and other != file]
    return any(may_be_made_of(file, sibling) for sibling in siblings)


def may_be_made_of(file: Path, photo: Path) -> bool:
    """Tell whether a file may be a photo's correction: of its size, and taken when it was, as far as both say."""
    from PIL.ExifTags import IFD, Base

    from utils.photos.reading import open_photo, upright_size

    with suppress(Exception):  # what cannot be read is named later; a raw file has a size of its own
        if content_of(photo) != "RAW":
            with open_photo(photo) as before, open_photo(file) as after:
                taken = [image.getexif().get_ifd(IFD.Exif).get(Base.DateTimeOriginal) for image in (before, after)]
                return upright_size(before) == upright_size(after) and (not all(taken) or taken[0] == taken[1])
    return True


def destinations(found: dict[Path, Path], arguments: argparse.Namespace) -> Iterator[Job]:
    """Yield where each photo goes; those that would get one name, as a.jpg and a.png as PNG, keep their old ending.

    A camera's raw file keeps it always, as there is often a JPEG of the same name beside it. A JPEG called .heic or
    .dng becomes .jpg, a HEIC called .jpg .heic; among the other formats a photo keeps its name, be it right or wrong.
    """
    endings = {"JPEG": ".jpg", "TIFF": ".tif", "HEIF": ".heic", "RAW": ".jpg"}
    named: dict[Path, list[Path]] = {}
    raw = set[Path]()
    for source, folder in found.items():
        stem, ending, content = source.stem, source.suffix, content_of(source)
        kind = arguments.format.upper() if arguments.format else content
        is_wrong = kind and ending.lower() not in endings_of(kind)
        if is_wrong and (arguments.format or is_optional(ending) or kind in ("HEIF", "RAW")):
            ending = endings.get(kind, f".{kind.lower()}")
        if content == "RAW":
            raw.add(source)
            stem = source.name
        named.setdefault(folder / f"{stem}{arguments.suffix}{ending}", []).append(source)
    for destination, sources in named.items():
        for source in sources:
            if len(sources) > 1 and source.suffix != destination.suffix and source not in raw:
                yield Job(source, destination.with_name(f"{source.name}{arguments.suffix}{destination.suffix}"))
            else:
                yield Job(source, destination)


def is_case_blind(folder: Path) -> bool:
    """Tell whether a folder's file system takes A.jpg and a.jpg for one file, as those of macOS and Windows do."""
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.exists() and place.name.swapcase() != place.name:
            return is_same_file(place, place.with_name(place.name.swapcase()))
    return False


def identity(path: Path) -> tuple[int, int] | str:
    """Return what tells a file from others, or an absolute path where there is none."""
    try:
        status = os.stat(path)
        return status.st_dev, status.st_ino
    except OSError:
        return str(path.absolute())


def content_of(path: Path) -> str:
    """Return a photo's format, by its content; "" where that cannot be told: the reason is named when it is read."""
    from utils.photos.reading import PhotoError, format_of

    with suppress(PhotoError):
        return format_of(path)
    return ""


def endings_of(kind: str) -> list[str]:
    """Return the endings, in lower case, of a format; none for raw files, which become JPEGs."""
    from utils.photos.reading import FORMATS as ENDINGS
    from utils.photos.reading import OPTIONAL

    if kind == "HEIF":
        return [ending for ending, package in OPTIONAL.items() if package == "pillow-heif"]
    return ENDINGS[kind].split() if kind in ENDINGS else []


def is_of_a_photo(ending: str) -> bool:
    """Tell whether files with this ending are taken from folders."""
    from utils.photos.reading import SUFFIXES

    return ending.lower() in SUFFIXES or is_optional(ending)


def is_optional(ending: str) -> bool:
    """Tell whether a file's ending is that of a format that needs a package of its own."""
    from utils.photos.reading import OPTIONAL

    return ending.lower() in OPTIONAL


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
    workers = min(arguments.workers or 2 * cores, len(jobs)) or 1
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads // workers, 1))
    memory, pending, rest = Memory(), set[Future[Result]](), iter(jobs)
    bar = tqdm(total=len(jobs), unit="photo", disable=True if arguments.quiet else None)
    pool = ThreadPoolExecutor(workers)
    with StopRequest() as stop:  # an exception in the middle of `wait` would leave locks behind that workers wait for
        try:
            while not stop.signal:
                while len(pending) < 2 * workers and (job := next(rest, None)) is not None:
                    pending.add(pool.submit(correct_one, job, predictor, arguments, memory))
                if not pending:
                    break
                done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                for future in done:
                    say(future.result(), arguments)
                    bar.update()
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # photos in work are finished and written
            bar.close()
            torch.set_num_threads(threads)
    stop.raise_it()


def correct_one(job: Job, predictor: "Predictor", arguments: argparse.Namespace, memory: Memory) -> Result:
    """Correct one photo and write it; whatever goes wrong is in the result."""
    from utils.files import copy_file
    from utils.photos.reading import PhotoError, load_photo, memory_of
    from utils.photos.writing import save_photo

    started = time.monotonic()
    source, destination = job
    try:
        if os.path.lexists(destination) and not arguments.overwrite:
            if arguments.report:
                with suppress(PhotoError, OSError, ValueError), memory.reserve(*memory_of(source)):
                    photo = load_photo(source)
                    pictures = preview(photo), preview(load_photo(destination))
                    maps = preview_curves(photo, pictures[0], predictor)
                    is_known = photo.alpha is not None or is_made_by(maps, *pictures, arguments)
                    shown = maps if is_known else None  # where the settings are those of now
                    return Result(job, "skipped", "", *photo.size, 0.0, pictures, shown)
            return Result(job, "skipped")
        with memory.reserve(*memory_of(source)):
            photo = load_photo(source)
            kind = arguments.format.upper() if arguments.format else None
            before = preview(photo) if arguments.report else None
            shown = preview_curves(photo, before, predictor) if before is not None else None
            predictor.correct_in_place(photo.pixels, photo.profile, arguments.strength, arguments.exposure, photo.alpha)
            destination.parent.mkdir(parents=True, exist_ok=True)
            keeps_all = kind in (None, photo.format) and arguments.quality is None and not arguments.strip_metadata
            if arguments.strength == arguments.exposure == 0 and keeps_all and photo.format != "RAW":
                copy_file(source, destination)
            else:
                keep = not arguments.strip_metadata
                save_photo(destination, photo, format=kind, quality=arguments.quality, keep_metadata=keep)
            width, height = photo.size
            after = (before, preview(photo)) if before is not None else None
        return Result(job, "written", "", width, height, time.monotonic() - started, after, shown)
    except Exception as error:  # whatever one photo does must not cost the others
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, FileExistsError | NotADirectoryError):  # not the photo
            reason = f"{error.filename}: {reason}; give another output folder"
        if not isinstance(error, PhotoError | OSError | ValueError):
            reason = f"{type(error).__name__}: {reason}"
        return Result(job, "failed", reason)


def preview(photo: "Photo") -> "Image.Image":
    """Return a small copy for the report, in sRGB."""
    from utils.photos.predictor import encoded, reduced, seen
    from utils.photos.reading import to_srgb
    from utils.photos.report import PREVIEW_SIZE

    pixels, profile = encoded(photo.pixels, photo.profile)
    return to_srgb(reduced(seen(pixels, photo.alpha), PREVIEW_SIZE), profile)


def preview_curves(photo: "Photo", before: "Image.Image", predictor: "Predictor") -> "Tensor":
    """Return the curves by which the report corrects a small copy: as those of the photo, but in sRGB."""
    from PIL import Image

    pixels = photo.pixels
    is_grey = pixels.mode == "L" if isinstance(pixels, Image.Image) else pixels.shape[2] == 1
    return predictor.fit(before.convert("L") if is_grey else before)


def is_made_by(maps: "Tensor", before: "Image.Image", after: "Image.Image", arguments: argparse.Namespace) -> bool:
    """Tell whether these curves, at the strength and exposure asked for, make one small copy of the other."""
    from PIL import ImageChops, ImageStat

    from models import curves
    from utils.photos.full_size import apply_curves

    made = before.convert("L") if maps.shape[1] == 1 else before.copy()
    apply_curves(made, curves.adjust(maps[None], arguments.strength, arguments.exposure)[0], less_grain=True)
    difference = ImageStat.Stat(ImageChops.difference(made.convert("RGB"), after))
    return before.size == after.size and max(difference.mean) < 4


def report_of(arguments: argparse.Namespace, rank: int) -> AbstractContextManager["Report | None"]:
    """Return the page to write, or a context without one."""
    if not arguments.report:
        return nullcontext()
    from utils.photos.report import Report

    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / (f"index-{rank}.html" if rank else "index.html")
    return Report.open(path, arguments.strength, arguments.exposure, careful=arguments.careful)


def add_to_report(page: "Report | None", result: Result, arguments: argparse.Namespace) -> None:
    """Add a photo to the page, if there is one."""
    if page is None:
        return
    name = printable(result.job.destination.relative_to(arguments.output))
    if result.pictures is not None:
        page.add(name, (result.width, result.height), result.seconds, *result.pictures, result.curves)
    elif result.status == "failed":
        page.add_failure(name, result.reason)


def say(result: Result, arguments: argparse.Namespace) -> None:
    """Print what came of a photo: failures always, the others if asked."""
    from tqdm import tqdm

    job, status, reason, width, height, seconds, *_ = result
    if status == "failed":
        tqdm.write(f"ERROR {printable(job.source)}: {printable(reason)}", file=sys.stderr)
    elif arguments.verbose:
        where = f"{printable(job.source)} -> {printable(job.destination)}"
        tqdm.write(f"{status} {where}" + (f" ({width}x{height}, {seconds:.2f} s)" if width else ""), file=sys.stderr)
    if arguments.json:
        output = None if job.destination == job.source else str(job.destination)  # None: refused before the start
        facts: dict[str, Any] = {"input": str(job.source), "output": output, "status": status}
        if reason:
            facts["reason"] = reason
        if width:
            facts |= {"width": width, "height": height, "seconds": round(seconds, 3)}
        print(json.dumps(facts) + "\n", end="", flush=True)  # at once: processes share the stream


def printable(text: object) -> str:
    """Return a text on one line: control characters, as names may hold, are escaped."""
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else repr(c)[1:-1] for c in str(text))


def exit_on_sigterm(number: int, frame: object) -> NoReturn:
    """Leave in an orderly way, so that no temporary file stays behind."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
