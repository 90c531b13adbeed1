"""Decoded and reduced photos on disk, so that a photo is decoded once and not in every epoch."""

import hashlib
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from utils.files import atomic_path, sha256
from utils.photos.reading import PhotoError, read_photo

from .shards import Member, as_file

SPARE_DISK = 2 * 2**30
"""Bytes of the disk that the cache leaves free: a checkpoint must still fit."""
SCANS = 200
"""A process looks again at what all processes have stored after this share of the limit."""


class PhotoCache:
    """Read photos through a folder of decoded ones: what is there is not decoded again.

    Args:
        folder: made when the first photo is stored.
        limit: size in bytes beyond which nothing is added; 0 stores and reads nothing.

    Entries are found by the SHA-256 of the photo's file and the size they were reduced to: an edited photo is a new
    one, a renamed or copied one is not. Any number of processes may share a folder. When there is no room, entries that
    this run has not used make some; if all are in use, the rest is decoded every time, as epochs pass over all photos
    in turn and would throw out every photo just before it is needed.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._began = time.time()
        self._digests: dict[Path, tuple[int, int, str]] = {}  # by size and time of the file
        self._touched: set[str] = set()
        self._used: int | None = None  # bytes in the folder, as far as this process knows
        self._since_scan = 0
        self._is_full = False

    def read(self, path: Path | Member, enough: int) -> Image.Image:
        """Return a photo as `read_photo` does, reduced to a shortest side of `enough` px if it is larger.

        What it returns does not depend on what the cache holds.

        Raises:
            PhotoError: the photo cannot be read.
        """
        if not self.limit:
            return _read(path, enough)
        try:
            entry = self.folder / f"{self._digest(path)}-{enough}.npy"
        except OSError as error:
            raise PhotoError(error.strerror or str(error)) from None
        with suppress(OSError, ValueError, EOFError):  # not there, or damaged
            pixels = np.load(entry)
            if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
                if entry.name not in self._touched:
                    self._touched.add(entry.name)
                    os.utime(entry)
                return Image.fromarray(pixels)
        image = _read(path, enough)
        with suppress(OSError):  # read-only or full: the cache is not worth an error
            self._store(entry, np.asarray(image))
        return image

    def _digest(self, path: Path | Member) -> str:
        """Return the SHA-256 of a photo's file, read anew only if the file has changed; of its place, in a shard."""
        if isinstance(path, Member):
            place = f"{path.digest} {path.name} {path.offset} {path.shard.stat().st_mtime_ns}"
            return hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()
        status = path.stat()
        known = self._digests.get(path)
        if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
            known = self._digests[path] = (status.st_size, status.st_mtime_ns, sha256(path))
        return known[2]

    def _store(self, entry: Path, pixels: npt.NDArray[np.uint8]) -> None:
        """Write an entry, if there is room for it."""
        if self._is_full:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._used is None or self._since_scan > self.limit / SCANS:
            self._used, self._since_scan = sum(status.st_size for _, status in self._entries()), 0
        has_room = self._used + pixels.nbytes <= self.limit or self._make_room(pixels.nbytes)
        if not has_room or shutil.disk_usage(self.folder).free < SPARE_DISK + pixels.nbytes:
            self._is_full = True
            return
        with atomic_path(entry) as temporary, open(temporary, "wb") as file:
            np.save(file, pixels)
        self._used += pixels.nbytes
        self._since_scan += pixels.nbytes

    def _make_room(self, size: int) -> bool:
        """Remove entries that this run has not used, longest unused first; return whether `size` bytes now fit."""
        entries = sorted(self._entries(), key=lambda item: item[1].st_mtime)
        used = sum(status.st_size for _, status in entries)
        for path, status in entries:
            if used + size <= 0.95 * self.limit or status.st_mtime >= self._began:
                break
            with suppress(OSError):
                path.unlink()
                used -= status.st_size
        self._used, self._since_scan = used, 0
        return used + size <= self.limit

    def _entries(self) -> list[tuple[Path, os.stat_result]]:
        entries = []
        for item in os.scandir(self.folder):
            with suppress(OSError):  # removed by another process
                if item.name.endswith(".npy"):
                    entries.append((Path(item.path), item.stat()))
        return entries


def _read(photo: Path | Member, enough: int) -> Image.Image:
    with as_file(photo) as path:
        return _reduced(read_photo(path, enough), enough)


def _reduced(image: Image.Image, shortest: int) -> Image.Image:
    """Return an image with a shortest side of at most `shortest` px."""
    scale = shortest / min(image.size)
    if scale >= 1:
        return image
    size = (max(round(image.width * scale), shortest), max(round(image.height * scale), shortest))
    return Image.fromarray(resized(image, size).permute(1, 2, 0).contiguous().numpy())


def resized(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Return an "RGB" image at another width and height, uint8 `(3, H, W)`, by Pillow's bicubic filter.

    PyTorch has it several times as fast; a few levels in a thousand differ from Pillow's, by one or two.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return F.interpolate(pixels, size[::-1], mode="bicubic", antialias=True)[0].contiguous()
