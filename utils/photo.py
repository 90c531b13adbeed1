"""Read photos as people see them: upright, in sRGB, 8 bits per channel."""

import io
import math
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageCms, ImageOps

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""Suffixes, in lower case, by which photos are found in folders."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF")
"""The decoders that are tried; MPO is the JPEG of many phones, with a second picture behind the first."""

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


def open_photo(path: Path) -> Image.Image:
    """Open a photo and check what its header says, without decoding it.

    Raises:
        PhotoError: the file is missing, unreadable, not a regular file, not a photo, or has more than 8 bits per
            channel.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for ever
            raise PhotoError("not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large photos and of odd metadata; its errors stay errors
            image = Image.open(path, formats=FORMATS)
    except Image.UnidentifiedImageError:
        empty = os.path.getsize(path) == 0
        raise PhotoError("the file is empty" if empty else "not a JPEG, PNG, WebP, BMP or TIFF photo") from None
    except Image.DecompressionBombError as error:
        raise PhotoError(f"too many pixels to open safely ({error})") from None
    except OSError as error:
        raise PhotoError(error.strerror or str(error)) from None
    except (ValueError, SyntaxError) as error:
        raise PhotoError(f"damaged ({error})") from None
    if _is_deeper_than_8_bits(image):
        image.close()
        raise PhotoError("more than 8 bits per channel: save it with 8 bits per channel first")
    return image


def _is_deeper_than_8_bits(image: Image.Image) -> bool:
    # Pillow opens a 16-bit RGB file in the 8-bit mode "RGB"; only the raw mode of its decoder tells.
    raw_modes = [str(tile.args[0] if isinstance(tile.args, tuple) else tile.args) for tile in image.tile]
    return image.mode.startswith(("I", "F")) or any(";16" in mode for mode in raw_modes)


def decode_photo(image: Image.Image) -> Image.Image:
    """Decode an opened photo to "RGB", upright and in sRGB.

    Transparency is dropped; an embedded colour profile is applied, a broken one ignored.

    Raises:
        PhotoError: the file's data is damaged or cut short.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return _to_srgb(ImageOps.exif_transpose(image), image.info.get("icc_profile"))
    except (OSError, ValueError, SyntaxError, MemoryError, EOFError) as error:
        raise PhotoError(f"damaged or cut short ({error})") from None


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
        if enough is not None:
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
    return image.convert("RGB")
