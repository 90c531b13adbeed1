"""Read photos as people see them: upright, in sRGB, 8 bits per channel."""

import io
import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from .files import atomic_path

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""Suffixes, in lower case, by which photos are found in folders."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""The decoders that are tried; the JPEG one also reads MPO, the JPEG of many phones with a second picture in it."""

_KEEPS_EXIF = ("JPEG", "PNG", "WEBP")
_SRGB = ImageCms.createProfile("sRGB")


class PhotoError(Exception):
    """A photo that cannot be read. The message says why, and what to do where something can be done."""


def find_photos(folder: Path) -> list[Path]:
    """Return the photos below `folder`, sub-folders included, by suffix, sorted by path.

    Raises:
        OSError: `folder` cannot be listed.
    """
    return sorted(path for path in _walk(folder) if path.suffix.lower() in SUFFIXES)


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            elif entry.is_file():
                yield Path(entry.path)


def open_photo(path: Path) -> ImageFile.ImageFile:
    """Open a photo and check what its header says, without decoding it.

    Raises:
        PhotoError: the file is missing, unreadable, not a regular file, not a photo, or has more than 8 bits per
            channel.
    """
    with _errors_as_photo_errors():
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            raise PhotoError("not a regular file")
        if status.st_size == 0:
            raise PhotoError("the file is empty")
        image = Image.open(path, formats=FORMATS)
        image.filename = ""  # else Pillow maps a rotated, uncompressed TIFF into memory with its sides swapped
    if _is_deeper_than_8_bits(image):
        image.close()
        raise PhotoError("more than 8 bits per channel: save it with 8 bits per channel first")
    return image


@contextmanager
def _errors_as_photo_errors() -> Iterator[None]:
    """Turn whatever Pillow raises into a `PhotoError`, and silence its warnings.

    Damaged files make Pillow raise errors of a dozen kinds, from SyntaxError to struct.error.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large photos and of odd metadata
            yield
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError("not a JPEG, PNG, WebP, BMP or TIFF photo") from None
    except Image.DecompressionBombError as error:
        raise PhotoError(f"too many pixels to open safely ({error})") from None
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise PhotoError(reason or f"damaged or cut short ({error or type(error).__name__})") from None


def _is_deeper_than_8_bits(image: ImageFile.ImageFile) -> bool:
    # Pillow opens a 16-bit RGB file in the 8-bit mode "RGB"; only the raw mode of its decoder tells.
    raw_modes = [str(tile.args[0] if isinstance(tile.args, tuple) else tile.args) for tile in image.tile]
    return image.mode.startswith(("I", "F")) or any(
        ";16" in mode and not mode.startswith("BGR")  # "BGR;16" packs a whole pixel into 16 bits
        for mode in raw_modes
    )


def decode_photo(image: Image.Image) -> Image.Image:
    """Decode an opened photo, turn it upright in place, and return it as "RGB" in sRGB.

    Transparency is dropped from what is returned; an embedded colour profile is applied, a broken one ignored.

    Raises:
        PhotoError: the file's data is damaged or cut short.
    """
    with _errors_as_photo_errors():
        image.load()
        with suppress(Exception):  # damaged metadata must not cost the photo
            ImageOps.exif_transpose(image, in_place=True)
        return _to_srgb(image, image.info.get("icc_profile"))


def read_photo(path: Path, enough: int | None = None) -> Image.Image:
    """Open and decode a photo: "RGB", upright, sRGB.

    Args:
        path: the file.
        enough: shortest side in pixels that is enough; a JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where
            that leaves so much, which is much faster.

    Raises:
        PhotoError: the photo cannot be read.
    """
    with open_photo(path) as image:
        if enough is not None:  # a hint that only the JPEG decoder takes
            scale = enough / min(image.size)
            image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        return decode_photo(image)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode in ("P", "PA", "1", "LA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if profile and image.mode in ("L", "RGB", "RGBA", "CMYK"):
        source = image.convert("RGB") if image.mode == "RGBA" else image
        try:
            return ImageCms.profileToProfile(source, io.BytesIO(profile), _SRGB, outputMode="RGB") or source
        except (ImageCms.PyCMSError, OSError, ValueError):  # broken, or made for another colour space
            pass
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass
class Photo:
    """A decoded photo and what must be kept when its corrected pixels are written."""

    pixels: npt.NDArray[np.uint8]
    """`(H, W, 3)` sRGB, upright."""
    format: str
    """Pillow's name of the file's format."""
    is_grey: bool
    """Whether the file has one channel of colour."""
    alpha: Image.Image | None
    """Transparency, upright, in mode "L"."""
    exif: bytes
    """EXIF of a JPEG, PNG or WebP, without orientation, which is applied to the pixels."""


def load_photo(path: Path) -> Photo:
    """Read a photo for correction.

    Raises:
        PhotoError: as `read_photo`, or the file holds several pictures.
    """
    with open_photo(path) as image, _errors_as_photo_errors():
        kind = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: the JPEG of many phones
        if kind != "JPEG" and getattr(image, "n_frames", 1) > 1:
            raise PhotoError(f"holds {getattr(image, 'n_frames', 1)} pictures: save the one to correct on its own")
        pixels = np.array(decode_photo(image))
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        is_grey = image.mode in ("1", "L", "LA")
        return Photo(pixels, kind, is_grey, alpha, _exif(image) if kind in _KEEPS_EXIF else b"")


def save_photo(path: Path, pixels: npt.NDArray[np.uint8], like: Photo) -> None:
    """Write `pixels`, `(H, W, 3)` sRGB, in the format of `like` with its transparency and EXIF; atomically.

    Raises:
        OSError: the folder is missing, read-only or full.
    """
    image = Image.fromarray(pixels)
    if like.is_grey:
        image = image.convert("L")
    if like.alpha is not None:
        image.putalpha(like.alpha)
    options: dict[str, Any] = {"quality": 95} if like.format in ("JPEG", "WEBP") else {}
    if like.exif:
        options["exif"] = like.exif
    with atomic_path(path) as temporary:
        try:
            image.save(temporary, format=like.format, **options)
        except ValueError:  # EXIF too long for the format
            options.pop("exif", None)
            image.save(temporary, format=like.format, **options)


def _exif(image: Image.Image) -> bytes:
    with suppress(Exception):  # as above
        exif = image.getexif()
        exif.pop(ExifTags.Base.Orientation, None)
        return exif.tobytes() if exif else b""
    return b""
