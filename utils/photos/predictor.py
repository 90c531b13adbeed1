"""Correct photos in Python: the network at a bounded size, its correction carried to full size.

This is the door for those who want no command line.
"""

import struct
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from models import Corrector, build_generator, curves, grain
from models.corrector import hold_back

from ..colour import from_linear, to_linear
from ..device import Arithmetic
from ..weights import WeightsError, load_weights
from .colour_codes import with_srgb_curves
from .full_size import apply_curves
from .reading import Alpha, Pixels, from_srgb, leads_back, to_8_bits, to_srgb, without_alpha

LARGEST_EXPOSURE = 3.0
"""Most stops, either way, by which a correction can be made brighter."""
FRAME = 6
"""How far the pixels of a frame are at most from black, or from white, in steps of 255."""
LARGEST_BATCH = 16
"""Small photos of equal size that are run at once; the network takes each with its mirror image."""

Picture = TypeVar("Picture", Image.Image, npt.NDArray[np.uint8], npt.NDArray[np.uint16])


@dataclass(eq=False)
class _Request:
    photo: Tensor
    result: Tensor | None = None
    error: Exception | None = None


class Predictor:
    """Correct the exposure of photos of any size. May be used by several threads at once.

    Args:
        network: a trained network; its first output is the corrected photo.
        size: longest side in pixels of what the network sees, or more where `least_size` asks for it.
        least_size: what its short side has at least, as `Corrector` takes it.
        careful: correct by half what is probably right as it is, as `Corrector` takes it.
        arithmetic: where and how it runs; None: in float32, on a GPU where there is one.
    """

    def __init__(
        self,
        network: nn.Module,
        size: int,
        arithmetic: Arithmetic | None = None,
        *,
        least_size: int = 0,
        careful: bool = False,
    ) -> None:
        self.arithmetic = arithmetic or Arithmetic()
        self._make_locks()
        self.corrector = Corrector(network, size, least_size, careful=careful).eval()
        try:
            self.arithmetic.place(self.corrector)
        except Exception as error:
            if not self._falls_back(error):
                raise

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_waiting", "_list", "_network")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_locks()

    def _make_locks(self) -> None:
        self._waiting: list[_Request] = []
        self._list, self._network = threading.Lock(), threading.Lock()

    @classmethod
    def from_weights(
        cls, path: str | Path, device: str = "auto", size: int | None = None, *, careful: bool = False
    ) -> "Predictor":
        """Return a predictor from a weights file.

        Args:
            path: as train.py and export.py write it, with its digest beside it.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            size: longest side of what the network sees, or more, as `Corrector` has it; None: what the file says.
            careful: as `Corrector` takes it.

        Raises:
            WeightsError: the file is missing, damaged, or not one of ours.
            ValueError: there is no such device.
        """
        path = Path(path)
        arithmetic = Arithmetic(device=device)
        weights = load_weights(path)
        try:
            with torch.random.fork_rng(devices=[]):  # the untrained weights are drawn and thrown away
                network = build_generator(weights.architecture)
            network.load_state_dict(weights.state, assign=True)  # no second copy
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(f"{path}: its tensors do not fit its architecture ({reason})") from None
        return cls(network, size or weights.working_size, arithmetic, least_size=weights.least_size, careful=careful)

    @property
    def size(self) -> int:
        """Longest side in pixels of what the network sees, or more of long photos, as `Corrector` has it."""
        return self.corrector.working_size

    def predict(self, photo: Picture, strength: float = 1.0, exposure: float = 0.0) -> Picture:
        """Return the corrected photo, of the type and size of the one given.

        Args:
            photo: a PIL image, whose embedded colour profile is heeded: grey of 8 or 16 bits and RGB keep their mode
                and, but for 16 bits, transparency, others become RGB; or an array of uint8 or uint16 in sRGB, `(H, W)`,
                `(H, W, 1)`, `(H, W, 3)`, or `(H, W, 4)` with transparency, which stays as it is.
            strength: from 0, no correction, to 1, the full one.
            exposure: stops by which the result is made brighter, or darker, from -3 to 3, along the same curves.

        Raises:
            ValueError: an array of another shape or type, an image of 32 bits or floats, a strength or exposure out of
                range, or weights whose output is not finite.
        """
        _check(strength, exposure)
        if isinstance(photo, Image.Image):
            if 0 in photo.size:
                raise ValueError(f"an image of {photo.width} x {photo.height} pixels")
            return self._predict_image(photo, strength, exposure)
        if not isinstance(photo, np.ndarray):
            raise ValueError(f"a {type(photo).__name__}: a PIL image or an array is expected")
        if photo.dtype not in (np.uint8, np.uint16) or photo.ndim not in (2, 3) or photo.size == 0:
            raise ValueError(f"an array of {photo.dtype}, shape {photo.shape}: uint8 or uint16, (H, W) or (H, W, C)")
        result = np.array(photo if photo.ndim == 3 else photo[..., None])
        if result.shape[2] not in (1, 3, 4):
            raise ValueError(f"{result.shape[2]} channels: 1, 3, or 4 with transparency")
        colours = np.ascontiguousarray(result[..., :3])
        alpha = result[..., 3] if result.shape[2] == 4 else None
        self.correct_in_place(colours, strength=strength, exposure=exposure, alpha=alpha)
        result[..., :3] = colours
        return result.reshape(photo.shape)

    def _predict_image(self, photo: Image.Image, strength: float, exposure: float) -> Image.Image:
        if strength == exposure == 0:
            return photo.copy()
        if photo.mode.startswith("I;16"):
            profile = photo.info.get("icc_profile")
            grey = np.array(photo).astype(np.uint16)[..., None]
            self.correct_in_place(grey, profile if profile and leads_back(profile, "L") else None, strength, exposure)
            result = Image.fromarray(grey[..., 0])
            # transparency is that of a grey value, which has changed
            result.info = {name: value for name, value in photo.info.items() if name != "transparency"}
            return result
        if photo.mode in ("I", "F"):
            raise ValueError(f'an image of mode "{photo.mode}": 8 or 16 bits per channel are expected')
        info, profile = dict(photo.info), photo.info.get("icc_profile")
        straight = photo.convert({"La": "LA", "RGBa": "RGBA"}[photo.mode]) if photo.mode in ("La", "RGBa") else photo
        alpha = straight.convert("RGBA").getchannel("A") if straight.has_transparency_data else None
        pixels = without_alpha(straight)
        if pixels.mode == "CMYK":
            pixels, profile = to_srgb(pixels, info.pop("icc_profile", None)), None
        pixels = pixels.copy() if pixels is photo else pixels
        profile = profile if profile and leads_back(profile, pixels.mode) else None
        self.correct_in_place(pixels, profile, strength, exposure, alpha)
        if alpha is not None:
            pixels.putalpha(alpha)
        pixels.info = info
        return pixels

    def correct(self, batch: Tensor, strength: float = 1.0, exposure: float = 0.0) -> Tensor:
        """Return corrected photos, on the device of those given: `predict` for tensors, in float32 throughout.

        Args:
            batch: `(B, 3, H, W)` float sRGB in [0, 1].
            strength: as `predict` takes it.
            exposure: as `predict` takes it.

        Raises:
            ValueError: another shape, a strength or exposure out of range, or weights whose output is not finite.
        """
        _check(strength, exposure)
        if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape[2:] or not batch.is_floating_point():
            raise ValueError(f"a batch of {batch.dtype}, shape {tuple(batch.shape)}: floats (B, 3, H, W) are expected")
        small = self.corrector.small_copy(batch.float())
        maps = self.corrector.spared(small, curves.fit(small, self._network_output(small)))
        maps = curves.adjust(maps, strength, exposure)
        return curves.apply(grain.reduce(batch, maps), maps)

    def _network_output(self, small: Tensor) -> Tensor:
        """Return small copies `(B, 3, h, w)` as they are to become, on their device."""
        shown = self.corrector.shown(small)
        placed = shown.to(self.arithmetic.device).contiguous(memory_format=self.arithmetic.memory_format)
        with torch.inference_mode():
            with self.arithmetic.autocast():
                result = self.corrector.output(placed)
            if not torch.isfinite(result).all():
                raise ValueError("the network's output is not finite: the weights are not usable for this photo")
        return hold_back(small, result.to(small.device))

    def correct_in_place(
        self,
        pixels: Pixels,
        profile: bytes | None = None,
        strength: float = 1.0,
        exposure: float = 0.0,
        alpha: Alpha | None = None,
    ) -> None:
        """Correct an image in mode "L" or "RGB", or an `(H, W, C)` array.

        `profile` is the ICC profile of its colours, one that `utils.photos.reading.leads_back` accepts; None for sRGB.
        `alpha` is its transparency, as `seen` takes it.
        """
        if strength == exposure == 0:
            return
        coded, its_profile = encoded(pixels, profile)
        if coded is not pixels:
            self.correct_in_place(coded, its_profile, strength, exposure, alpha)
            np.asarray(pixels)[...] = _TO_LIGHT[np.asarray(coded)]  # an array's own memory
            return
        maps = curves.adjust(self.fit(seen(pixels, alpha), profile)[None], strength, exposure)[0]
        apply_curves(pixels, maps, less_grain=True)

    def fit(self, pixels: Pixels, profile: bytes | None = None) -> Tensor:
        """Return a photo's correction as curves `(3, C, h, w)` in its own colours, as `models.curves.fit` has them."""
        height, width = reversed(pixels.size) if isinstance(pixels, Image.Image) else pixels.shape[:2]
        small = reduced(pixels, self.corrector.longest_side(height, width), fills_frame=True)
        photo = to_srgb(small, profile)
        shown = _to_tensor(photo)
        corrected = self._run(shown)
        guide, target = _to_tensor(small), corrected
        if small.mode == "L" and profile is None:
            target = corrected.mean(dim=1, keepdim=True)
        elif profile is not None:  # the change, brought into the photo's own colours: no change stays no change
            image = Image.fromarray((corrected[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
            after, before = from_srgb(image, profile, small.mode), from_srgb(photo, profile, small.mode)
            assert after is not None and before is not None  # as `leads_back` says
            target = (guide + _to_tensor(after) - _to_tensor(before)).clamp(0, 1)
        return self.corrector.spared(shown, curves.fit(guide, target))[0]

    def _run(self, photo: Tensor) -> Tensor:
        """Return the corrected `(1, 3, h, w)` photo; photos of equal size that wait at once are run together."""
        request = _Request(photo)
        with self._list:
            self._waiting.append(request)
        with self._network:
            if request in self._waiting:  # else another thread has taken it along
                with self._list:
                    alike = [
                        other for other in self._waiting if other.photo.shape == photo.shape and other is not request
                    ]
                    group = [request, *alike[: LARGEST_BATCH - 1]]
                    self._waiting = [other for other in self._waiting if other not in group]
                self._answer(group)
        if request.error is not None:
            raise request.error
        assert request.result is not None
        return request.result

    def _answer(self, group: list[_Request]) -> None:
        try:
            results = self._network_output(torch.cat([request.photo for request in group]))
            for request, result in zip(group, results.split(1), strict=True):
                request.result = result
        except Exception as error:
            if len(group) > 1:
                for request in group:
                    self._answer([request])
            elif self._falls_back(error):
                self._answer(group)
            else:
                group[0].error = error

    def _falls_back(self, error: Exception) -> bool:
        """Go on with the CPU after a GPU has run out of memory; return whether that was the error."""
        is_memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)  # Apple's has no class
        if not is_memory or self.arithmetic.device.type == "cpu":
            return False
        warnings.warn(f"{self.arithmetic.device} is out of memory: going on with the CPU", stacklevel=3)
        self.arithmetic = Arithmetic(device="cpu")
        self.arithmetic.place(self.corrector)
        return True


def _check(strength: float, exposure: float) -> None:
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength}: from 0 to 1")
    if not abs(exposure) <= LARGEST_EXPOSURE:
        raise ValueError(f"exposure {exposure}: from {-LARGEST_EXPOSURE:g} to {LARGEST_EXPOSURE:g}")


_LIGHT = torch.linspace(0, 1, 65536, dtype=torch.float64)
_TO_CODES, _TO_LIGHT = (
    (65535 * change(_LIGHT)).round().numpy().astype(np.uint16) for change in (from_linear, to_linear)
)
"""16-bit codes under sRGB's curve by those of linear light, and the other way round."""


def encoded(pixels: Pixels, profile: bytes | None) -> tuple[Pixels, bytes | None]:
    """Return a photo `(H, W, C)` of 16 bits in linear light with sRGB's curve, and its profile likewise.

    Linear light has no room for shadows, which the network and the curves need. All other photos are returned as they
    are, the same object.
    """
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint16 and profile:
        with suppress(struct.error):  # broken
            if (with_curves := with_srgb_curves(profile)) is not None:
                return _TO_CODES[pixels], with_curves
    return pixels, profile


def seen(pixels: Pixels, alpha: Alpha | None) -> Pixels:
    """Return a photo as what can be seen of it decides: pixels that are wholly transparent get the others' mean colour.

    Args:
        pixels: an image in mode "L" or "RGB", or an `(H, W, C)` array; it is not changed.
        alpha: its transparency, mode "L" or `(H, W)`; None where it has none.
    """
    is_seen = None if alpha is None else np.asarray(alpha) > 0
    if is_seen is None or is_seen.all() or not is_seen.any():
        return pixels
    filled = np.array(pixels)
    own = filled if filled.ndim == 3 else filled[..., None]
    own[~is_seen] = own.mean(axis=(0, 1), where=is_seen[..., None]).round()
    return Image.fromarray(filled) if isinstance(pixels, Image.Image) else filled


def reduced(pixels: Pixels, size: int, *, fills_frame: bool = False) -> Image.Image:
    """Return a copy, mode "L" or "RGB", 8 bits, whose longest side is at most `size` pixels; or `without_frame`."""
    if isinstance(pixels, Image.Image):
        step = max(pixels.size) // (2 * size)
        image = pixels.reduce(step) if step > 1 else pixels
    else:
        step = max(pixels.shape[:2]) // (2 * size)
        if pixels.dtype == np.uint8 and step < 8:  # a small photo: quicker
            return reduced(to_8_bits(pixels), size, fills_frame=fills_frame)
        image = to_8_bits(_block_means(pixels, step) if step > 1 else pixels)
    image = without_frame(image, mixed=step > 1) if fills_frame else image
    if max(image.size) <= size:
        return image.copy()
    image = image.copy() if image is pixels else image
    image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=None)
    return image


def without_frame(image: Image.Image, *, mixed: bool) -> Image.Image:
    """Return a small copy as what is inside its black or white frame decides: the frame gets the inside's mean colour.

    A frame is on opposite sides at least, as of films, scans and prints. What is inside begins along at least half of
    each side: a dark or white background, which shows the photo's subject, is no frame.

    Args:
        image: of mode "L" or "RGB"; it is not changed.
        mixed: whether pixels are means, of which one on each side may be of frame and photo.
    """
    pixels = np.asarray(image)
    values = pixels if pixels.ndim == 3 else pixels[..., None]
    top, left, (bottom, right) = 0, 0, values.shape[:2]
    black, white = values.max(2) <= FRAME, values.min(2) >= 255 - FRAME
    for is_frame in (black, white, black, white):  # one inside the other, too
        for is_upright in (True, False):
            found = is_frame[top:bottom, left:right]
            first, last = _bars(found if is_upright else found.T, mixed)
            if is_upright:
                top, bottom = top + first, bottom - last
            else:
                left, right = left + first, right - last
    if (top, left, bottom, right) == (0, 0, *values.shape[:2]):
        return image
    inside = values[top:bottom, left:right]
    filled = np.broadcast_to(inside.mean(axis=(0, 1)).round().astype(np.uint8), values.shape).copy()
    filled[top:bottom, left:right] = inside
    return Image.fromarray(filled.reshape(pixels.shape))


def _bars(is_frame: npt.NDArray[np.bool_], mixed: bool) -> tuple[int, int]:
    """Return how many rows at the top and at the bottom are of a frame, both 0 where there is none."""
    shares = is_frame.mean(axis=1)
    inner = np.flatnonzero(shares < 1)
    if not len(inner) or inner[0] == 0 or inner[-1] == len(shares) - 1:
        return 0, 0
    first, last = inner[0] + mixed, inner[-1] - mixed
    if last <= first or max(shares[first], shares[last]) > 0.5:
        return 0, 0
    return int(first), int(len(shares) - 1 - last)


def _block_means(pixels: npt.NDArray[Any], step: int) -> npt.NDArray[Any]:
    """Return the means of blocks of `step` by `step` pixels of `(H, W, C)`: what Pillow's `reduce` is for images."""
    height, width, channels = pixels.shape
    tops, lefts = np.arange(0, height, step), np.arange(0, width, step)
    widest = np.uint32 if step <= 256 else np.uint64
    sums = np.empty((len(tops), width * channels), np.uint16 if pixels.dtype == np.uint8 and step <= 256 else widest)
    for top, row in zip(tops, sums, strict=True):  # much quicker than reduceat along this axis
        pixels[top : top + step].reshape(-1, width * channels).sum(axis=0, dtype=row.dtype, out=row)
    blocks = np.add.reduceat(sums.reshape(len(tops), width, channels), lefts, axis=1, dtype=widest)
    counts = np.diff(tops, append=height)[:, None] * np.diff(lefts, append=width)
    return (blocks / counts[..., None] + 0.5).astype(pixels.dtype)


def _to_tensor(image: Image.Image) -> Tensor:
    """Return an image as `(1, C, H, W)` floats in [0, 1]."""
    pixels = torch.from_numpy(np.array(image))
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))[None].float() / 255
