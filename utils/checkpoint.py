"""Training checkpoints: whole, written atomically, read without executing anything from the file."""

import pickle
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


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU.

    Raises:
        CheckpointError: the file is damaged or of another version.
    """
    advice = "move it away to start anew, or put a whole checkpoint in its place"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged ({reason}): {advice}") from None
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise CheckpointError(f"{path}: not a checkpoint of this version of train.py: {advice}")
    return state
