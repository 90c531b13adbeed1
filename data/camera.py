"""Synthesis of mis-exposure as a camera makes it, of a whole batch, with per-photo draws.

The photo is taken back to linear light, given another exposure, and developed again: noise, shoulder, tone curve, white
balance, saturation, JPEG. All is drawn per photo beforehand (`draw_camera`) and applied on the device (`camera`).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.colour import from_linear, luma, luminance, to_linear
from utils.device import places, send

from .scenes import meter, shine, smooth_parts

MIDDLE_GREY = 0.18
"""Linear light that a meter takes the mean of a scene for."""
METERED = 0.42
"""Mean luma at which a camera's own meter exposes a scene."""
GRID = 3
"""Knots of a local exposure map along each side."""
_NAMES = (
    "lost",
    "metered",
    "stretch",
    "shoulder",
    "noise",
    "red",
    "blue",
    "gamma",
    "contrast",
    "saturation",
    "quality",
    "seed",
)
COUNT = GRID * GRID + len(_NAMES)
"""Numbers of a draw: the exposure at every knot, in EV, then the others."""
TELLING, TELLING_NOTHING = 0.75, 2.5
"""Errors in EV up to which a photo still tells how bright it should be, and from which it tells nothing of it."""
_QUANTISATION = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # ITU-T T.81, table K.1


@dataclass(frozen=True)
class CameraRange:
    """From what a draw is made."""

    ev: tuple[float, float] = (-5.0, 2.6)
    """Largest darker and brighter exposure shift in EV."""
    dark_share: float = 0.6
    """Share of the shifts that are darker, where both sides are drawn."""
    least_ev: float = 0.0
    """Smallest shift, either way, before local maps: a gap between photos that are mis-exposed and those that are
    not. A side of `ev` that does not reach so far is not drawn."""
    is_metered: bool = False
    """Whether the shift counts from the exposure that brings the view's mean light to middle grey, as a meter would
    have it, as far as it destroys the evidence of the view's own (`evidence_lost`)."""
    mild_share: float = 0.0
    """Share of the shifts that are mild instead: normal around 0, counted from the view's own exposure."""
    mild_ev: float = 0.6
    """Standard deviation of mild shifts in EV."""
    stretch: float = 0.0
    """Most by which differences in light between a view's parts are enlarged: 1 doubles them, in stops."""
    stretch_share: float = 0.3
    """Share of the photos whose light is stretched."""
    local_ev: float = 1.2
    """Largest standard deviation in EV of the knots of a local map."""
    local_share: float = 1 / 3
    """Share of the photos with a local map."""
    shoulder: float = 1.5
    """Power of a uniform number that gives the shoulder: 0 always keeps white white, more clips harder."""
    noise: float = 1e-3
    """Largest variance of the noise at full scale of linear light."""
    noise_share: float = 0.5
    """Share of the photos with noise."""
    white_balance: float = 0.05
    """Standard deviation of the logarithms of the gains of red and blue."""
    gamma: float = 0.4
    """Largest logarithm of the power that the developed photo is raised to, either way."""
    contrast: float = 0.5
    """Largest share of an S-curve that is mixed in, either way."""
    saturation: float = 0.3
    """Largest change of saturation, either way."""
    quality: int = 30
    """Lowest quality of JPEG."""
    jpeg_share: float = 0.5
    """Share of the photos that have been through JPEG."""


def draw_camera(rng: np.random.Generator, ranges: CameraRange) -> Tensor:
    """Draw one photo's exposure and development: float64 `(COUNT,)`."""
    low, high = ranges.ev
    has_dark, has_bright = low < 0 and low <= -ranges.least_ev, high > 0 and high >= ranges.least_ev
    is_dark = rng.uniform() < (ranges.dark_share if has_dark and has_bright else float(has_dark))
    ev = rng.uniform(low, -ranges.least_ev) if is_dark else rng.uniform(min(ranges.least_ev, high), high)
    if rng.uniform() < ranges.mild_share:
        ev = float(np.clip(ranges.mild_ev * rng.standard_normal(), low, high))
    lost = evidence_lost(ev)
    amount = rng.uniform(0, ranges.local_ev) * (rng.uniform() < ranges.local_share)
    knots = ev + amount * rng.standard_normal(GRID * GRID)
    rest = {
        "lost": lost,
        "metered": lost if ranges.is_metered else 0.0,
        "stretch": rng.uniform(0, ranges.stretch) * (rng.uniform() < ranges.stretch_share),
        "shoulder": rng.uniform() ** ranges.shoulder,
        "noise": ranges.noise * 10 ** -rng.uniform(0, 2) * (rng.uniform() < ranges.noise_share),
        "red": math.exp(ranges.white_balance * rng.standard_normal()),
        "blue": math.exp(ranges.white_balance * rng.standard_normal()),
        "gamma": math.exp(rng.uniform(-ranges.gamma, ranges.gamma)),
        "contrast": rng.uniform(-ranges.contrast, ranges.contrast),
        "saturation": 1 + rng.uniform(-ranges.saturation, ranges.saturation),
        "quality": rng.uniform(ranges.quality, 98) if rng.uniform() < ranges.jpeg_share else 0.0,
        "seed": float(rng.integers(2**31)),
    }
    return torch.tensor([*knots, *(rest[name] for name in _NAMES)], dtype=torch.float64)


def evidence_lost(ev: float) -> float:
    """Return how much of what a photo tells about its brightness an error in EV destroys, from 0 to 1.

    A photo that is off by half a stop still says how bright it is to be; one that is off by four does not.
    """
    x = min(max((abs(ev) - TELLING) / (TELLING_NOTHING - TELLING), 0.0), 1.0)
    return x * x * (3 - 2 * x)


def value_of(draws: Tensor, name: str) -> Tensor:
    """Return one column of draws `(B, COUNT)`: `(B,)`."""
    return draws[:, GRID * GRID + _NAMES.index(name)]


def camera(photos: Tensor, draws: Tensor) -> Tensor:
    """Mis-expose a batch, each photo by its own draw, as a camera's chain does: light, noise, clipping, development.

    Args:
        photos: `(B, 3, H, W)` sRGB in [0, 1], normally exposed.
        draws: `(B, COUNT)`, rows of `draw_camera`; on the CPU, where it is looked up which photo needs what.

    Returns:
        `(B, 3, H, W)` sRGB in [0, 1].

    With y the linear light of the photo and g the gain, the exposed light is g y / (1 + k (g - 1) y). k = 0 scales
    light and clips it hard; k = 1 takes y to be what the shoulder r / (1 + r) (Reinhard et al. 2002, equation 3)
    made of the scene's r: whites stay white whatever the exposure, as lamps and windows do. k is drawn between the two.
    A stretched draw takes the scene to have had more range than the photo shows: bright parts are brighter and dark
    ones darker, along edges. A metered draw first scales the light so that the mean of what is not white is middle
    grey, as an exposure meter does: then how bright the result is says little about how bright the photo was.
    """
    value, ev = _columns(photos, draws)
    light = to_linear(photos)
    brightness = luminance(light)
    if len(places(value_of(draws, "stretch") > 0)):
        parts = smooth_parts(brightness.clamp_min(2.0**-10).log2())
        ev = ev + value["stretch"] * (parts - parts.mean(dim=(2, 3), keepdim=True))
    counts = (brightness < 0.9).to(light.dtype) + 1e-3
    mean = (counts * brightness).sum(dim=(2, 3), keepdim=True) / counts.sum(dim=(2, 3), keepdim=True)
    gain = torch.exp2(ev) * (MIDDLE_GREY / mean.clamp_min(1e-3)) ** value["metered"] * value["white_balance"]
    return _develop(expose(light, gain, value["shoulder"]), value, draws)


def scene_camera(light: Tensor, draws: Tensor) -> Tensor:
    """Photograph scenes, each by its own draw, whose shift counts from the exposure that a meter chooses.

    Args:
        light: `(B, 3, H, W)` linear light, of any range.
        draws: as `camera` takes them; of the shoulder k, light is white from 1 + 3 k on.

    Returns:
        `(B, 3, H, W)` sRGB in [0, 1].
    """
    value, ev = _columns(light, draws)
    white = 1 + 3 * value["shoulder"]
    gain = torch.exp2(ev) * meter(light, METERED, white) * value["white_balance"]
    return _develop(shine(gain * light, white), value, draws)


def _columns(photos: Tensor, draws: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the values of draws, `(B, 1, 1, 1)` each, and the map of exposure `(B, 1, H, W)` in EV."""
    draws = send(draws, photos.device)
    size = photos.shape[0], 1, GRID, GRID
    knots = draws[:, : GRID * GRID].to(photos.dtype).view(size)
    columns = draws[:, GRID * GRID :, None, None, None].to(photos.dtype).unbind(dim=1)
    value = dict(zip(_NAMES, columns, strict=True))  # each (B, 1, 1, 1)
    value["white_balance"] = torch.cat((value["red"], torch.ones_like(value["red"]), value["blue"]), dim=1)
    return value, F.interpolate(knots, photos.shape[-2:], mode="bicubic", align_corners=True)


def _develop(light: Tensor, value: dict[str, Tensor], draws: Tensor) -> Tensor:
    """Return exposed light in [0, 1] as the file that a camera makes of it, sRGB in [0, 1].

    The noise is that of Foi et al. 2008, with a variance affine in the light.
    """
    noisy = places(value_of(draws, "noise") > 0)
    if len(noisy):
        index, seeds = send(noisy, light.device), send(value_of(draws, "seed")[noisy].long(), light.device)
        part = light[index]
        # photons, and the electronics: beside the signal, the noise grows as light falls
        deviation = (value["noise"][index] * (part.clamp_min(0) + 0.02)).sqrt()
        light = light.index_copy(0, index, part + normal_noise(seeds, part.shape[1:]).to(part.dtype) * deviation)
    x = from_linear(light.clamp(0, 1)) ** value["gamma"]
    x = x + value["contrast"] * (3 * x**2 - 2 * x**3 - x)
    grey = luma(x)
    x = (grey + value["saturation"] * (x - grey)).clamp(0, 1)
    compressed = places(value_of(draws, "quality") > 0)
    if len(compressed):
        index = send(compressed, light.device)
        x = x.index_copy(0, index, jpeg(x[index], value["quality"][index].clamp_min(1)))
    return x


def expose(light: Tensor, gain: Tensor, shoulder: Tensor | float) -> Tensor:
    """Return linear light, times `gain`, under a shoulder from 0 (none) to 1 (white stays white): see `camera`."""
    return gain * light / ((1 - shoulder * light) + shoulder * gain * light)  # so that white is gain / gain


def jpeg(photos: Tensor, quality: Tensor) -> Tensor:
    """Return photos with the losses of JPEG's quantisation (ITU-T T.81), without subsampling of the chroma.

    Args:
        photos: `(B, 3, H, W)` sRGB in [0, 1].
        quality: `(B, 1, 1, 1)` in [1, 100], as libjpeg scales the tables. The luma's table serves all channels.
    """
    batch, _, height, width = photos.shape
    padded = F.pad(photos, (0, -width % 8, 0, -height % 8), mode="replicate") * 255
    to_ycc, to_rgb, tables, dct = _jpeg_constants(photos.device, photos.dtype)
    ycc = torch.einsum("ij,bjhw->bihw", to_ycc, padded)
    ycc[:, 0] -= 128
    rows, columns = padded.shape[-2] // 8, padded.shape[-1] // 8
    blocks = ycc.reshape(batch, 3, rows, 8, columns, 8).transpose(3, 4)  # (B, 3, rows, columns, 8, 8)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[..., None, None]
    table = ((tables * scale + 50) / 100).floor().clamp(1, 255)
    coefficients = (dct @ blocks @ dct.T / table).round() * table
    ycc = (dct.T @ coefficients @ dct).transpose(3, 4).reshape(padded.shape)
    ycc[:, 0] += 128
    rgb = torch.einsum("ij,bjhw->bihw", to_rgb, ycc)
    return (rgb / 255)[..., :height, :width].clamp(0, 1)


@functools.cache
def _jpeg_constants(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return RGB to YCbCr and back, the table of quantisation and the DCT: made once, as copying makes a GPU wait."""
    to_ycc = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    position = torch.arange(8)
    dct = 0.5 * torch.cos(math.pi / 8 * position[:, None] * (position[None] + 0.5))
    dct[0] *= math.sqrt(0.5)
    constants = to_ycc, torch.linalg.inv(to_ycc.double()), torch.tensor(_QUANTISATION), dct
    to_ycc, to_rgb, tables, dct = (constant.to(device, dtype) for constant in constants)
    return to_ycc, to_rgb, tables, dct


def normal_noise(seeds: Tensor, size: Sequence[int]) -> Tensor:
    """Return float32 `(B, *size)` of standard normal noise, each row a function of its seed alone.

    Args:
        seeds: `(B,)` int64 in [0, 2^31).
        size: of a row.

    Counters are hashed, in place of a generator with a state: neither batches nor processes change a photo's noise, nor
    does the device, to rounding. Pairs of uniform numbers become normal ones as Box and Muller have it (1958).
    """
    count = math.prod(size)
    half = -(-count // 2)
    counters = torch.arange(2 * half, device=seeds.device)
    uniform = _hash(_hash(seeds)[:, None] ^ counters).float() / 2**32
    radius = (-2 * (uniform[:, :half] + 2.0**-33).log()).clamp_min(0).sqrt()
    angle = 2 * math.pi * uniform[:, half:]
    noise = torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)
    return noise[:, :count].view(-1, *size)


def _hash(numbers: Tensor) -> Tensor:
    """Return int64 numbers in [0, 2^32) scrambled within that range: shifts, and products that do not overflow."""
    for factor in (0x7FEB352D, 0x31848BAB, 0x5BD1E995):
        numbers = ((numbers ^ (numbers >> 16)) * factor) & 0xFFFFFFFF
    return numbers ^ (numbers >> 16)
