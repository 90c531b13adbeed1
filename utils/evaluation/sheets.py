"""Contact sheets: what the best, the median and the worst images of a method look like."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..files import atomic_path
from .methods import Contestant, PhotoPair, read
from .partial import Row
from .scoring import Measurement


def write_sheet(
    path: Path,
    measurement: Measurement,
    pairs: Sequence[PhotoPair],
    contestant: Contestant,
    rows: Sequence[Row],
    side: int = 360,
    each: int = 2,
) -> None:
    """Write a contact sheet of a method's best, median and worst images by PSNR: input, result, target.

    Where the target is the input itself, it is left out.
    """
    own = sorted((row for row in rows if row["method"] == contestant.name), key=lambda row: -row["psnr"])
    middle = max((len(own) - each) // 2, 0)
    chosen = [*own[:each], *own[middle : middle + each], *own[-each:]]
    chosen = list({(row["input"], row["target"]): row for row in chosen}.values())
    by_key = {measurement.key(pair, contestant.name): pair for pair in pairs}
    font = ImageFont.load_default(14)
    image = Image.new("RGB", (3 * (side + 8) + 8, len(chosen) * (side + 30) + 8), "white")
    draw = ImageDraw.Draw(image)
    for number, row in enumerate(chosen):
        pair = by_key[row["input"], row["target"], row["method"]]
        photo = read(pair.input, measurement.longest)
        target = [read(pair.target, measurement.longest)] if pair.target != pair.input else []
        top = 8 + number * (side + 30)
        structure = f", SSIM {row['ssim']:.3f}" if "ssim" in row else ""
        label = f"{row['psnr']:.2f} dB{structure}   {row['input']}"
        draw.text((8, top), label.encode("latin-1", "replace").decode("latin-1"), font=font, fill="black")
        for column, pixels in enumerate((photo, contestant.correct(pair, photo), *target)):
            small = Image.fromarray(pixels)
            small.thumbnail((side, side))
            image.paste(small, (8 + column * (side + 8), top + 22))
    with atomic_path(path) as temporary:
        image.save(temporary, compress_level=1)  # thrice as fast
