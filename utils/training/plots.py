"""Draw the curves of a training run, without a plotting library."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..files import atomic_path

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind too
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 34, 20, 40
_GREY, _LIGHT = "#555555", "#dddddd"
_font = functools.cache(ImageFont.load_default)

Panel = tuple[str, Sequence[str], bool]
"""Title, names of the columns to draw, and whether the axis is logarithmic."""


def draw_curves(
    path: Path, history: Sequence[dict[str, float]], panels: Sequence[Panel], size: tuple[int, int] = (560, 320)
) -> None:
    """Write a PNG with one panel of curves over the epochs for each of `panels` of which `history` knows a column.

    Args:
        path: NAME.png.
        history: one row per epoch; a row may lack columns. Values that are not finite are left out.
        panels: what to draw.
        size: width and height of a panel, in pixels.

    Raises:
        OSError: the folder is missing, read-only or full.
    """
    drawn = []
    for title, names, is_logarithmic in panels:
        curves = {name: _points(history, name, is_logarithmic) for name in names}
        curves = {name: points for name, points in curves.items() if points}
        if curves:
            drawn.append((title, curves, is_logarithmic))
    columns = min(2, max(len(drawn), 1))
    rows = max(math.ceil(len(drawn) / columns), 1)
    image = Image.new("RGB", (columns * size[0], rows * size[1]), "white")
    draw = ImageDraw.Draw(image)
    for number, (title, curves, is_logarithmic) in enumerate(drawn):
        left, top = number % columns * size[0], number // columns * size[1]
        _draw_panel(draw, (left, top, left + size[0], top + size[1]), title, curves, is_logarithmic)
    with atomic_path(path) as temporary:
        image.save(temporary, compress_level=1)  # thrice as fast, and flat areas stay small


def _points(history: Sequence[dict[str, float]], name: str, is_logarithmic: bool) -> list[tuple[float, float]]:
    points = [(row["epoch"], row[name]) for row in history if name in row]
    return [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not is_logarithmic)]


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    title: str,
    curves: dict[str, list[tuple[float, float]]],
    is_logarithmic: bool,
) -> None:
    font, bold = _font(13), _font(16)
    scaled = {n: [(x, math.log10(y) if is_logarithmic else y) for x, y in p] for n, p in curves.items()}
    xs, ys = zip(*(point for points in scaled.values() for point in points), strict=True)
    ticks = _log_ticks(min(ys), max(ys)) if is_logarithmic else _ticks(min(ys), max(ys), count=5)
    x_ticks = [tick for tick in _ticks(min(xs), max(xs), count=7) if tick == int(tick) and min(xs) <= tick <= max(xs)]
    x_first, x_last = min(xs) - (min(xs) == max(xs)), max(xs) + (min(xs) == max(xs))
    y_first, y_last = min(*ticks, *ys), max(*ticks, *ys)
    left, top, right, bottom = box
    x0, x1, y0, y1 = left + _LEFT, right - _RIGHT, bottom - _BOTTOM, top + _TOP

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            x0 + (x - x_first) / (x_last - x_first) * (x1 - x0),
            y0 + (y - y_first) / (y_last - y_first) * (y1 - y0),
        )

    draw.text((x0, top + 8), title, font=bold, fill="black")
    for tick in ticks:
        _, y = place(x_first, tick)
        draw.line((x0, y, x1, y), fill=_LIGHT)
        draw.text((x0 - 8, y), f"{10**tick if is_logarithmic else tick:.6g}", font=font, fill=_GREY, anchor="rm")
    for tick in x_ticks:
        x, _ = place(tick, y_first)
        draw.line((x, y0, x, y0 + 4), fill=_GREY)
        draw.text((x, y0 + 8), f"{tick:.0f}", font=font, fill=_GREY, anchor="mt")
    draw.line((x0, y0, x1, y0), fill=_GREY)
    draw.text((x1, y0 + 24), "epoch", font=font, fill=_GREY, anchor="rt")
    label = float(x1)
    for number, (name, points) in reversed(list(enumerate(scaled.items()))):
        colour = _COLOURS[number % len(_COLOURS)]
        placed = [place(*point) for point in points]
        draw.line(placed, fill=colour, width=2, joint="curve")
        if len(placed) < 20:
            for x, y in placed:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.text((label, top + 18), name.replace("_", " "), font=font, fill=colour, anchor="rm")
        label -= draw.textlength(name, font=font) + 14


def _ticks(first: float, last: float, count: int) -> list[float]:
    """Return about `count` round numbers whose ends enclose [first, last]."""
    if first == last:
        first, last = first - max(abs(first), 1) * 0.05, last + max(abs(last), 1) * 0.05
    rough = (last - first) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    start, stop = math.floor(first / step + 1e-9), math.ceil(last / step - 1e-9)
    return [round(number * step, 12) for number in range(start, stop + 1)]


def _log_ticks(first: float, last: float) -> list[float]:
    """Return the exponents of powers of ten that enclose [first, last]."""
    start, stop = math.floor(first + 1e-9), math.ceil(last - 1e-9)
    return [float(number) for number in range(start, max(stop, start + 1) + 1)]
