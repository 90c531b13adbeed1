"""Write files so that they are whole or not there at all, and check that they still are what was written."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RELEASED = Path(__file__).parents[1] / "weights"
"""Folder of the released weights, which may be called by their names alone."""
_PREFIX = ".unfinished-"
_UMASK = os.umask(0)  # read once: it can only be read by setting it, for all threads
os.umask(_UMASK)


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; on success it is flushed to disk and renamed to `path`.

    Unless it is to be durable, a power failure soon afterwards may undo the renaming, but never leave half a file.

    Raises:
        OSError: the folder is missing, read-only or full; `path` is then as it was and no temporary file is left.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX, suffix=path.suffix[:16])
    except OSError as error:
        error.filename = str(path)
        raise
    temporary = Path(name)
    try:
        _lock(handle)
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)  # mkstemp's files are private
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk names no file
        raise
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Delete the temporary files that processes killed in `atomic_path` have left in a folder.

    Those of processes that are alive are locked, and stay. Does nothing where there are no such locks (Windows).
    """
    if fcntl is None:
        return
    with suppress(OSError):
        for path in list(folder.glob(f"{_PREFIX}*")):
            with suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def copy_file(source: Path, destination: Path) -> None:
    """Copy a file's contents, atomically."""
    with atomic_path(destination) as temporary:
        shutil.copyfile(source, temporary)


def _lock(handle: int) -> None:
    if fcntl is not None:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def weights_file(name: Path) -> Path:
    """Return the path of a weights file: what is given, or the released file of that name where there is no other."""
    released = RELEASED / f"{name}.safetensors"
    return released if not name.suffix and not os.path.isfile(name) and released.is_file() else name


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(paths: Iterable[Path]) -> str:
    """Return a digest of files' paths, sizes and times of change: another one once any of them was changed."""
    state = "".join(f"{path}{path.stat().st_size}{path.stat().st_mtime_ns}" for path in paths)
    return hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()


def fingerprint(path: Path, sample: int = 65536) -> str:
    """Return a digest of a file's size, beginning and end: equal for copies, and cheap for a large file."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.sha256(f"{size}:".encode() + file.read(sample))
        file.seek(max(size - sample, 0))
        digest.update(file.read())
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where the system allows it (not on Windows)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
