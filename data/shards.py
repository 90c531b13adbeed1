"""Photos in shards: tar files, in WebDataset's layout, of a training set that no disk of one machine holds.

Photos lie in a tar file as they are, so that one can be read by its place in it, over whatever file system the shard is
on: a seek and a read. An index beside each shard tells the places; a shard without one is searched once, in memory.

examples:
  python -m data.shards data/train shards/train                 shards/train-000000.tar, ... and their indices
  python -m data.shards data/train shards/train --megabytes 500
"""

import argparse
import glob
import io
import json
import sys
import tarfile
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from utils.files import atomic_path, fingerprint, write_text
from utils.photos.reading import SUFFIXES, PhotoError, find_photos, open_photo, upright_size

# Run as a program, this is a second copy of a module that its package has loaded: nothing is shared that could differ.
warnings.filterwarnings("ignore", "'data.shards' found in sys.modules", RuntimeWarning)

MEGABYTES = 1000
"""Size of a shard, unless another is asked for."""
INDEX = ".json"
"""What the name of a shard's index ends with, after that of the shard."""


class ShardError(ValueError):
    """A shard that cannot be used. The message names it and says what to do."""


@dataclass(frozen=True)
class Member:
    """A photo in a shard, to be used like the path of a file."""

    shard: Path
    name: str
    offset: int
    """Of its first byte in the shard."""
    length: int
    size: tuple[int, int]
    """Width and height in pixels, upright."""
    digest: str
    """What `utils.files.fingerprint` says of it."""

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def read(self) -> bytes:
        """Return the photo's file.

        Raises:
            PhotoError: the shard cannot be read, or is shorter than its index says.
        """
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.offset)
                content = file.read(self.length)
        except OSError as error:
            raise PhotoError(f"{self.shard}: {error.strerror}") from None
        if len(content) < self.length:
            raise PhotoError(f"{self.shard} ends within it: copy the shard again")
        return content


@contextmanager
def as_file(photo: Path | Member) -> Iterator[Path]:
    """Give the path of a photo's file: of a copy, for one in a shard."""
    if isinstance(photo, Path):
        yield photo
        return
    with tempfile.NamedTemporaryFile(suffix=PurePosixPath(photo.name).suffix) as file:
        file.write(photo.read())
        file.flush()
        yield Path(file.name)


def open_shards(paths: Sequence[str | Path]) -> tuple[list[Member], list[tuple[str, str]]]:
    """Return the photos of shards, in their order, and those that cannot be used, each with the reason.

    Args:
        paths: of the shards; one with "*" stands for all that it matches, sorted.

    Raises:
        ShardError: a shard is missing or listed twice, is no tar file, does not fit its index, or holds a photo that
            another of the same prefix holds too.
    """
    members: list[Member] = []
    holders: dict[tuple[str, str, str], Path] = {}
    failures: list[tuple[str, str]] = []
    for path in _expanded(paths):
        try:
            found = _of_index(path) if Path(f"{path}{INDEX}").exists() else _of_tar(path, failures)
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror or error}; train_data_dir lists shards that exist") from None
        except tarfile.TarError as error:
            raise ShardError(f"{path}: not a tar file ({error}); python -m data.shards makes shards") from None
        prefix = str(path).rpartition("-")[0]
        for member in found:
            other = holders.setdefault((prefix, member.name, member.digest), path)
            if other != path:
                raise ShardError(f"{path}: {member.name} is in {other} too: pack the folder again")
        members += found
    return members, failures


def _expanded(paths: Sequence[str | Path]) -> list[Path]:
    """Return the paths, patterns with "*" as what they match."""
    found: list[Path] = []
    for path in paths:
        matching = sorted(glob.glob(str(path))) if "*" in str(path) else [path]
        if not matching:
            raise ShardError(f"{path}: no shards of this name; python -m data.shards makes some of a folder")
        found += map(Path, matching)
    for path, count in Counter(found).items():
        if count > 1:
            raise ShardError(f"{path}: listed twice; list each shard once")
    return found


def _of_index(path: Path) -> list[Member]:
    """Return what a shard's index lists."""
    advice = f"delete {path}{INDEX}, or pack the shard again"
    try:
        index = json.loads(Path(f"{path}{INDEX}").read_text(encoding="utf-8"))
        members = [
            Member(path, str(n), int(o), int(k), (int(w), int(h)), str(d)) for n, o, k, w, h, d in index["photos"]
        ]
        expected = int(index["bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}{INDEX}: not an index ({type(error).__name__}: {error}): {advice}") from None
    if path.stat().st_size != expected:
        raise ShardError(f"{path}: {path.stat().st_size} bytes, but its index says {expected}: {advice}")
    return members


def _of_tar(path: Path, failures: list[tuple[str, str]]) -> list[Member]:
    """Return the photos that a shard without an index holds; what is no photo by its name is left out."""
    members = []
    with tarfile.open(path, "r:") as archive:
        for entry in archive:
            if not entry.isfile() or PurePosixPath(entry.name).suffix.lower() not in SUFFIXES:
                continue
            member = Member(path, entry.name, entry.offset_data, entry.size, (0, 0), "")
            try:
                with as_file(member) as copy, open_photo(copy) as image:
                    members.append(replace(member, size=upright_size(image), digest=fingerprint(copy)))
            except PhotoError as error:
                failures.append((str(member), str(error)))
    return members


def pack(folder: Path, prefix: Path, megabytes: int = MEGABYTES) -> list[Path]:
    """Write the photos below a folder, in the order of their paths, into PREFIX-000000.tar and so on, with indices.

    Shards of this prefix are replaced; what an earlier, longer set has beyond the new one is deleted, and named.

    Returns:
        The shards. What cannot be opened as a photo is named on the standard error and left out.

    Raises:
        OSError: a file cannot be read, or a shard not written; the shards before it are whole.
        ShardError: there are no photos.
    """
    shards: list[Path] = []
    waiting: list[tuple[Path, tuple[int, int]]] = []
    bytes_waiting = 0
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for path in find_photos(folder):
        try:
            with open_photo(path) as image:
                size = upright_size(image)
        except PhotoError as error:
            print(f"ERROR {path}: {error}; left out", file=sys.stderr)
            continue
        length = path.stat().st_size
        if waiting and bytes_waiting + length > megabytes * 1e6:
            shards.append(_write_shard(folder, prefix, len(shards), waiting))
            waiting, bytes_waiting = [], 0
        waiting.append((path, size))
        bytes_waiting += length
    if waiting:
        shards.append(_write_shard(folder, prefix, len(shards), waiting))
    if not shards:
        raise ShardError(f"{folder}: no photos to pack in it")
    for old in sorted(set(prefix.parent.glob(f"{glob.escape(prefix.name)}-{6 * '[0-9]'}.tar")) - set(shards)):
        print(f"deleted {old}: of an earlier set", file=sys.stderr)
        old.unlink()
        Path(f"{old}{INDEX}").unlink(missing_ok=True)
    return shards


def _write_shard(folder: Path, prefix: Path, number: int, photos: list[tuple[Path, tuple[int, int]]]) -> Path:
    """Write one shard and its index; the same photos make the same bytes."""
    path = prefix.with_name(f"{prefix.name}-{number:06}.tar")
    rows: list[Any] = []
    with atomic_path(path) as temporary:
        with tarfile.open(temporary, "w:", format=tarfile.PAX_FORMAT) as archive:
            for photo, size in photos:
                content = photo.read_bytes()
                entry = tarfile.TarInfo(photo.relative_to(folder).as_posix())
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
                rows.append(
                    [
                        entry.name,
                        archive.offset - -(-len(content) // 512) * 512,
                        len(content),
                        *size,
                        fingerprint(photo),
                    ]
                )
        total = temporary.stat().st_size
        Path(f"{path}{INDEX}").unlink(missing_ok=True)  # of an earlier shard: a kill must not leave it beside this one
    write_text(Path(f"{path}{INDEX}"), json.dumps({"bytes": total, "photos": rows}))
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="photos, sub-folders included")
    parser.add_argument("prefix", type=Path, help="what the names of the shards begin with")
    parser.add_argument("--megabytes", type=int, default=MEGABYTES, help=f"of a shard (default: {MEGABYTES})")
    arguments = parser.parse_args(argv)
    if arguments.megabytes < 1:
        parser.error(f"--megabytes {arguments.megabytes}: 1 or more")
    try:
        shards = pack(arguments.folder, arguments.prefix, arguments.megabytes)
    except (OSError, ShardError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 1
    for path in shards:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
