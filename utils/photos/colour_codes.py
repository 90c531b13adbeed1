"""Colour spaces that files name by numbers rather than by an ICC profile: PNG's cICP, cHRM and gAMA, AVIF's nclx.

The numbers of cICP and nclx are those of ITU-T H.273; PNG's chunks and which of them counts are in the PNG
specification, third edition, 11.3.2.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

D65 = (0.3127, 0.3290)
SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
PRIMARIES: dict[int, tuple[tuple[float, ...], tuple[float, float]]] = {
    1: (SRGB, D65),
    5: ((0.64, 0.33, 0.29, 0.60, 0.15, 0.06), D65),
    6: ((0.630, 0.340, 0.310, 0.595, 0.155, 0.070), D65),
    7: ((0.630, 0.340, 0.310, 0.595, 0.155, 0.070), D65),
    9: ((0.708, 0.292, 0.170, 0.797, 0.131, 0.046), D65),
    11: ((0.680, 0.320, 0.265, 0.690, 0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320, 0.265, 0.690, 0.150, 0.060), D65),
}
"""Red, green and blue, and white, as x and y, by H.273's number of the primaries."""
BT709 = (1, 6, 14, 15)
POWERS = {4: 2.2, 5: 2.8, 8: 1.0}
"""Exponents by H.273's number of the transfer characteristics."""
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""g, a, b, c and d of the light (a x + b) ** g, or c x below d."""
UNSPECIFIED, SRGB_TRANSFER = 2, 13
HDR = {16: "PQ", 18: "HLG"}


class ColourCodeError(ValueError):
    """A colour space that photos cannot be corrected in. The message says which, and what to do."""


def profile_of(image: Image.Image, path: Path) -> bytes | None:
    """Return the ICC profile of an opened photo's colours: its own, or one made of its code points; None for sRGB.

    Raises:
        ColourCodeError: the code points name HDR, or something that is not known.
        OSError: the file cannot be read.
    """
    embedded = image.info.get("icc_profile") or None
    is_grey = image.mode[:1] in ("1", "L", "I")
    if image.format == "PNG":
        if (codes := _cicp(path)) is not None:  # comes before a profile
            primaries, transfer, matrix, full_range = codes
            if matrix != 0 or full_range != 1:
                raise ColourCodeError("PNG whose cICP is not full-range RGB: save it as sRGB")
            return _of_codes(primaries, transfer, is_grey, "cICP")
        if embedded is None and "srgb" not in image.info:
            return _of_chromaticities(image.info.get("chromaticity"), image.info.get("gamma"), is_grey)
    if image.format == "AVIF" and embedded is None and (codes := _nclx(path)) is not None:
        return _of_codes(codes[0], codes[1], is_grey, "nclx")
    return embedded


def with_srgb_curves(profile: bytes) -> bytes | None:
    """Return a profile of linear light with sRGB's curves instead; None for any other profile.

    Linear are curves of no points or of two, and a power of 1 (ICC.1, 10.6 and 10.18).

    Raises:
        struct.error: the profile is broken.
    """
    (count,) = struct.unpack_from(">I", profile, 128)
    entries = [struct.unpack_from(">4sII", profile, 132 + 12 * index) for index in range(count)]
    curves = [place for name, place, _ in entries if name in (b"rTRC", b"gTRC", b"bTRC", b"kTRC")]
    one = b"\0\1\0\0"
    linear = (
        b"curv" + bytes(8),
        b"curv" + bytes(7) + b"\1\1\0",
        b"curv" + bytes(7) + b"\2\0\0\xff\xff",
        b"para" + bytes(8) + one,
        b"para" + bytes(5) + b"\3\0\0" + one + one + bytes(4) + one + bytes(4),
    )
    if not curves or any(name == b"A2B0" for name, *_ in entries):
        return None
    if not all(profile[place:].startswith(linear) for place in curves):
        return None
    result = bytearray(profile + bytes(-len(profile) % 4))
    for index, (name, place, _) in enumerate(entries):
        if place in curves:
            struct.pack_into(">4sII", result, 132 + 12 * index, name, len(result), 32)
    result += b"para" + bytes(4) + struct.pack(">Hxx5i", 3, *(round(65536 * number) for number in SRGB_CURVE))
    struct.pack_into(">I", result, 0, len(result))
    return bytes(result)


def png_chunks(path: Path, *wanted: bytes, until: bytes = b"IEND") -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and contents of the chunks of a PNG that are of the kinds wanted, up to the first of another kind."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind == until:
                return
            if kind in wanted:
                yield kind, file.read(length)
            file.seek(4 if kind in wanted else length + 4, os.SEEK_CUR)


def _cicp(path: Path) -> tuple[int, ...] | None:
    found = png_chunks(path, b"cICP", until=b"IDAT")
    return next((tuple(codes) for _, codes in found if len(codes) == 4), None)


def _nclx(path: Path) -> tuple[int, int] | None:
    """Return primaries and transfer of an AVIF's first picture."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    place = head.find(b"colrnclx")
    if place < 0 or len(head) < place + 12:
        return None
    primaries, transfer = struct.unpack(">HH", head[place + 8 : place + 12])
    return primaries, transfer


def _of_codes(primaries: int, transfer: int, is_grey: bool, name: str) -> bytes | None:
    if transfer in HDR:
        raise ColourCodeError(f"HDR colours ({HDR[transfer]}, {name}): save it as sRGB or Display P3")
    primaries = 1 if primaries == UNSPECIFIED or is_grey else primaries
    transfer = SRGB_TRANSFER if transfer == UNSPECIFIED else transfer
    if primaries not in PRIMARIES or transfer not in (SRGB_TRANSFER, *BT709, *POWERS):
        raise ColourCodeError(f"unknown colours ({name} {primaries}, {transfer}): save it as sRGB or Display P3")
    if (primaries, transfer) == (1, SRGB_TRANSFER):
        return None
    if transfer in POWERS:
        return _profile(*PRIMARIES[primaries], is_grey, gamma=POWERS[transfer])
    if transfer in BT709:
        x = np.linspace(0, 1, 4096)
        light = np.where(x < 0.081, x / 4.5, ((x + 0.099) / 1.099) ** (1 / 0.45))
    else:
        light = _srgb_light()
    return _profile(*PRIMARIES[primaries], is_grey, light=light)


def _of_chromaticities(points: Any, gamma: Any, is_grey: bool) -> bytes | None:
    """Return the profile of PNG's cHRM and gAMA; what cannot be a colour space is ignored, as broken profiles are."""
    usual = (*D65, *SRGB)
    points = tuple(points) if not is_grey and points and len(points) == 8 and min(points) > 0 else usual
    points = usual if np.allclose(points, usual, atol=0.002) else points
    is_usual_gamma = not gamma or abs(gamma * 2.2 - 1) < 0.02
    if points == usual and is_usual_gamma:
        return None
    transfer = {"light": _srgb_light()} if is_usual_gamma else {"gamma": 1 / gamma}
    with suppress(ValueError, RuntimeError):
        return _profile(points[2:], points[:2], is_grey, **transfer)
    return None


def _srgb_light() -> npt.NDArray[np.float64]:
    import torch  # seconds, which only such a photo costs

    from ..colour import to_linear

    light: npt.NDArray[np.float64] = to_linear(torch.linspace(0, 1, 4096, dtype=torch.float64)).numpy()
    return light


def _profile(primaries: tuple[float, ...], white: tuple[float, ...], is_grey: bool, **transfer: Any) -> bytes:
    import imagecodecs

    if "light" in transfer:
        transfer = {"transferfunction": (65535 * transfer["light"]).round().astype(np.uint16)}
    if is_grey:
        return bytes(imagecodecs.cms_profile("gray", whitepoint=white, **transfer))
    return bytes(imagecodecs.cms_profile("rgb", whitepoint=white, primaries=primaries, **transfer))
