"""Weights files: safetensors that carry their own architecture, with a SHA-256 beside them.

`NAME.safetensors` holds the tensors and, in its header under the key `exposure_correction`, a JSON object with all that
is needed to rebuild and run the network. `NAME.safetensors.sha256` holds the digest, as the command `sha256sum` prints.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import atomic_path, sha256

KEY = "exposure_correction"
VERSION = 1


class WeightsError(Exception):
    """A weights file that cannot be used. The message names the file and says what to do."""


class Weights(NamedTuple):
    """What a weights file holds."""

    state: dict[str, Tensor]
    """The network's state dict, its floating-point tensors in float32."""
    architecture: SimpleNamespace
    """What the network is built from: the keys of conf.json that describe it."""
    working_size: int
    """Longest side in pixels at which the network is to be run."""
    least_size: int
    """Short side in pixels from which on it is to be run, where a photo's shape allows it; older files lack it: 0."""
    training: dict[str, Any]
    """How the weights were made: configuration, epoch, validation figures."""


def save_weights(
    path: Path,
    state: dict[str, Tensor],
    *,
    architecture: dict[str, Any],
    working_size: int,
    least_size: int = 0,
    training: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a weights file and its digest, atomically; arguments as in `Weights`, `dtype` for floating-point tensors.

    Raises:
        OSError: the folder is missing, read-only or full.
    """
    header = {
        "version": VERSION,
        "architecture": architecture,
        "working_size": working_size,
        "least_size": least_size,
        "training": training,
    }
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in state.items()
    }
    if _digest_path(path).is_dir():
        raise OSError(f"{_digest_path(path)} is a folder: the digest of {path.name} belongs there")
    with atomic_path(_digest_path(path)) as digest, atomic_path(path) as temporary:  # both are there, or neither
        try:
            save_file(tensors, temporary, metadata={KEY: json.dumps(header)})
        except SafetensorError as error:  # how the library reports a full or read-only disk
            raise OSError(str(error)) from None
        digest.write_bytes(os.fsencode(f"{sha256(temporary)}  {path.name}\n"))


def load_weights(path: Path) -> Weights:
    """Read a weights file after checking its digest.

    Raises:
        WeightsError: the file or its digest is missing, they do not match, or the file is not one of ours.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: not a weights file: NAME.safetensors is expected, as train.py writes it")
    _check_digest(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: _in_float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from None
    if KEY not in metadata:
        raise WeightsError(f"{path}: not written by this project's train.py, so its network is unknown")
    try:
        header = json.loads(metadata[KEY])
        if header["version"] != VERSION:
            raise WeightsError(f"{path}: of version {header['version']}, but this program reads version {VERSION}")
        sizes = header["working_size"], header.get("least_size", 0)
        return Weights(state, SimpleNamespace(**header["architecture"]), *sizes, header["training"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its header is damaged ({error!r}): copy or download it again") from None


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def is_whole(path: Path) -> bool:
    """Tell whether a weights file and its digest are there and match."""
    try:
        _check_digest(path)
    except WeightsError:
        return False
    return True


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _check_digest(path: Path) -> None:
    try:
        actual = sha256(path)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from None
    try:
        expected = os.fsdecode(_digest_path(path).read_bytes()).split()[0]
    except (OSError, IndexError):
        raise WeightsError(
            f"{path}: its digest {_digest_path(path).name} is missing or unreadable: copy it along with the weights"
        ) from None
    if actual != expected:
        raise WeightsError(f"{path}: damaged: SHA-256 {actual}, expected {expected}: copy or download it again")
