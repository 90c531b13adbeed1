"""What a configuration trains and validates on: folders of photos, real pairs, and the batches made of them."""

import atexit
import functools
import hashlib
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from utils.config import Config, ConfigError
from utils.device import Arithmetic
from utils.files import fingerprint, sha256
from utils.training.processes import ALONE, Processes
from utils.training.progress import FailureLog

from .cache import PhotoCache
from .camera import CameraRange
from .dataset import Batch, EpochBatches, NoPhotosError, PhotoDataset, collate
from .paired import LayoutError, Pair, find_pairs
from .scenes import Scene, find_scenes
from .shards import Member, as_file

HELD_EVERY = 8
"""Of so many scenes one validates."""


def open_photos(
    config: Config, failures: FailureLog, processes: Processes = ALONE
) -> tuple[PhotoDataset, PhotoDataset]:
    """Return the data sets of training and validation.

    Raises:
        NoPhotosError: one of them has no photos, or both have some in common.
        LayoutError: as `open_pairs`.
        SceneError: a file in `config.hdri_dir` is no scene.
        ShardError: a shard in `config.train_data_dir` cannot be used.
    """
    scenes = open_scenes(config, is_shown=processes.is_first)
    held = scenes[HELD_EVERY - 1 :: HELD_EVERY]
    trained = [scene for scene in scenes if scene not in held]
    photos = open_folder(config, config.train_data_dir, training=True, scenes=trained)
    valid_photos = open_folder(config, config.valid_data_dir, training=False, scenes=held)
    for dataset in (photos, valid_photos):
        failures.report(dataset.failures, processes)
    refuse_common_photos(photos, valid_photos)
    return photos, valid_photos


def open_scenes(config: Config, *, is_shown: bool = True) -> list[Scene]:
    """Return the scenes that a mixture has a share of; none, and a note, if their folder is not there.

    Raises:
        SceneError: a file in it is no scene, or it is empty.
    """
    if config.degradation != "mixture" or not config.hdri_dir or not config.scene_share:
        return []
    if not Path(config.hdri_dir).exists():
        if is_shown:
            print(f"hdri_dir {config.hdri_dir}: no such folder, so training goes without scenes", file=sys.stderr)
        return []
    return find_scenes(Path(config.hdri_dir))


def open_folder(
    config: Config, folder: str | Sequence[str], *, training: bool, scenes: Sequence[Scene] = ()
) -> PhotoDataset:
    """Return the random views of a folder or of shards, and of scenes, for training, or fixed views for validation."""
    return PhotoDataset(
        folder,
        config.image_size,
        jitter=config.color_jitter,
        seed=config.seed if training else None,
        crop_min_area=config.crop_min_area,
        crop_min_deviation=config.crop_min_deviation,
        crop_min_mean=config.crop_min_mean,
        cache=PhotoCache(config.photo_cache_dir, limit=int(config.photo_cache_gigabytes * 1e9)),
        pairs=open_pairs(config, training=training),
        camera_range=camera_range(config),
        camera_share={"color_jitter": 0.0, "camera": 1.0, "mixture": 1 - config.jitter_share}[config.degradation],
        identity_share=config.identity_share,
        views_per_photo=config.views_per_photo,
        scenes=scenes,
        scene_share=config.scene_share,
    )


def camera_range(config: Config) -> CameraRange:
    """Return from what the exposures and developments of a camera are drawn."""
    return CameraRange(
        ev=(config.camera_ev_min, config.camera_ev_max),
        dark_share=config.camera_dark_share,
        least_ev=config.camera_ev_least,
        is_metered=config.camera_metered,
        mild_share=config.camera_mild_share,
        mild_ev=config.camera_mild_ev,
        stretch=config.camera_stretch,
        stretch_share=config.camera_stretch_share,
        local_ev=config.camera_local_ev,
        local_share=config.camera_local_share,
        shoulder=config.camera_shoulder,
        noise=config.camera_noise,
        noise_share=config.camera_noise_share,
        white_balance=config.camera_white_balance,
        gamma=config.camera_gamma,
        contrast=config.camera_contrast,
        saturation=config.camera_saturation,
        quality=config.camera_jpeg,
        jpeg_share=config.camera_jpeg_share,
    )


def open_pairs(config: Config, *, training: bool) -> list[Pair]:
    """Return the real pairs to train or to validate on.

    Raises:
        LayoutError: a data set is unknown, not there, empty, or has problems that are not to be skipped.
    """
    pairs: list[Pair] = []
    for source in config.train_pairs if training else config.valid_pairs:
        dataset, _, folder = source.partition(":")
        split = "train" if training else "valid"
        try:
            found, problems = find_pairs(dataset, Path(folder), split)
        except LayoutError as error:
            raise LayoutError(f'{split}_pairs, "{source}": {error}') from None
        if problems and not config.skip_pair_problems:
            path, reason = problems[0]
            raise LayoutError(
                f"{source}: {len(problems)} problems, the first {path}: {reason}; python evaluate.py --check {dataset} "
                f"{folder} --split {split} lists them, skip_pair_problems leaves them out"
            )
        if problems:
            print(f"{source}: {len(problems)} problems left out, {len(found)} pairs", file=sys.stderr)
        if not found:
            raise LayoutError(f"{source}: no pairs found")
        pairs += found
    return pairs


def build_loader(
    config: Config, dataset: PhotoDataset, batch_size: int, arithmetic: Arithmetic, processes: Processes = ALONE
) -> tuple[DataLoader[Any], EpochBatches]:
    """Return the loader of this process's share of a data set, and the sampler that drives it."""
    batches = EpochBatches(
        len(dataset),
        batch_size,
        seed=dataset.seed,
        rank=processes.rank,
        processes=processes.count,
        shards=dataset.shards,
    )
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=config.num_workers,
        persistent_workers=config.num_workers > 0 and dataset.seed is not None,  # validation's are seldom needed
        pin_memory=arithmetic.device.type == "cuda",
        worker_init_fn=functools.partial(leave_signals_to_parent, is_over=_is_over()) if config.num_workers else None,
    )
    return loader, batches


@functools.cache
def _is_over() -> torch.Tensor:
    """Return what tells the workers that this process ends: a bool `(1,)` in shared memory."""
    is_over = torch.zeros(1, dtype=torch.bool).share_memory_()
    atexit.register(is_over.fill_, True)
    return is_over


def leave_signals_to_parent(worker: int, is_over: torch.Tensor) -> None:
    """Let the training process alone handle signals that every process of a terminal or a job gets.

    The second SIGTERM is the loader's own, for a worker that does not end by itself. Of a loader that an error's
    traceback keeps, the only one comes as the process ends.
    """

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if is_over:
            signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)


def refuse_common_photos(photos: PhotoDataset, valid_photos: PhotoDataset) -> None:
    """Raise `NoPhotosError` if a photo is in both data sets, under whatever names."""
    seen = {}
    for path in photos.paths:
        with suppress(OSError):  # it will be named when it is read
            seen[_print_of(path)] = path
    common = []
    for path in valid_photos.paths:
        with suppress(OSError):
            other = seen.get(_print_of(path))
            if other is not None and _sha256(path) == _sha256(other):
                common.append((path, other))
    if common:
        path, other = common[0]
        more = f", and {len(common) - 1} more" if len(common) > 1 else ""
        raise NoPhotosError(
            f"{path} is also in the training set, as {other}{more}: the best epoch would be chosen on photos that were "
            "trained on; take them out of one of the two folders"
        )


def _print_of(photo: Path | Member) -> str:
    return photo.digest if isinstance(photo, Member) else fingerprint(photo)


def _sha256(photo: Path | Member) -> str:
    with as_file(photo) as path:
        return sha256(path)


def require_same_photos(config: Config, digests: list[list[str]]) -> None:
    """Raise `NoPhotosError` if processes, on several machines, see different photos."""
    for position, folder in enumerate((config.train_data_dir, config.valid_data_dir)):
        differing = [rank for rank, own in enumerate(digests) if own[position] != digests[0][position]]
        if differing:
            raise NoPhotosError(
                f"{folder}: process {differing[0]} sees other photos there than process 0: every machine needs the same"
            )


def require_enough_photos(config: Config, photo_count: int, processes: int) -> None:
    """Raise `ConfigError` if a process would be left without a photo, or without one for each part of its share."""
    for stage in config.schedule:
        batches = EpochBatches(photo_count, stage.batch_size, seed=None)
        smallest = min(batches.size(batch) for batch in range(len(batches)))
        if smallest < processes:
            raise ConfigError(
                f"batch_size = {stage.batch_size} makes batches of {smallest} of the {photo_count} training photos, "
                f"fewer than the {processes} processes: raise batch_size, add photos, or use fewer GPUs"
            )
        if smallest < processes * config.accumulation_steps and config.accumulation_steps > 1:
            raise ConfigError(
                f"accumulation_steps = {config.accumulation_steps} is more than the {smallest // processes} "
                f"photos of a batch that each process has: lower it, or raise batch_size = {stage.batch_size}"
            )


def describe_photos(config: Config, photos: PhotoDataset, valid_photos: PhotoDataset) -> None:
    """Print what was found in the folders of training and validation."""
    for name, dataset in (("train_data_dir", photos), ("valid_data_dir", valid_photos)):
        small = sum(min(w / config.image_size[1], h / config.image_size[0]) < 1 for w, h in dataset.sizes)
        enlarged = f", {small} smaller than the view and enlarged" if small else ""
        real = sum(path is not None for path in dataset.inputs)
        pairs = f", {real} of them real pairs" if real else ""
        where = getattr(config, name) or "(none)"
        if not isinstance(where, str):
            where = f"{len({photo.shard for photo in dataset.paths if isinstance(photo, Member)})} shards"
        lit = f", {len(dataset.scenes)} scenes in linear light" if dataset.scenes else ""
        print(f"{name} {where}: {len(dataset.paths)} photos{pairs}, {len(dataset.failures)} rejected{enlarged}{lit}")


def first_batch(photos: PhotoDataset, size: int) -> Batch:
    """Return the first batch of `size` photos.

    Raises:
        NoPhotosError: none of them can be decoded.
    """
    batch = collate([photos[key] for key in next(iter(EpochBatches(len(photos), size, seed=photos.seed)))])
    if not batch.names:
        raise NoPhotosError(f"{photos.folder}: none of its photos can be decoded")
    return batch


def list_digest(dataset: PhotoDataset) -> str:
    """Return a digest of which photos and scenes a data set has, by name, to notice that some came or went."""
    names = [*dataset.names, *(f"scene {scene.name}" for scene in dataset.scenes)]
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
