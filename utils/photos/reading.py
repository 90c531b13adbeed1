"""Read photos: upright, in their own depth and colour space, with all that belongs to them.

`read_photo` gives what a network is trained on: 8 bits, sRGB. `load_photo` is for correcting a file: 8 or 16 bits, the
embedded profile, transparency and metadata stay with it, and `utils.photos.writing` writes them again.
"""

import importlib
import io
import math
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from .colour_codes import ColourCodeError, png_chunks, profile_of

FORMATS = {
    "JPEG": ".jpg .jpeg .jpe .jfif",
    "PNG": ".png",
    "WEBP": ".webp",
    "TIFF": ".tif .tiff",
    "BMP": ".bmp",
    "AVIF": ".avif",
}
"""Formats that are read and written, by Pillow's names, with their suffixes."""

OPTIONAL = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pillow-heif"),
    **dict.fromkeys(
        ".3fr .arw .cr2 .cr3 .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .rw2 .srw .x3f".split(),
        "rawpy",
    ),
}
"""Suffixes of photos that need a package of their own, and the package."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes.split())
"""Suffixes, in lower case, by which photos are found in folders."""

Pixels = Image.Image | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""An image in mode "L" or "RGB", or an `(H, W, C)` array with one or three channels."""

Alpha = Image.Image | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""Transparency: an image in mode "L", or `(H, W)`."""

TIFF_TEXTS = (270, 271, 272, 305, 306, 315, 316, 33432)
"""TIFF's tags of text: description, make, model, software, date, artist, computer, copyright."""
TIFF_BLOCKS = (33723, 34377)
"""TIFF's tags of IPTC and of Photoshop's resources."""

_MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_EXIF_OR_XMP = (b"XML:com.adobe.xmp\0", *(b"Raw profile type %s\0" % name for name in (b"exif", b"APP1", b"xmp")))
"""How texts of PNGs begin that are kept in other ways."""
_NOT_IN_XMP = (
    rb"""\stiff:Orientation=["']\d["']""",
    rb"<tiff:Orientation>\d</tiff:Orientation>",
    # of gain maps and films, which are not kept
    rb"<(G?Container):Directory>(?:(?!<\1:Directory>).)*?</\1:Directory>",
    rb"<(hdrgm:Version|G?Camera:(?:MicroVideo|MotionPhoto)\w*)>[^<]*</\1>",
    rb"""\s(?:hdrgm:Version|G?Camera:(?:MicroVideo|MotionPhoto)\w*)=(["'])[^<]*?\1""",
)
"""What is left out of XMP."""

Image.init()  # Pillow finds its decoders at first use, which goes wrong where several threads are the first
_SRGB = ImageCms.createProfile("sRGB")


# Of large photos and of odd metadata; catching them around each call would not be safe where threads decode.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")


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
            elif os.path.isfile(entry.path):  # a link that leads to itself is none
                yield Path(entry.path)


def format_of(path: Path) -> str:
    """Return the format of a photo by its content: one of `FORMATS`, "HEIF", "RAW", or "" for what is none of these.

    Cameras' raw files have no common beginning: an unknown one, or a TIFF, is "RAW" if its suffix says so.

    Raises:
        PhotoError: the file is missing, unreadable, empty, or not a regular file.
    """
    with _errors_as_photo_errors():
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            raise PhotoError("not a regular file")
        if status.st_size == 0:
            raise PhotoError("the file is empty")
        with open(path, "rb") as file:
            head = file.read(64)
        is_named_raw = OPTIONAL.get(path.suffix.lower()) == "rawpy"
        for start, name in _BEGINNINGS.items():
            if head.startswith(start):
                is_raw = name == "TIFF" and (is_named_raw or head[8:10] == b"CR" or _is_dng(path))
                return "RAW" if is_raw else name
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return "WEBP"
        if head[4:8] == b"ftyp":
            brands = {head[8:12], *(head[place : place + 4] for place in range(16, min(head[3], 64), 4))}
            for name, names in _BRANDS.items():
                if brands & names:
                    return name
        return "RAW" if is_named_raw else ""


_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
}
_BRANDS = {  # of files made of boxes; AVIF shares two with HEIF
    "AVIF": {b"avif", b"avis"},
    "RAW": {b"crx "},
    "HEIF": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"},
}
_DNG_VERSION = 50706


def _is_dng(path: Path) -> bool:
    """Tell whether a TIFF is a raw file whose first picture is but a preview."""
    with suppress(Exception), Image.open(path, formats=["TIFF"]) as image:  # damaged files are refused later
        return _DNG_VERSION in cast(TiffImagePlugin.TiffImageFile, image).tag_v2
    return False


def open_photo(path: Path) -> ImageFile.ImageFile:
    """Open a photo and check what its header says, without decoding it. Its content decides, not its name.

    Raises:
        PhotoError: the file is missing, unreadable, not a regular file, or not a photo; or it needs a package.
    """
    kind = format_of(path)
    if kind == "RAW":
        raise PhotoError("a camera's raw file: correct it with predict.py, or develop it first")
    with _errors_as_photo_errors():
        if kind == "HEIF":
            _require("pillow-heif", "HEIC").register_heif_opener()
            image = Image.open(path, formats=("HEIF",))
        else:
            try:
                image = Image.open(path, formats=tuple(FORMATS))
            except UnidentifiedImageError:
                if kind == "TIFF":
                    raise PhotoError("a kind of TIFF that is not read: save it with 8 or 16 bits per channel") from None
                raise
        image.filename = ""  # else Pillow maps a rotated, uncompressed TIFF into memory with its sides swapped
        return image


@contextmanager
def _errors_as_photo_errors() -> Iterator[None]:
    """Turn whatever Pillow raises into a `PhotoError`.

    Damaged files make Pillow raise errors of a dozen kinds, from SyntaxError to struct.error.
    """
    try:
        yield
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError("not a JPEG, PNG, WebP, TIFF, BMP or AVIF photo") from None
    except Image.DecompressionBombError as error:
        raise PhotoError(f"too many pixels to open safely ({error})") from None
    except ColourCodeError as error:
        raise PhotoError(str(error)) from None
    except MemoryError:
        raise PhotoError("not enough memory for a photo of this size") from None
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise PhotoError(reason or f"damaged or cut short ({error or type(error).__name__})") from None


def _require(package: str, kind: str) -> Any:
    """Import an optional package, for photos of some kind."""
    try:
        return importlib.import_module(package.replace("-", "_"))
    except ImportError:
        raise PhotoError(f"{kind} photos need the package {package}: pip install {package}") from None


def _depth(image: ImageFile.ImageFile) -> str:
    """Return "8", "16", or another depth that cannot be corrected, by name."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        if 3 in image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,)):
            return "floating-point"
        return "8" if bits <= 8 else "16" if bits == 16 else f"{bits}-bit"
    # Pillow opens a 16-bit RGB file in the 8-bit mode "RGB"; only the raw mode of its decoder tells.
    raw_modes = [str(tile.args[0] if isinstance(tile.args, tuple) else tile.args) for tile in image.tile]
    if any(";16" in mode and not mode.startswith("BGR") for mode in raw_modes):  # "BGR;16": a whole pixel in 16 bits
        return "16"
    if image.format == "HEIF" and image.info.get("bit_depth", 8) > 8:
        return f"{image.info['bit_depth']}-bit"
    return {"I": "32-bit", "F": "floating-point"}.get(image.mode[:1], "8")


def _decode(image: Image.Image) -> None:
    """Decode an opened photo and turn it upright, in place."""
    image.load()
    with suppress(Exception):  # damaged metadata must not cost the photo
        ImageOps.exif_transpose(image, in_place=True)


def _decode_jpeg(image: ImageFile.ImageFile) -> npt.NDArray[np.uint8] | None:
    """Return the pixels `(H, W, C)` of an opened JPEG, to the bit what Pillow makes of it, but without its copies.

    None for what needs Pillow: other formats, CMYK, photos to be turned, and files that are cut short, which libjpeg
    would fill with grey.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode not in ("L", "RGB"):
        return None
    if _orientation(image) != 1 or image.fp is None:
        return None
    image.fp.seek(0)
    data = image.fp.read()
    if not _has_jpeg_end(data):
        return None
    import imagecodecs

    with suppress(imagecodecs.Jpeg8Error):
        pixels: npt.NDArray[np.uint8] = imagecodecs.jpeg8_decode(data)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.dtype == np.uint8 and pixels.shape == (image.height, image.width, len(image.getbands())):
            return pixels
    return None


def _has_jpeg_end(data: bytes) -> bool:
    """Tell whether a JPEG's first picture has an end: the thumbnails and second pictures of cameras have ends too."""
    place = 2
    while data[place : place + 1] == b"\xff" and len(data) >= place + 4:
        if data[place + 1] == 0xDA:  # the pixels begin: from here on, 0xFF stands before markers only
            return data.find(b"\xff\xd9", place) >= 0
        place += 1 if data[place + 1] == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def read_photo(path: Path, enough: int | None = None) -> Image.Image:
    """Open and decode a photo: "RGB", upright, sRGB, 8 bits; transparency is dropped, a broken colour profile ignored.

    Args:
        path: the file.
        enough: shortest side in pixels that is enough; a JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where
            that leaves so much, which is much faster.

    Raises:
        PhotoError: the photo cannot be read.
    """
    with open_photo(path) as image, _errors_as_photo_errors():
        if (depth := _depth(image)) != "8":
            if depth != "16":
                raise PhotoError(f"{depth} pixels: save it with 8 or 16 bits per channel")
            pixels, _ = _decode_deep(path, image)
            return to_srgb(to_8_bits(pixels), profile_of(image, path))
        if enough is not None:  # a hint that only the JPEG decoder takes
            scale = enough / min(image.size)
            image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        profile = profile_of(image, path)
        _decode(image)
        return to_srgb(without_alpha(image), profile)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image of mode "L", "RGB" or "CMYK" as "RGB" in sRGB; a profile that cannot be applied is ignored."""
    if profile and image.mode in ("L", "RGB", "CMYK"):
        with suppress(ImageCms.PyCMSError, OSError, ValueError):  # broken, or made for another colour space
            converted = ImageCms.profileToProfile(image, io.BytesIO(profile), _SRGB, outputMode="RGB")
            if converted is not None:
                return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def from_srgb(image: Image.Image, profile: bytes, mode: str) -> Image.Image | None:
    """Return an "RGB" image in sRGB as `mode`, "L" or "RGB", in the colours of `profile`; None where that cannot be."""
    with suppress(ImageCms.PyCMSError, OSError, ValueError):
        return ImageCms.profileToProfile(image, _SRGB, io.BytesIO(profile), outputMode=mode)
    return None


def without_alpha(image: Image.Image) -> Image.Image:
    """Return a decoded image without transparency, as "L", "RGB" or "CMYK"."""
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode == "RGBa":
        image = image.convert("RGBA")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.convert("RGB")


@dataclass
class Photo:
    """A decoded photo, upright, and what must be kept when its corrected pixels are written."""

    pixels: Pixels
    """In the file's own depth and colour space."""
    alpha: Alpha | None
    profile: bytes | None
    """ICC profile of the pixels; None for sRGB."""
    format: str
    """Pillow's name of the file's format, or "RAW"."""
    exif: bytes = b""
    """EXIF without orientation, which is applied, and without the thumbnail, which no longer shows the photo."""
    xmp: bytes = b""
    """XMP without orientation."""
    options: dict[str, Any] = field(default_factory=dict)
    """How the file was compressed, as arguments of Pillow's `save`."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if isinstance(self.pixels, Image.Image):
            return self.pixels.size
        return self.pixels.shape[1], self.pixels.shape[0]


def memory_of(path: Path) -> tuple[int, int]:
    """Return how many pixels a photo has, and about how many bytes it takes to correct it, from its header.

    Measured: the decoders and encoders of some formats take several times what the pixels do.

    Raises:
        PhotoError: as `open_photo`.
    """
    if format_of(path) == "RAW":
        with _errors_as_photo_errors():
            pixels = os.stat(path).st_size  # about a byte per pixel
            return pixels, 16 * pixels
    with open_photo(path) as image:
        pixels = image.width * image.height
        per_pixel = {"JPEG": 8, "MPO": 8, "BMP": 8, "AVIF": 34, "WEBP": 46, "HEIF": 34}.get(str(image.format), 12)
        per_pixel += 8 if image.has_transparency_data else 0
        return pixels, pixels * (24 if _depth(image) != "8" else per_pixel)


def load_photo(path: Path) -> Photo:
    """Read a photo for correction.

    Raises:
        PhotoError: as `open_photo`; or the file is damaged, holds several pictures, or pixels of a depth that cannot
            be corrected.
    """
    if format_of(path) == "RAW":
        return _load_raw(path)
    with open_photo(path) as image, _errors_as_photo_errors():
        exif = image.info.get("exif")  # before what turns the photo writes it anew
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        if kind not in ("JPEG", "HEIF") and getattr(image, "n_frames", 1) > 1:
            raise PhotoError(f"holds {getattr(image, 'n_frames', 1)} pictures: save the one to correct on its own")
        if kind == "AVIF" and _is_deep_avif(path):
            raise PhotoError("AVIF of more than 8 bits per channel: save it as a 16-bit PNG or TIFF")
        options = _compression(image, path)
        profile = profile_of(image, path)
        if profile:
            options.pop("gamma", None)  # which it overrides
        if (depth := _depth(image)) == "16":
            pixels, alpha = _decode_deep(path, image)
            if profile and not leads_back(profile, "L" if pixels.shape[2] == 1 else "RGB"):
                profile = None
            size = pixels.shape[1], pixels.shape[0]
            return Photo(pixels, alpha, profile, kind, *_metadata(image, size, exif), options)
        if depth != "8":
            raise PhotoError(f"{depth} pixels: save it with 8 or 16 bits per channel")
        if kind == "JPEG" and (not profile or leads_back(profile, image.mode)):
            if (decoded := _decode_jpeg(image)) is not None:
                return Photo(decoded, None, profile, kind, *_metadata(image, image.size, exif), options)
        _decode(image)
        transparency = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        plain = without_alpha(image)
        if plain.mode == "CMYK" or (plain.mode == "RGB" and profile and not leads_back(profile, "RGB")):
            plain, profile = to_srgb(plain, profile), None
        if profile and not leads_back(profile, plain.mode):
            profile = None
        return Photo(plain, transparency, profile, kind, *_metadata(image, plain.size, exif), options)


def to_8_bits(pixels: npt.NDArray[np.uint16] | npt.NDArray[np.uint8]) -> Image.Image:
    """Return an array `(H, W, C)` as an image of mode "L" or "RGB"."""
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def leads_back(profile: bytes, mode: str) -> bool:
    """Tell whether colours can be converted from and to a profile."""
    return from_srgb(Image.new("RGB", (1, 1)), profile, mode) is not None


def _decode_deep(
    path: Path, image: ImageFile.ImageFile
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16] | None]:
    """Decode a 16-bit PNG or TIFF; return its pixels `(H, W, C)` and transparency, upright."""
    is_premultiplied = False
    if image.format == "PNG":
        import imagecodecs

        pixels = imagecodecs.png_decode(path.read_bytes())
    elif image.format == "TIFF":
        import tifffile

        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            extra = [int(sample) for sample in page.extrasamples]
            if len(extra) > 1 or 0 in extra:
                raise PhotoError("16-bit TIFF with extra channels of unknown meaning: save it without them")
            is_premultiplied = extra == [int(tifffile.EXTRASAMPLE.ASSOCALPHA)]
            pixels = page.asarray()
            if page.axes == "SYX":  # a plane for each channel
                pixels = pixels.transpose(1, 2, 0)
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                pixels = 65535 - pixels
            elif page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
                raise PhotoError(f"16-bit {tifffile.PHOTOMETRIC(page.photometric).name}: save it as RGB or greyscale")
    else:
        raise PhotoError(f"16-bit {image.format}: save it as PNG or TIFF")
    if pixels.dtype != np.uint16:
        raise PhotoError(f"pixels of type {pixels.dtype}: save it with 8 or 16 bits per channel")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    turn = {2: "h", 3: "hv", 4: "v", 5: "t", 6: "th", 7: "thv", 8: "tv"}.get(_orientation(image), "")
    pixels = pixels.swapaxes(0, 1) if "t" in turn else pixels
    pixels = pixels[:, ::-1] if "h" in turn else pixels
    pixels = pixels[::-1] if "v" in turn else pixels
    colours = 1 if pixels.shape[2] < 3 else 3
    alpha = pixels[..., colours].copy() if pixels.shape[2] > colours else None
    pixels = np.ascontiguousarray(pixels[..., :colours])
    if alpha is not None and is_premultiplied:
        straight = pixels.astype(np.float32) * (65535 / np.maximum(alpha, 1)[..., None].astype(np.float32))
        pixels = straight.clip(0, 65535).round().astype(np.uint16)
    return pixels, alpha


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # damaged metadata must not cost the photo
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height that an opened image has once it is upright."""
    return image.size if _orientation(image) < 5 else (image.height, image.width)


def _load_raw(path: Path) -> Photo:
    """Develop a camera's raw file, in 8 bits, with the camera's white balance."""
    with _errors_as_photo_errors():
        kind = path.suffix[1:].upper() if OPTIONAL.get(path.suffix.lower()) == "rawpy" else "Raw"
        with _require("rawpy", kind).imread(str(path)) as raw:
            pixels = raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=8)  # upright, sRGB
        image = Image.fromarray(pixels)
        exif = xmp = b""
        with suppress(Exception), Image.open(path, formats=["TIFF"]) as header:  # which most raw files are, inside
            exif, xmp = _metadata(header, image.size)
        return Photo(image, None, None, "RAW", exif, xmp)


def _compression(image: ImageFile.ImageFile, path: Path) -> dict[str, Any]:
    """Return how an opened file is compressed, as arguments of `save_photo`'s writers."""
    options: dict[str, Any] = {}
    with suppress(Exception):
        across, down = (float(value) for value in image.info["dpi"])
        if 0 < across < 1e5 and 0 < down < 1e5:
            options["dpi"] = (down, across) if _orientation(image) >= 5 else (across, down)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        if image.mode in ("L", "RGB"):
            options["qtables"] = image.quantization
            options["progressive"] = bool(image.info.get("progressive"))
            if (subsampling := JpegImagePlugin.get_sampling(image)) >= 0:
                options["subsampling"] = subsampling
        options["comment"] = image.info.get("comment", b"")
        kept = [(name, data) for name, data in image.applist if name == "APP13" or data.startswith(_MORE_XMP)]
        options["extra"] = b"".join(_jpeg_segment(*segment) for segment in kept)
    elif image.format == "PNG":
        texts = png_chunks(path, b"tEXt", b"zTXt", b"iTXt")
        options["texts"] = [(kind, data) for kind, data in texts if not data.startswith(_EXIF_OR_XMP)]
        if "gamma" in image.info:
            options["gamma"] = float(image.info["gamma"])
    elif image.format == "WEBP" and _is_lossless_webp(path):
        options["lossless"] = options["exact"] = True
    elif image.format == "TIFF":
        name = str(image.info.get("compression", "raw"))
        known = {"raw": None, "packbits": "packbits", "tiff_lzw": "lzw"}
        options["compression"] = known.get(name, "adobe_deflate")
        data = cast(TiffImagePlugin.TiffImageFile, image).tag_v2._tagdata  # IPTC is often declared as numbers
        options["blocks"] = {tag: data[tag] for tag in TIFF_BLOCKS if data.get(tag)}
    return options


def _jpeg_segment(name: str, data: bytes) -> bytes:
    """Return an application segment, such as IPTC's APP13, as it stands in the file."""
    return bytes((0xFF, 0xE0 + int(name.removeprefix("APP")))) + struct.pack(">H", len(data) + 2) + data


def _is_lossless_webp(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(12)  # RIFF, size, WEBP
        while len(header := file.read(8)) == 8:
            kind, length = struct.unpack("<4sI", header)
            if kind in (b"VP8 ", b"VP8L"):
                return bool(kind == b"VP8L")
            file.seek(length + length % 2, os.SEEK_CUR)
    return False


def _is_deep_avif(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    place = head.find(b"av1C")  # the decoder's configuration: after marker and profile, a bit for more than 8 bits
    return 0 <= place < len(head) - 7 and bool(head[place + 6] & 0x40)


class Text(str):
    """A text of EXIF, which Pillow reads as Latin-1, whatever it is, and would write as ASCII: its bytes stay."""

    def encode(self, encoding: str = "latin-1", errors: str = "strict") -> bytes:
        """Return the bytes that it was read from, whatever encoding is asked for."""
        return super().encode("latin-1")


def keep_bytes(tags: MutableMapping[int, Any]) -> None:
    """Make the texts among EXIF's tags keep their bytes when they are written."""
    for tag, value in list(tags.items()):
        if isinstance(value, str):
            tags[tag] = Text(value)


def _metadata(image: Image.Image, size: tuple[int, int], block: bytes | None = None) -> tuple[bytes, bytes]:
    """Return EXIF and XMP of an image that is upright now and of `size`, without orientation and thumbnail.

    `block` is the EXIF as it stands in the file: makers' notes count from its start, so it is kept as it is laid out.
    """
    exif_bytes = xmp_bytes = b""
    if block:
        with suppress(struct.error, KeyError, IndexError):  # damaged: as far as Pillow can read it
            exif_bytes = b"Exif\0\0" + _upright(bytes(block).removeprefix(b"Exif\0\0"), size)
    with suppress(Exception):  # as above
        exif_bytes = exif_bytes or _written_anew(image, size)
    with suppress(Exception):
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
        lines = image.info.get("Raw profile type xmp", "").split("\n")[3:]  # in hexadecimal, as ImageMagick writes it
        xmp = xmp or bytes.fromhex("".join(lines))
        xmp = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
        for pattern in _NOT_IN_XMP:
            xmp = re.sub(pattern, b"", xmp, flags=re.DOTALL)
        xmp_bytes = xmp.rstrip(b"\0")
    return exif_bytes, xmp_bytes


def _written_anew(image: Image.Image, size: tuple[int, int]) -> bytes:
    """Return the EXIF of `_metadata` as Pillow lays it out."""
    exif = image.getexif()
    details = exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in exif else {}
    for tag, length in zip((ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight), size, strict=True):
        if tag in details:
            details[tag] = length
    for tags in (exif, details, exif.get_ifd(ExifTags.IFD.GPSInfo) if ExifTags.IFD.GPSInfo in exif else {}):
        keep_bytes(tags)
    exif.pop(ExifTags.Base.Orientation, None)
    if image.format == "TIFF":  # its tags of layout mean nothing, or harm, in another file
        kept = (*TIFF_TEXTS, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
        for number in [number for number in exif if number not in kept]:
            del exif[number]
    exif.bigtiff = False  # whatever it was read from
    return exif.tobytes() if exif else b""  # writes no thumbnail


def _upright(exif: bytes, size: tuple[int, int]) -> bytes:
    """Return a block of EXIF without orientation and thumbnail, and of `size`; all else stays where it stands.

    Raises:
        struct.error, KeyError: it is damaged.
    """
    block = bytearray(exif)
    order = {b"II*\0": "<", b"MM\0*": ">"}[exif[:4]]
    (first,) = struct.unpack_from(f"{order}I", block, 4)

    def entries(folder: int) -> tuple[dict[int, int], int]:
        """Return the places of a folder's entries by their tags, and that of its end."""
        (count,) = struct.unpack_from(f"{order}H", block, folder)
        places = range(folder + 2, folder + 2 + 12 * count, 12)
        return {struct.unpack_from(f"{order}H", block, place)[0]: place for place in places}, folder + 2 + 12 * count

    def number(place: int) -> int:
        """Return the number in an entry."""
        kind = "H" if struct.unpack_from(f"{order}H", block, place + 2) == (3,) else "I"
        return int(struct.unpack_from(order + kind, block, place + 8)[0])

    tags, end = entries(first)
    (second,) = struct.unpack_from(f"{order}I", block, end)
    if second:  # the thumbnail's folder
        thumbnail, _ = entries(second)
        struct.pack_into(f"{order}I", block, end, 0)
        if {0x0201, 0x0202} <= thumbnail.keys():
            start = number(thumbnail[0x0201])
            after = min(start + number(thumbnail[0x0202]), len(block))
            if 8 <= start <= after and (after <= first or end + 4 <= start):  # beside the main folder
                block[start:after] = bytes(after - start)
                block = block[:start] if after == len(block) else block
    details = entries(number(tags[ExifTags.IFD.Exif]))[0] if ExifTags.IFD.Exif in tags else {}
    for names in ((ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength), (0xA002, 0xA003)):
        for name, length in zip(names, size, strict=True):
            if (place := {**tags, **details}.get(name)) is not None:
                struct.pack_into(f"{order}HII", block, place + 2, 4, 1, length)
    if (place := tags.get(ExifTags.Base.Orientation)) is not None:  # the entries behind it move up
        block[place : end + 4] = block[place + 12 : end + 4] + bytes(12)
        struct.pack_into(f"{order}H", block, first, len(range(first + 2, end, 12)) - 1)
    return bytes(block)
