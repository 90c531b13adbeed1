"""Random and fixed views of a folder of normally exposed photos, each with the draw of its mis-exposure.

Workers decode and crop; the mis-exposure itself is synthesised later, for the whole batch, on the model's device.
Every draw is a function of (seed, epoch, photo) alone, so that it depends neither on the number of workers nor on
where a run was stopped.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from utils.photo import PhotoError, find_photos, open_photo, read_photo

from .color_jitter import draw_jitter

VALIDATION_SEED = 20210625
"""Seed of the validation draws: the same in every run, whatever the run's own seed."""


class NoPhotosError(Exception):
    """A folder without usable photos. The message says what to put where."""


class Failure(NamedTuple):
    """A photo that could not be used, and why."""

    path: str
    reason: str


@dataclass
class Batch:
    """Views of normally exposed photos and the draws that mis-expose them."""

    photos: Tensor
    """`(B, 3, H, W)` uint8 sRGB: the targets."""
    factors: Tensor
    """`(B, 4)` factors of brightness, saturation and contrast, and the exponent gamma."""
    orders: Tensor
    """`(B, 4)` order of the four operations."""
    names: list[str]
    """Paths of the photos, relative to their folder."""
    failures: list[Failure]
    """Photos that were skipped on the way to this batch."""

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; called by DataLoader where a GPU is used."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("photos", "factors", "orders")}
        return dataclasses.replace(self, **pinned)


Sample = tuple[Tensor, Tensor, Tensor, str]


class PhotoDataset(Dataset[tuple[Sample | None, list[Failure]]]):
    """Views of the photos below a folder.

    Args:
        folder: searched with its sub-folders.
        image_size: height and width of the views in pixels.
        jitter: amounts of brightness, saturation, contrast and gamma, as `draw_jitter` takes them.
        seed: of the random views; None gives fixed views (the largest centred one) with fixed jitter, for validation.
        crop_min_area: smallest share of the largest fitting view that a random view covers.

    A view has the shape of `image_size` and is never stretched. `dataset[epoch, index]` returns the sample, or None,
    and the photos that failed on the way: a training view falls back to the next photo, a validation view does not.

    Raises:
        NoPhotosError: the folder is missing, or holds nothing that can be opened as a photo.
    """

    def __init__(
        self,
        folder: str | Path,
        image_size: tuple[int, int],
        *,
        jitter: tuple[float, float, float, float],
        seed: int | None = None,
        crop_min_area: float = 1.0,
    ) -> None:
        self.folder = Path(folder)
        self.image_size = image_size
        self.jitter = jitter
        self.seed = seed
        self.crop_min_area = crop_min_area
        self.paths, self.failures = _usable_photos(self.folder)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample | None, list[Failure]]:
        epoch, index = key
        failures: list[Failure] = []
        for offset in range(len(self.paths) if self.seed is not None else 1):
            position = (index + offset) % len(self.paths)
            try:
                return self._view(epoch, position), failures
            except PhotoError as error:
                failures.append(Failure(str(self.paths[position]), str(error)))
        return None, failures

    def _view(self, epoch: int, index: int) -> Sample:
        if self.seed is None:
            rng = np.random.default_rng((VALIDATION_SEED, index))
            share, across, down, flip = 1.0, 0.5, 0.5, False
        else:
            rng = np.random.default_rng((self.seed, epoch, index))
            share = math.sqrt(rng.uniform(self.crop_min_area, 1))
            across, down, flip = rng.uniform(), rng.uniform(), rng.uniform() < 0.5
        factors, order = draw_jitter(rng, self.jitter)
        height, width = self.image_size
        image = read_photo(self.paths[index], enough=math.ceil(max(height, width) / share))
        view_width = share * min(image.width, image.height * width / height)
        view_height = min(view_width * height / width, image.height)  # rounding may exceed it by a hair
        left, top = across * (image.width - view_width), down * (image.height - view_height)
        box = (left, top, left + view_width, top + view_height)
        view = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        if flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        photo = torch.from_numpy(np.array(view)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        return photo, factors, order, str(self.paths[index].relative_to(self.folder))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys; a new order every epoch, the same one in every run with the same seed.

    Args:
        count: photos in the data set.
        batch_size: photos per batch; the last one may be smaller.
        seed: of the order; None keeps the photos in theirs.

    Set `epoch`, and `first_batch` to go on in the middle of one, before iterating.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int | None) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 1
        self.first_batch = 0

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.count)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for batch in range(self.first_batch, len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(index)) for index in chosen]


def collate(items: Sequence[tuple[Sample | None, list[Failure]]]) -> Batch:
    """Join samples into a `Batch`, leaving out those that failed. A batch may so be smaller than asked, even empty."""
    samples = [sample for sample, _ in items if sample is not None]
    failures = [failure for _, failed in items for failure in failed]
    if not samples:
        empty = torch.empty(0)
        return Batch(empty, empty, empty, [], failures)
    photos, factors, orders, names = zip(*samples, strict=True)
    return Batch(torch.stack(photos), torch.stack(factors), torch.stack(orders), list(names), failures)


def _usable_photos(folder: Path) -> tuple[list[Path], list[Failure]]:
    """Return the photos below `folder` whose headers can be read, and the others."""
    advice = "put normally exposed photos (JPEG, PNG, WebP, BMP or TIFF) there; sub-folders are fine"
    try:
        found = find_photos(folder)
    except OSError as error:
        raise NoPhotosError(f"{folder}: {error.strerror}; {advice}") from None
    if not found:
        raise NoPhotosError(f"{folder}: no photos found; {advice}")
    usable, failures = [], []
    for path in found:
        try:
            open_photo(path).close()
            usable.append(path)
        except PhotoError as error:
            failures.append(Failure(str(path), str(error)))
    if not usable:
        raise NoPhotosError(f"{folder}: none of {len(found)} photos can be read ({failures[0].reason}); {advice}")
    return usable, failures
