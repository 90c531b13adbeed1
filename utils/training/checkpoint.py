"""Training checkpoints: whole, checked, written atomically, read without executing anything from the file.

A checkpoint is what `torch.save` writes, followed by its SHA-256: a flipped bit in it would otherwise load silently.
"""

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..files import atomic_path

VERSION = 1
_MARK = b"sha256:"
_TRAILER = len(_MARK) + 64


class CheckpointError(Exception):
    """A checkpoint that cannot be used or written. The message names the file and says what to do."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is not what was written."""


def save_checkpoint(path: Path, state: dict[str, Any], *, keep: int = 1) -> None:
    """Write `state`, made of tensors and plain Python values; a kill in mid-write leaves the old file.

    Args:
        path: NAME.pt.
        state: what to write.
        keep: how many to keep, this one included: the one before becomes NAME-1.pt, the one before that NAME-2.pt.

    Raises:
        CheckpointError: the folder is missing, read-only or full; the old file is intact.
    """
    try:
        buffer = io.BytesIO()
        torch.save({"version": VERSION, **state}, buffer)
        replaced = _second_name(path) if keep > 1 and path.exists() else None
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.write(_MARK + hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
        if replaced is not None:  # only now, so that a whole checkpoint is there at any moment
            for number in range(keep - 1, 1, -1):
                with suppress(FileNotFoundError):
                    os.replace(earlier(path, number - 1), earlier(path, number))
            os.replace(replaced, earlier(path, 1))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"{path}: cannot be written ({error}); the previous checkpoint is intact") from None


def earlier(path: Path, number: int) -> Path:
    """Return the name of the checkpoint `number` before `path`."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _second_name(path: Path) -> Path:
    """Give a file a second name, which it keeps when the first one is replaced."""
    second = path.with_name(f".{path.name}.before")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without links
        shutil.copyfile(path, second)
    return second


def load_newest_checkpoint(path: Path, entries: Iterable[str] = ()) -> tuple[dict[str, Any], Path, list[str]]:
    """Read the newest whole one of `path` and those before it.

    Returns:
        The checkpoint, its path, and what was wrong with the newer ones.

    Raises:
        DamagedCheckpointError: all are damaged.
        CheckpointError: the newest whole one is of another version, or lacks one of `entries`.
        FileNotFoundError: there is none.
    """
    before = [p for p in path.parent.glob(f"{path.stem}-*{path.suffix}") if re.fullmatch(r".*-[1-9]\d*", p.stem)]
    before.sort(key=lambda p: int(p.stem.rpartition("-")[2]))  # a kill may have left a gap
    damages: list[str] = []
    for candidate in [path] * path.exists() + before:
        try:
            return load_checkpoint(candidate, entries), candidate, damages
        except DamagedCheckpointError as error:
            damages.append(str(error))
    if not damages:
        raise FileNotFoundError(path)
    raise DamagedCheckpointError("; ".join(damages))


def load_checkpoint(path: Path, entries: Iterable[str] = ()) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU.

    Raises:
        DamagedCheckpointError: it cannot be read, or is not what was written.
        CheckpointError: it is of another version, or lacks one of `entries`.
    """
    advice = "move it away to start anew, or put a whole checkpoint in its place"
    try:
        data = path.read_bytes()
        body, trailer = data[:-_TRAILER], data[-_TRAILER:]
        if not trailer.startswith(_MARK):
            raise ValueError("it ends without its SHA-256")
        if hashlib.sha256(body).hexdigest().encode() != trailer[len(_MARK) :]:
            raise ValueError("its SHA-256 does not match")
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises errors of any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedCheckpointError(f"{path}: damaged ({reason}): {advice}") from None
    if not isinstance(state, dict) or state.get("version") != VERSION or not set(entries) <= state.keys():
        raise CheckpointError(f"{path}: not a checkpoint of this version of train.py: {advice}")
    return state
