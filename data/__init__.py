"""Data sets and the synthesis of mis-exposure."""

from .cache import PhotoCache
from .camera import CameraRange, camera, draw_camera
from .color_jitter import color_jitter, draw_jitter
from .dataset import Batch, EpochBatches, Failure, NoPhotosError, PhotoDataset, collate
from .paired import LayoutError, Pair, find_pairs
from .scenes import Scene, SceneError
from .shards import ShardError
from .synthesis import make_pairs

__all__ = [
    "Batch",
    "CameraRange",
    "EpochBatches",
    "Failure",
    "LayoutError",
    "NoPhotosError",
    "Pair",
    "PhotoCache",
    "PhotoDataset",
    "Scene",
    "SceneError",
    "ShardError",
    "camera",
    "collate",
    "color_jitter",
    "draw_camera",
    "draw_jitter",
    "find_pairs",
    "make_pairs",
]
