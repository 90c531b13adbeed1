"""Data sets and the synthesis of mis-exposure. This package imports `utils`, not `models`."""

from .cache import PhotoCache
from .color_jitter import color_jitter, draw_jitter
from .dataset import Batch, EpochBatches, Failure, NoPhotosError, PhotoDataset, collate

__all__ = [
    "Batch",
    "EpochBatches",
    "Failure",
    "NoPhotosError",
    "PhotoCache",
    "PhotoDataset",
    "collate",
    "color_jitter",
    "draw_jitter",
]
