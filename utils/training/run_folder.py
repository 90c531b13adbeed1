"""The folder of a training run: who may write to it, and the files beside the checkpoints."""

import csv
import errno
import importlib.util
import io
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..files import remove_unfinished, write_text
from .plots import Panel, draw_curves

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "safetensors")
_PANELS: tuple[Panel, ...] = (
    ("Loss (training)", ("loss", "reconstruction", "pyramid", "corrected", "ssim", "adversarial"), False),
    ("PSNR in dB", ("psnr", "valid_psnr"), False),
    ("SSIM (validation)", ("valid_ssim",), False),
    ("Discriminator's loss (ln 2 = 0.69: it cannot tell)", ("discriminator",), False),
    ("Norm of the gradients", ("gradient", "discriminator_gradient"), True),
    ("Learning rate", ("lr", "discriminator_lr"), True),
)


class RunFolderError(Exception):
    """A folder that another run is writing to. The message names it and says what to do."""


class RunFolder:
    """A run's folder, held by one run at a time until `close`, and the files in it that are not checkpoints.

    Args:
        path: made if it is missing.

    Raises:
        RunFolderError: another run holds it.
        OSError: it cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "samples").mkdir(parents=True, exist_ok=True)
        self._lock = open(path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115  # held open: the lock ends with it
        try:
            if fcntl is not None:  # lockf's locks, unlike flock's, are not kept by loader workers that outlive the run
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._lock.seek(0)
            holder = self._lock.read().strip()
            self._lock.close()
            raise RunFolderError(
                f"{path}: another run ({holder}) is training into this folder: "
                "give model_save_dir another one, or wait until it ends"
            ) from None
        except OSError:  # a file system without locks
            pass
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {platform.node()}")
        self._lock.flush()
        remove_unfinished(path)
        remove_unfinished(path / "samples")
        self._has_board = importlib.util.find_spec("tensorboard") is not None
        self._board: Any = None

    def close(self) -> None:
        """Let another run use the folder."""
        if self._board is not None:
            self._board.close()
        self._lock.close()

    def describe(self, config: Config, arithmetic: str, processes: int) -> None:
        """Write config.json, the resolved configuration, and add this start to environment.json."""
        write_text(self.path / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        path = self.path / "environment.json"
        starts: list[Any] = []
        with suppress(OSError, ValueError):
            starts = list(json.loads(path.read_text(encoding="utf-8")))
        starts.append(environment(arithmetic, processes))
        write_text(path, json.dumps(starts, indent=2) + "\n")

    def write_metrics(self, history: list[dict[str, float]]) -> None:
        """Write metrics.csv, one row per epoch, and the newest row to TensorBoard, where that is installed."""
        names = list(dict.fromkeys(name for row in history for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_text(self.path / "metrics.csv", table.getvalue())
        if self._has_board:
            try:
                self._write_board(history[-1])
            except Exception as error:  # of a package that training does without
                self._has_board = False
                print(f"WARNING TensorBoard cannot be written to, and is left out: {error}", file=sys.stderr)

    def _write_board(self, row: dict[str, float]) -> None:
        epoch = int(row["epoch"])
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            # what a killed run wrote for epochs that are now repeated is hidden
            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=epoch)
        for name, value in row.items():
            self._board.add_scalar(name, value, epoch)
        self._board.flush()

    def draw_curves(self, history: list[dict[str, float]]) -> None:
        """Write curves.png, if an epoch has been finished."""
        if history:
            draw_curves(self.path / "curves.png", history, _PANELS)


def require_writable(path: Path) -> None:
    """Raise `PermissionError` if a run's folder cannot be made or written to."""
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise PermissionError(errno.EACCES, "cannot be written to", str(above))


def environment(arithmetic: str, processes: int) -> dict[str, Any]:
    """Return what a result may depend on beside the configuration: versions, device, commit and command."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _commit(),
        "device": arithmetic,
        "processes": processes,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "versions": versions,
    }


def _commit() -> str | None:
    """Return the commit of this code, with a mark if files were changed since; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        run = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True)
    except OSError:  # no git
        return None
    return run.stdout.strip() or None
