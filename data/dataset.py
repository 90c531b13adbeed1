"""Random and fixed views of a folder of normally exposed photos, each with the draw of its mis-exposure.

Workers decode and crop; the mis-exposure itself is synthesised later, for the whole batch, on the model's device.
Every draw is a function of (seed, epoch, view) alone, so that it depends neither on the number of workers or
processes nor on where a run was stopped.
"""

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from utils.photos.reading import PhotoError, find_photos, open_photo, upright_size

from .cache import PhotoCache, resized
from .camera import COUNT, CameraRange, draw_camera
from .color_jitter import draw_jitter
from .paired import Pair
from .scenes import Scene, draw_view
from .shards import Member, open_shards

VALIDATION_SEED = 20210625
"""Seed of the validation draws: the same in every run, whatever the run's own seed."""
CROP_ATTEMPTS = 8
"""Views of a photo that are drawn before it is passed over as black, white or flat."""
SCENE_SEED = 20210626
"""Beside the run's seed, of the draws of scenes, so that they are not those of the photos."""
SCENE_VIEWS = 2
"""Validation views of each scene."""
LEAST_STOPS = 0.6
"""Standard deviation of a scene's view, in stops, below which it shows nothing."""
SHARDS_AT_ONCE = 16
"""Shards whose photos are mixed."""
JITTERED, DEVELOPED, UNTOUCHED = range(3)
"""How a view's input is made: by colour jitter, by a camera, not at all."""


class NoPhotosError(ValueError):
    """A folder without usable photos. The message says what to put where."""


class Failure(NamedTuple):
    """A photo that could not be used, and why."""

    path: str
    reason: str


@dataclass
class Batch:
    """Views of normally exposed photos and the draws that mis-expose them."""

    photos: Tensor
    """`(B, 3, H, W)` uint8 sRGB: the targets, before `make_pairs` re-exposes those of synthesised inputs."""
    inputs: Tensor
    """`(B, 3, H, W)` uint8 sRGB: the mis-exposed photos of real pairs; where `is_pair` is false, the photos again.
    Empty, `(B, 0)`, if there are no pairs."""
    is_pair: Tensor
    """`(B,)` bool: whether the input is a real one, and not to be synthesised."""
    factors: Tensor
    """`(B, 4)` factors of brightness, saturation and contrast, and the exponent gamma."""
    orders: Tensor
    """`(B, 4)` order of the four operations."""
    kinds: Tensor
    """`(B,)` int64: how each photo is mis-exposed, `JITTERED`, `DEVELOPED` (by a camera) or `UNTOUCHED`."""
    camera: Tensor
    """`(B, COUNT)` draws of a camera's exposure and development, as `data.camera` takes them; 0 where none is used."""
    is_scene: Tensor
    """`(B,)` bool: whether the view is one of a scene in linear light, and `photos` says nothing."""
    light: Tensor
    """`(B, 3, H, W)` float16 linear light of scenes, 0 elsewhere. Empty, `(B, 0)`, if there are none."""
    names: list[str]
    """Paths of the photos, relative to their folder."""
    indices: list[int]
    """Numbers of the views in their data set."""
    failures: list[Failure]
    """Photos that were skipped on the way to this batch."""

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; called by DataLoader where a GPU is used."""
        pinned = {name: getattr(self, name).pin_memory() for name in _TENSORS}
        return dataclasses.replace(self, **pinned)

    def split(self, count: int) -> "list[Batch]":
        """Return the batch in `count` parts of nearly equal size, fewer if it has fewer photos."""
        bounds = np.linspace(0, len(self.names), min(count, len(self.names)) + 1).astype(int).tolist()
        parts = [slice(first, last) for first, last in zip(bounds, bounds[1:], strict=False)]
        columns = (*_TENSORS, "names", "indices")
        return [dataclasses.replace(self, **{name: getattr(self, name)[part] for name in columns}) for part in parts]


_TENSORS = ("photos", "inputs", "is_pair", "factors", "orders", "kinds", "camera", "is_scene", "light")
Sample = tuple[Tensor, Tensor, bool, Tensor, Tensor, int, Tensor, Tensor | None, str, int]


class PhotoDataset(Dataset[tuple[Sample | None, list[Failure]]]):
    """Views of the photos below a folder, of real pairs, or of both.

    Args:
        folder: searched with its sub-folders; "" for none; or shards, as `data.shards` has them.
        image_size: height and width of the views in pixels.
        jitter: amounts of brightness, saturation, contrast and gamma, as `draw_jitter` takes them.
        seed: of the random views; None gives fixed views (the largest centred one) with fixed jitter, for validation.
        crop_min_area: smallest share of the largest fitting view that a random view covers.
        crop_min_deviation, crop_min_mean: random views whose pixels, from 0 to 1, have a smaller standard deviation, or
            a mean below this or above 1 minus this, are drawn again; MSEC rejects such patches (section 3.4).
        cache: where decoded photos are kept; None: nowhere.
        camera_range: from what a camera's exposure and development are drawn.
        camera_share, identity_share: of the training views, the shares that a camera develops and that stay as they
            are; the rest is jittered. Validation has none that stays.
        views_per_photo: random views of each photo in an epoch.
        scenes: in linear light; `scene_share` of the training views are of one of them, in place of the photo.
            Validation has two fixed views of each, after the photos.
        pairs: real pairs, whose two photos get the same crop and flip; what a view shows is judged by the target.

    A view has the shape of `image_size` and is never stretched. `dataset[epoch, index]` returns the sample, or None,
    and the photos that failed on the way: a training view falls back to the next photo, a validation view does not.
    `sizes` holds the width and height of each photo.

    Raises:
        NoPhotosError: the folder is missing, or holds nothing that can be opened as a photo.
        ShardError: as `open_shards`.
    """

    def __init__(
        self,
        folder: str | Path | Sequence[str],
        image_size: tuple[int, int],
        *,
        jitter: tuple[float, float, float, float],
        seed: int | None = None,
        crop_min_area: float = 1.0,
        crop_min_deviation: float = 0.0,
        crop_min_mean: float = 0.0,
        cache: PhotoCache | None = None,
        pairs: Sequence[Pair] = (),
        camera_range: CameraRange | None = None,
        camera_share: float = 0.0,
        identity_share: float = 0.0,
        views_per_photo: int = 1,
        scenes: Sequence[Scene] = (),
        scene_share: float = 0.0,
    ) -> None:
        self.folder = Path(folder) if isinstance(folder, str | Path) else Path(folder[0]).parent
        self.image_size = image_size
        self.jitter = jitter
        self.seed = seed
        self.crop_min_area = crop_min_area
        self.crop_min_deviation = crop_min_deviation
        self.crop_min_mean = crop_min_mean
        self.cache = cache or PhotoCache("", limit=0)
        self.camera_range = camera_range or CameraRange()
        self.camera_share = camera_share
        self.identity_share = identity_share if seed is not None else 0.0
        self.views_per_photo = views_per_photo if seed is not None else 1
        self.scenes = list(scenes)
        self.scene_share = scene_share if self.scenes else 0.0
        self.paths: list[Path | Member] = []
        self.shards: list[int] = []
        """Photos of each shard, and of the pairs; empty without shards."""
        if not isinstance(folder, str | Path):
            self.paths, self.sizes, self.failures = _photos_of_shards(folder)
            self.names = [f"{path.shard.name}/{path.name}" for path in self.paths if isinstance(path, Member)]
            of_shards = Counter(path.shard for path in self.paths if isinstance(path, Member))
            self.shards = [*of_shards.values(), *([len(pairs)] if pairs else [])]
        elif str(folder):
            found, self.sizes, self.failures = _usable_photos(self.folder)
            self.paths, self.names = list(found), [path.relative_to(self.folder).as_posix() for path in found]
        else:
            self.sizes, self.failures, self.names = [], [], []
        self.names += ["/".join(pair.input.parts[-4:]) for pair in pairs]  # wherever the set lies on each machine
        self.sizes += [pair.size for pair in pairs]
        self.inputs = [None] * len(self.paths) + [pair.input for pair in pairs]  # None: to be synthesised
        self.paths += [pair.target for pair in pairs]

    def with_image_size(self, image_size: tuple[int, int]) -> "PhotoDataset":
        """Return the same data set with views of another size."""
        other = copy.copy(self)
        other.image_size = image_size
        return other

    def __len__(self) -> int:
        views = self.views_per_photo * len(self.paths)
        return views + (SCENE_VIEWS * len(self.scenes) if self.seed is None else 0)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample | None, list[Failure]]:
        epoch, index = key
        failures: list[Failure] = []
        if self.seed is None:
            if index >= len(self.paths):
                rng = np.random.default_rng((VALIDATION_SEED, index))
                return self._scene_view(self.scenes[(index - len(self.paths)) // SCENE_VIEWS], rng, index), failures
        else:
            rng = np.random.default_rng((SCENE_SEED, self.seed, epoch, index))
            if rng.uniform() < self.scene_share:
                return self._scene_view(self.scenes[rng.integers(len(self.scenes))], rng, index), failures
        for offset in range(len(self.paths) if self.seed is not None else 1):
            position = (index + offset) % len(self.paths)
            try:
                return self._view(epoch, position, index // len(self.paths)), failures
            except PhotoError as error:
                failures.append(Failure(str(self.inputs[position] or self.paths[position]), str(error)))
        return None, failures

    def _view(self, epoch: int, index: int, repetition: int) -> Sample:
        largest = max(self.image_size)
        if self.seed is None:
            rng = np.random.default_rng((VALIDATION_SEED, index))
            views = [self._crop(image, share=1.0, across=0.5, down=0.5) for image in self._images(index, largest)]
        else:
            rng = np.random.default_rng((self.seed, epoch, index, *([repetition] if repetition else [])))
            # the same for all draws, so that the view does not depend on what the cache holds
            views = self._random_view(self._images(index, math.ceil(largest / math.sqrt(self.crop_min_area))), rng)
        factors, order = draw_jitter(rng, self.jitter)
        photo, input_photo = views[0], views[-1]
        kind = JITTERED
        if rng.uniform() < self.identity_share:
            kind = UNTOUCHED
        elif rng.uniform() < self.camera_share:
            kind = DEVELOPED
        development = draw_camera(rng, self.camera_range) if kind == DEVELOPED else torch.zeros(COUNT).double()
        is_pair = len(views) == 2
        number = index + repetition * len(self.paths)
        return photo, input_photo, is_pair, factors, order, kind, development, None, self.names[index], number

    def _scene_view(self, scene: Scene, rng: np.random.Generator, index: int) -> Sample:
        """Return a view of a scene that shows something."""
        for _ in range(CROP_ATTEMPTS):
            light = draw_view(scene, self.image_size, rng)
            if np.log2(light.mean(axis=2) + 2.0**-10).std() >= LEAST_STOPS:
                break
        kind = UNTOUCHED if rng.uniform() < self.identity_share else DEVELOPED
        empty = torch.zeros(3, *self.image_size, dtype=torch.uint8)
        factors, order = draw_jitter(rng, (0.0, 0.0, 0.0, 0.0))
        lit = torch.from_numpy(light).permute(2, 0, 1).half()
        development = draw_camera(rng, self.camera_range)
        return empty, empty, False, factors, order, kind, development, lit, scene.name, index

    def _images(self, index: int, enough: int) -> list[Image.Image]:
        """Return a photo, and the input of its pair if it has one, reduced alike."""
        images = [self.cache.read(path, enough) for path in (self.paths[index], self.inputs[index]) if path is not None]
        if len(images) == 2 and images[0].size != images[1].size:
            images[1] = images[1].resize(images[0].size, Image.Resampling.BICUBIC)  # JPEG and PNG round differently
        return images

    def _random_view(self, images: list[Image.Image], rng: np.random.Generator) -> list[Tensor]:
        """Return a random view, the same of all images, in which the first shows something."""
        for _ in range(CROP_ATTEMPTS):
            share = math.sqrt(rng.uniform(self.crop_min_area, 1))
            across, down, flip = rng.uniform(), rng.uniform(), rng.uniform() < 0.5
            view = self._crop(images[0], share, across, down)
            step = max(1, min(self.image_size) // 64)
            sample = view[:, ::step, ::step].numpy() / 255
            mean, deviation = sample.mean(), sample.std(axis=(1, 2)).mean()
            if deviation >= self.crop_min_deviation and self.crop_min_mean <= mean <= 1 - self.crop_min_mean:
                views = [view, *(self._crop(image, share, across, down) for image in images[1:])]
                return [view.flip(2) for view in views] if flip else views
        raise PhotoError(f"{CROP_ATTEMPTS} random views of it are nearly black, white or flat")

    def _crop(self, image: Image.Image, share: float, across: float, down: float) -> Tensor:
        """Return a view `(3, H, W)`: its share of the largest one's width, and where it lies between the borders."""
        height, width = self.image_size
        view_width = max(round(share * min(image.width, image.height * width / height)), 1)
        view_height = min(max(round(view_width * height / width), 1), image.height)
        left, top = round(across * (image.width - view_width)), round(down * (image.height - view_height))
        return resized(image.crop((left, top, left + view_width, top + view_height)), (width, height))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys; a new order every epoch, the same one in every run with the same seed.

    Args:
        count: photos in the data set.
        batch_size: photos per batch, of all processes together; an epoch's batches are of nearly equal size, so that no
            photo counts much more in the last one.
        seed: of the order; None keeps the photos in theirs.
        rank: of this process among `processes`, which share every batch out.
        shards: photos of each shard, if they are in shards: then `SHARDS_AT_ONCE` of them, drawn anew in every epoch,
            are mixed at a time, so that a file system that fetches whole shards fetches each once.

    Set `epoch`, and `first_batch` to go on in the middle of one, before iterating.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int | None,
        rank: int = 0,
        processes: int = 1,
        shards: Sequence[int] = (),
    ) -> None:
        self.count = count
        self.shards = shards
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.epoch = 1
        self.first_batch = 0
        self._bounds = np.linspace(0, count, math.ceil(count / batch_size) + 1).astype(int).tolist()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def size(self, batch: int) -> int:
        """Return how many photos batch number `batch`, counted from 0, has in all processes together."""
        return int(self._bounds[batch + 1] - self._bounds[batch])

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = self.epoch, self._order()
        for batch in range(self.first_batch, len(self)):
            chosen = order[self._bounds[batch] : self._bounds[batch + 1]]
            yield [(epoch, int(index)) for index in chosen[self.rank :: self.processes]]

    def _order(self) -> npt.NDArray[np.int64]:
        """Return the order of the epoch's photos, or views of photos."""
        if self.seed is None:
            return np.arange(self.count)
        rng = np.random.default_rng((self.seed, self.epoch))
        if len(self.shards) <= SHARDS_AT_ONCE:
            return rng.permutation(self.count)
        photos, starts = sum(self.shards), np.cumsum([0, *self.shards])
        drawn = rng.permutation(len(self.shards))
        order = []
        for first in range(0, len(drawn), SHARDS_AT_ONCE):
            chosen = drawn[first : first + SHARDS_AT_ONCE]
            positions = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in chosen])
            views = np.arange(self.count // photos) * photos
            order.append(rng.permutation((positions + views[:, None]).flatten()))
        return np.concatenate(order)


def collate(items: Sequence[tuple[Sample | None, list[Failure]]]) -> Batch:
    """Join samples into a `Batch`, leaving out those that failed. A batch may so be smaller than asked, even empty."""
    samples = [sample for sample, _ in items if sample is not None]
    failures = [failure for _, failed in items for failure in failed]
    if not samples:
        empty = torch.empty(0)
        return Batch(**dict.fromkeys(_TENSORS, empty), names=[], indices=[], failures=failures)
    photos, inputs, is_pair, factors, orders, kinds, camera, lights, names, indices = zip(*samples, strict=True)
    dark = torch.zeros(photos[0].shape, dtype=torch.float16)
    return Batch(
        photos=torch.stack(photos),
        inputs=torch.stack(inputs) if any(is_pair) else torch.empty(len(samples), 0, dtype=torch.uint8),
        is_pair=torch.tensor(is_pair),
        factors=torch.stack(factors),
        orders=torch.stack(orders),
        kinds=torch.tensor(kinds),
        camera=torch.stack(camera),
        is_scene=torch.tensor([light is not None for light in lights]),
        light=torch.stack([dark if light is None else light for light in lights])
        if any(light is not None for light in lights)
        else torch.empty(len(samples), 0, dtype=torch.float16),
        names=list(names),
        indices=list(indices),
        failures=failures,
    )


def _photos_of_shards(shards: Sequence[str]) -> tuple[list[Path | Member], list[tuple[int, int]], list[Failure]]:
    """Return the photos of shards, their sizes, and those that cannot be read."""
    members, failures = open_shards(shards)
    if not members:
        raise NoPhotosError(f"{shards[0]}: no photos in the shards; python -m data.shards makes some of a folder")
    return [*members], [member.size for member in members], [Failure(*failure) for failure in failures]


def _usable_photos(folder: Path) -> tuple[list[Path], list[tuple[int, int]], list[Failure]]:
    """Return the photos below `folder` whose headers can be read, their sizes, and the others."""
    advice = "put normally exposed photos (JPEG, PNG, WebP, BMP or TIFF) there; sub-folders are fine"
    try:
        found = find_photos(folder)
    except OSError as error:
        raise NoPhotosError(f"{folder}: {error.strerror}; {advice}") from None
    if not found:
        raise NoPhotosError(f"{folder}: no photos found; {advice}")
    usable, sizes, failures = [], [], []
    for path in found:
        try:
            with open_photo(path) as image:
                sizes.append(upright_size(image))
            usable.append(path)
        except PhotoError as error:
            failures.append(Failure(str(path), str(error)))
    if not usable:
        raise NoPhotosError(f"{folder}: none of {len(found)} photos can be read ({failures[0].reason}); {advice}")
    return usable, sizes, failures
