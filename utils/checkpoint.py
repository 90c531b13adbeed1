"""Training checkpoints: whole, written atomically, read without executing anything from the file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .files import atomic_path

VERSION = 1


class CheckpointError(Exception):
    """A checkpoint that cannot be used or written. The message names the file and says what to do."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, made of tensors and plain Python values; a kill in mid-write leaves the old file.

    Raises:
        CheckpointError: the folder is missing, read-only or full; the old file is intact.
    """
    try:
        with atomic_path(path) as temporary:
            torch.save({"version": VERSION, **state}, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"{path}: cannot be written ({error}); the previous checkpoint is intact") from None


def load_checkpoint(path: Path, entries: Iterable[str] = ()) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU.

    Raises:
        CheckpointError: the file is damaged, of another version, or lacks one of `entries`.
    """
    advice = "move it away to start anew, or put a whole checkpoint in its place"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises errors of any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged ({reason}): {advice}") from None
    if not isinstance(state, dict) or state.get("version") != VERSION or not set(entries) <= state.keys():
        raise CheckpointError(f"{path}: not a checkpoint of this version of train.py: {advice}")
    return state
