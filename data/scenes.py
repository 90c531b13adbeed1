"""Views of real scenes in linear light: panoramas and HDR photographs, whose range no sensor holds.

A camera's exposure of such a view loses what lies beyond the sensor, as it happens; the target is the same view, well
developed. Light is relative: what a camera makes of it is its meter's doing.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from models.curves import box_mean
from utils.colour import from_linear, luminance

SUFFIXES = (".hdr", ".png")
CODE_RANGE = 28.0
"""Stops that the codes of a 16-bit PNG span, around a light of 1."""
LONGEST = 2048
"""Pixels along the equator that are kept of a larger panorama."""
BRIGHTEST = 2.0**14
FIELD = (40.0, 80.0)
"""Horizontal angle of a view in degrees."""
RANGE_KEPT = 5.0
"""Stops between the dark and the bright parts of a developed view, as far as local tone mapping brings them in."""
LEAST_SLOPE = 0.45
"""Of local tone mapping: what is left at least of a difference between parts of a view."""
CONTRAST = 0.4
"""Share of an S-curve in a developed view."""
BRIGHTNESS = 0.44
"""Mean luma of a developed view."""
DARKEST = 2.0**-14
"""Light that counts as none."""


class SceneError(ValueError):
    """A file of a scene that cannot be used. The message names it and says what is expected."""


class Direction(NamedTuple):
    """Where a view of a panorama looks."""

    yaw: float
    """Degrees, any."""
    pitch: float
    """Degrees above the horizon."""
    roll: float
    """Degrees."""
    field: float
    """Horizontal angle in degrees."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene in linear light."""

    name: str
    light: npt.NDArray[np.float16]
    """`(H, W, 3)`, sRGB primaries, at least 0."""

    @property
    def is_panorama(self) -> bool:
        """Whether it is equirectangular, all around: twice as wide as high."""
        return self.light.shape[1] == 2 * self.light.shape[0]


def find_scenes(folder: Path) -> list[Scene]:
    """Read all scenes below a folder: Radiance (.hdr), and PNG of 16 bits that hold the logarithm of light.

    A PNG's code v in [0, 65535] stands for a light of 2 ** (v / 65535 * 28 - 14).

    Raises:
        SceneError: the folder is missing or has none, or a file cannot be read.
    """
    if not folder.is_dir():
        raise SceneError(
            f"{folder}: there is no such folder: hdri_dir names one of scenes (.hdr, or .png of log light)"
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SceneError(f"{folder}: no scenes in it: .hdr, or .png of log light, are expected")
    return [Scene(path.relative_to(folder).with_suffix("").as_posix(), read_light(path)) for path in paths]


def read_light(path: Path) -> npt.NDArray[np.float16]:
    """Return a scene's linear light `(H, W, 3)`.

    Raises:
        SceneError: it cannot be decoded, or is no picture of light.
    """
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".hdr":
            light = np.asarray(imagecodecs.rgbe_decode(content), np.float32)
        else:
            codes = imagecodecs.png_decode(content)
            if codes.dtype != np.uint16:
                raise ValueError("a PNG of 8 bits is a photo, not a scene in light")
            light = np.exp2(codes.astype(np.float32) / 65535 * CODE_RANGE - CODE_RANGE / 2)
    except (OSError, ValueError, RuntimeError, imagecodecs.PngError, imagecodecs.RgbeError) as error:
        raise SceneError(f"{path}: not a scene: {error}") from None
    if light.ndim != 3 or light.shape[2] != 3 or min(light.shape[:2]) < 2 or not np.isfinite(light).all():
        raise SceneError(f"{path}: not a scene: shape {light.shape}, or light that is not finite")
    step = -(-max(light.shape) // LONGEST)
    if step > 1:
        height, width = light.shape[0] // step * step, light.shape[1] // step * step
        width = 2 * height if light.shape[1] == 2 * light.shape[0] else width  # a panorama stays one
        light = light[:height, :width].reshape(height // step, step, width // step, step, 3).mean(axis=(1, 3))
    middle = float(np.median(light @ np.array((0.2126, 0.7152, 0.0722), np.float32)))
    return (light * (0.18 / max(middle, 1e-6))).clip(0, BRIGHTEST).astype(np.float16)


def draw_view(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a random view `(H, W, 3)` of a scene in linear light: a perspective one of a panorama, else a crop."""
    direction = Direction(
        rng.uniform(0, 360), float(np.clip(rng.normal(-2, 9), -30, 30)), rng.normal(0, 2), rng.uniform(*FIELD)
    )
    share, across, down = math.sqrt(rng.uniform(0.25, 1)), rng.uniform(), rng.uniform()
    flip = rng.uniform() < 0.5
    view = look(scene.light, direction, size) if scene.is_panorama else crop(scene.light, share, across, down, size)
    return view[:, ::-1].copy() if flip else view


def look(light: npt.NDArray[np.float16], direction: Direction, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return the perspective view `(H, W, 3)` of an equirectangular panorama `(h, 2 h, 3)`."""
    height, width = size
    right = np.tan(np.radians(direction.field / 2)) * (2 * (np.arange(width) + 0.5) / width - 1)
    up = np.tan(np.radians(direction.field / 2)) * height / width * (1 - 2 * (np.arange(height) + 0.5) / height)
    x, y = np.meshgrid(right, up)
    roll, pitch = np.radians(direction.roll), np.radians(direction.pitch)
    x, y = np.cos(roll) * x - np.sin(roll) * y, np.sin(roll) * x + np.cos(roll) * y
    y, z = np.cos(pitch) * y + np.sin(pitch), np.cos(pitch) - np.sin(pitch) * y
    longitude = np.arctan2(x, z) + np.radians(direction.yaw)
    latitude = np.arctan2(y, np.hypot(x, z))
    rows, columns = light.shape[:2]
    across = (longitude / (2 * np.pi) % 1) * columns - 0.5
    down = ((0.5 - latitude / np.pi) * rows - 0.5).clip(0, rows - 1)
    return _sample(light, down, across, wraps=True)


def crop(
    light: npt.NDArray[np.float16], share: float, across: float, down: float, size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Return a view `(H, W, 3)` of a photograph in light: its share of the largest one, and where it lies."""
    height, width = light.shape[:2]
    view_width = share * min(width, height * size[1] / size[0])
    view_height = view_width * size[0] / size[1]
    left, top = across * (width - view_width), down * (height - view_height)
    x = left + (np.arange(size[1]) + 0.5) * view_width / size[1] - 0.5
    y = top + (np.arange(size[0]) + 0.5) * view_height / size[0] - 0.5
    x, y = np.meshgrid(x.clip(0, width - 1), y.clip(0, height - 1))
    return _sample(light, y, x, wraps=False)


def _sample(
    light: npt.NDArray[np.float16], down: npt.NDArray[np.float64], across: npt.NDArray[np.float64], wraps: bool
) -> npt.NDArray[np.float32]:
    """Return light between the pixels, bilinear."""
    rows, columns = light.shape[:2]
    top, left = np.floor(down).astype(int), np.floor(across).astype(int)
    y, x = (down - top)[..., None].astype(np.float32), (across - left)[..., None].astype(np.float32)
    bottom = np.minimum(top + 1, rows - 1)
    right = (left + 1) % columns if wraps else np.minimum(left + 1, columns - 1)
    left = left % columns
    upper = light[top, left] * (1 - x) + light[top, right] * x
    lower = light[bottom, left] * (1 - x) + light[bottom, right] * x
    return upper * (1 - y) + lower * y


def shine(light: Tensor, white: Tensor | float) -> Tensor:
    """Return light under the shoulder of Reinhard et al. 2002, equation 4: linear in the dark, 1 at `white`."""
    return (light * (1 + light / white**2) / (1 + light)).clamp(max=1.0)


def meter(light: Tensor, level: Tensor | float, white: Tensor | float, rounds: int = 6) -> Tensor:
    """Return the gains `(B, 1, 1, 1)` that bring the mean luma of views under `shine` to `level`.

    Args:
        light: `(B, 3, H, W)` linear light.
        level: mean luma in (0, 1). A lamp is white however bright it is, so that it counts by its size.
        white: as `shine` takes it.
        rounds: of a fixed point.
    """
    small = F.interpolate(light, size=(32, 32), mode="area") if min(light.shape[-2:]) > 32 else light
    brightness = luminance(small).clamp_min(DARKEST)
    gain = 0.18 / brightness.log().mean(dim=(2, 3), keepdim=True).exp()
    for _ in range(rounds):
        mean = from_linear(shine(gain * brightness, white)).mean(dim=(2, 3), keepdim=True).clamp(0.01, 0.99)
        gain = gain * (level / (1 - level) * (1 - mean) / mean).clamp(0.1, 10) ** 1.5
    return gain


def develop(light: Tensor) -> Tensor:
    """Return views `(B, 3, H, W)` of linear light as well developed photos, sRGB in [0, 1].

    Parts of a view are brought together until they span `RANGE_KEPT` stops, while the differences within a part stay.
    A meter then exposes, somewhat lower where the view's range is that of night or of windows; the brightest half of a
    percent is white.
    """
    stops = luminance(light).clamp_min(DARKEST).log2()
    parts = smooth_parts(stops)
    flat = parts.flatten(1)
    low, high = (torch.quantile(flat, q, dim=1)[:, None, None, None] for q in (0.02, 0.98))
    span = high - low
    slope = (RANGE_KEPT / span.clamp_min(0.1)).clamp(LEAST_SLOPE, 1)
    light = light * torch.exp2((slope - 1) * (parts - (low + high) / 2))
    level = BRIGHTNESS - 0.08 * ((span - 6) / 5).clamp(0, 1)
    gain = meter(light, level, 1.5)
    white = torch.quantile((gain * light).amax(dim=1).flatten(1), 0.995, dim=1)[:, None, None, None].clamp(0.7, 3)
    x = from_linear(shine(meter(light, level, white) * light, white))
    return (x + CONTRAST * (3 * x**2 - 2 * x**3 - x)).clamp(0, 1)


def smooth_parts(stops: Tensor, share: float = 1 / 8, epsilon: float = 0.4) -> Tensor:
    """Return the parts that logarithms of luminance `(B, 1, H, W)` consist of, without the detail within them.

    The guided filter (He et al. 2013) of a picture along itself: windows of `share` of the longest side, `epsilon` the
    variance, in squared stops, up to which a difference is detail.
    """
    radius = max(round(max(stops.shape[-2:]) * share), 1)
    mean = box_mean(stops, radius)
    variance = (box_mean(stops * stops, radius) - mean.square()).clamp_min(0)
    scale = variance / (variance + epsilon)
    return box_mean(scale, radius) * stops + box_mean((1 - scale) * mean, radius)
