"""Write photos in their own depth and colour space, with all that belongs to them."""

import functools
import io
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from ..files import atomic_path
from .reading import TIFF_TEXTS, Photo, PhotoError, Text, keep_bytes, to_8_bits, to_srgb

LARGEST_SIDES = {"JPEG": 65500, "WEBP": 16383, "AVIF": 32768}
"""In pixels, of what can be written; AVIF holds more, but is not read."""


def save_photo(
    path: Path, photo: Photo, *, format: str | None = None, quality: int | None = None, keep_metadata: bool = True
) -> None:
    """Write a photo with its transparency, colour profile and metadata, atomically.

    Args:
        path: the file; its suffix does not matter.
        photo: what to write.
        format: one of `FORMATS`, or "HEIF"; None for the photo's own, JPEG for "RAW". What the format cannot hold is
            converted: 16 bits to 8, transparency onto white, colours to sRGB.
        quality: from 1 to 100, for JPEG, WebP, AVIF and HEIF; None keeps a JPEG's own quantisation.
        keep_metadata: write EXIF and XMP.

    Raises:
        PhotoError: the format cannot hold a picture of this size.
        OSError: the folder is missing, read-only or full.
    """
    kind = format or {"RAW": "JPEG"}.get(photo.format, photo.format)
    options = (
        dict(photo.options) if kind == photo.format else {"dpi": photo.options["dpi"]} if "dpi" in photo.options else {}
    )
    exif, xmp = (photo.exif, photo.xmp) if keep_metadata else (b"", b"")
    if not keep_metadata:
        for name in ("extra", "texts", "blocks"):
            options.pop(name, None)
        if kind == "JPEG":
            options["comment"] = b""  # else Pillow keeps that of the image
    if max(photo.size) > (most := LARGEST_SIDES.get(kind, max(photo.size))):
        raise PhotoError(f"cannot be written as {kind}, with more than {most} pixels a side: give another --format")
    pixels, alpha, profile = photo.pixels, photo.alpha, photo.profile
    if not isinstance(pixels, Image.Image):
        stays = kind == "JPEG" and alpha is None if pixels.dtype == np.uint8 else kind in ("PNG", "TIFF")
        pixels = pixels if stays else to_8_bits(pixels)
    if isinstance(pixels, Image.Image):
        if isinstance(alpha, np.ndarray):
            alpha = to_8_bits(alpha[..., None])
        if profile and (kind == "BMP" or (pixels.mode == "L" and kind in ("WEBP", "AVIF", "HEIF"))):
            pixels, profile = to_srgb(pixels, profile), None  # no profile, or no grey, in these formats
        if alpha is not None:
            if kind in ("JPEG", "BMP"):
                white = Image.new(pixels.mode, pixels.size, "white")
                white.paste(pixels, mask=alpha)
                pixels, alpha = white, None
            else:
                pixels = pixels.copy()
                pixels.putalpha(alpha)
    ready = replace(photo, pixels=pixels, alpha=alpha, profile=profile, exif=exif, xmp=xmp, options=options)
    with atomic_path(path, durable=False) as temporary:  # a photo that is missing is made again by the next run
        if kind == "TIFF":
            _write_tiff(temporary, ready)
        elif kind == "PNG" and not isinstance(pixels, Image.Image):
            _write_deep_png(temporary, ready)
        else:
            _write_image(temporary, ready, kind, quality)


def _write_image(path: Path, photo: Photo, kind: str, quality: int | None) -> None:
    """Write a photo of 8 bits, an image with its transparency, or an array for JPEG."""
    pixels, options, exif, xmp = photo.pixels, photo.options, photo.exif, photo.xmp
    if quality is not None:
        options.pop("qtables", None)
        options.pop("lossless", None)
        options.pop("exact", None)
        options["quality"] = quality
    elif kind in ("JPEG", "WEBP", "AVIF", "HEIF") and "qtables" not in options:
        options["quality"] = 90 if kind in ("AVIF", "HEIF") else 95
    if kind == "JPEG":
        options.setdefault("subsampling", 0)
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for chunk in options.pop("texts", ()):
            options["pnginfo"].add(*chunk)
        if gamma := options.pop("gamma", None):
            options["pnginfo"].add(b"gAMA", struct.pack(">I", round(gamma * 1e5)))
        if xmp:
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    elif xmp and kind != "BMP":
        options["xmp"] = xmp
    if exif and kind != "BMP":
        options["exif"] = exif
    # Metadata too long for the format must not cost the photo, nor noise for which Pillow's buffer of progressive scans
    # is too small.
    for leave_out in ((), ("progressive",), ("progressive", "xmp"), ("progressive", "xmp", "exif")):
        kept = {name: value for name, value in options.items() if name not in leave_out}
        try:
            if not isinstance(pixels, Image.Image):
                if (data := _encode_jpeg(pixels, photo.profile, kept)) is not None:
                    path.write_bytes(data)
                    return
                pixels = to_8_bits(pixels)
            file = io.BytesIO()  # not the file itself: a full disk, met in the last block, is no error of Pillow's
            pixels.save(file, format=kind, icc_profile=photo.profile, **kept)
            path.write_bytes(file.getbuffer())
            return
        except ValueError as error:
            last: Exception = error
        except OSError as error:
            if error.errno or not kept.get("progressive"):  # a disk's own error has a number
                raise
            last = error
    raise PhotoError(f"cannot be written as {kind}: {last}")


def _encode_jpeg(pixels: npt.NDArray[Any], profile: bytes | None, options: dict[str, Any]) -> bytes | None:
    """Return an `(H, W, 3)` array as JPEG, to the bit as Pillow writes it, but without a copy of its own.

    None for what needs Pillow: progressive scans, grey, quantisation by other tables than the standard's.
    """
    sampling = {0: "444", 1: "422", 2: "420"}.get(options["subsampling"])
    tables: dict[int, list[int]] | None = options.get("qtables")
    quality = _qualities().get(_key(list(tables.values()))) if tables else options["quality"]
    if pixels.shape[2] != 3 or options.get("progressive") or sampling is None or quality is None:
        return None
    import imagecodecs

    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "JPEG", icc_profile=profile, **options)  # for its metadata, which come first
    first, data = file.getvalue(), bytes(imagecodecs.jpeg8_encode(pixels, quality, subsampling=sampling))
    return first[: _place_of_tables(first)] + data[_place_of_tables(data) :]


@functools.cache
def _qualities() -> dict[bytes, int]:
    """Return the qualities from 1 to 100 by the two tables of the JPEG standard, scaled as libjpeg does."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "JPEG", quality=50)  # the tables as the standard has them
    with Image.open(file, formats=["JPEG"]) as image:
        standard = np.array(list(cast(JpegImagePlugin.JpegImageFile, image).quantization.values()))
    scales = {quality: 5000 // quality if quality < 50 else 200 - 2 * quality for quality in range(1, 101)}
    return {_key((standard * scale + 50) // 100): quality for quality, scale in scales.items()}


def _key(tables: npt.ArrayLike) -> bytes:
    return np.clip(tables, 1, 255).astype(np.uint8).tobytes()


def _place_of_tables(data: bytes) -> int:
    """Return where the quantisation tables of a JPEG stand."""
    place = 2
    while data[place + 1] != 0xDB:
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return place


def _write_deep_png(path: Path, photo: Photo) -> None:
    import imagecodecs

    pixels, options = np.asarray(photo.pixels), photo.options
    if photo.alpha is not None:
        pixels = np.dstack((pixels, np.asarray(photo.alpha)))
    data = imagecodecs.png_encode(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    chunks = b""
    if "dpi" in options:
        chunks += _png_chunk(b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in options["dpi"]), 1))
    if photo.profile:
        chunks += _png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(photo.profile))
    if photo.exif:
        chunks += _png_chunk(b"eXIf", photo.exif.removeprefix(b"Exif\0\0"))
    if photo.xmp:
        chunks += _png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + photo.xmp)
    chunks += b"".join(_png_chunk(*chunk) for chunk in options.get("texts", ()))
    header = 8 + 12 + 13  # signature and IHDR, which must come first
    with open(path, "wb") as file:
        file.write(data[:header] + chunks)
        file.write(memoryview(data)[header:])


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _write_tiff(path: Path, photo: Photo) -> None:
    """Write a photo of any depth; the transparency of one of 8 bits is in its image already."""
    import tifffile

    exif, xmp, options = photo.exif, photo.xmp, photo.options
    array = np.asarray(photo.pixels)
    if photo.alpha is not None and not isinstance(photo.pixels, Image.Image):
        array = np.dstack((array, np.asarray(photo.alpha)))
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    channels = 1 if array.ndim == 2 else array.shape[2]
    metadata = Image.Exif()
    if exif:
        metadata.load(exif)
    tags: list[tuple[Any, ...]] = [
        (tag, "s", 0, Text(metadata[tag]).encode(), True)
        for tag in TIFF_TEXTS
        if isinstance(metadata.get(tag), str) and metadata[tag]
    ]
    blocks = {**({700: xmp} if xmp else {}), **options.get("blocks", {})}
    tags += [(tag, "B", len(data), data, True) for tag, data in blocks.items()]
    compression = options.get("compression")
    tifffile.imwrite(
        path,
        array,
        byteorder="<",
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression=compression,
        predictor=compression in ("lzw", "adobe_deflate"),
        iccprofile=photo.profile,
        resolution=options.get("dpi"),
        resolutionunit="inch" if "dpi" in options else None,
        metadata=None,
        software=False,
        extratags=tags,
    )
    folders = {int(tag): metadata.get_ifd(tag) for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)}
    folders = {
        tag: {name: value for name, value in values.items() if name != ExifTags.IFD.Interop}  # points into the old file
        for tag, values in folders.items()
        if values
    }
    if folders:
        _add_tiff_folders(path, folders)


def _add_tiff_folders(path: Path, folders: dict[int, dict[int, Any]]) -> None:
    """Append folders of tags to a little-endian TIFF, and a new main folder that points to them."""
    with open(path, "r+b") as file:
        file.seek(4)
        file.seek(struct.unpack("<I", file.read(4))[0])
        (count,) = struct.unpack("<H", file.read(2))
        entries = [file.read(12) for _ in range(count)]
        for tag, values in folders.items():
            place = _even_end(file)
            folder = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
            keep_bytes(values)
            folder.update(values)
            with suppress(Exception):  # damaged metadata must not cost the photo
                file.write(folder.tobytes(place))
                entries.append(struct.pack("<HHII", tag, 4, 1, place))  # 4: one 32-bit number
        place = _even_end(file)
        entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
        file.write(struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4))
        file.seek(4)
        file.write(struct.pack("<I", place))


def _even_end(file: BinaryIO) -> int:
    """Go to the end of a file, made even, as TIFF wants its folders."""
    place = file.seek(0, os.SEEK_END)
    return place + file.write(bytes(place % 2))
