"""Join photos and their corrections into one picture: four columns, a row of photos above a row of corrections.

example:
  python predict.py && python benchmarks/before_after.py data/examples results docs/examples.jpg
"""

import argparse
from pathlib import Path

from PIL import Image, ImageOps

COLUMNS, TILE, GAP = 4, (300, 270), 6


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="folder of photos")
    parser.add_argument("after", type=Path, help="folder of their corrections, under the same names")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    names = sorted(path.name for path in arguments.before.glob("*.jpg"))
    groups = [names[start : start + COLUMNS] for start in range(0, len(names), COLUMNS)]
    width, height = TILE
    sheet = Image.new(
        "RGB", (COLUMNS * (width + GAP) - GAP, len(groups) * (2 * height + GAP + 3 * GAP) - 3 * GAP), "white"
    )
    for row, group in enumerate(groups):
        for column, name in enumerate(group):
            for half, folder in enumerate((arguments.before, arguments.after)):
                with Image.open(folder / name) as photo:
                    tile = ImageOps.fit(photo.convert("RGB"), TILE, Image.Resampling.LANCZOS, centering=(0.5, 0.3))
                top = row * (2 * height + 4 * GAP) + half * (height + GAP)
                sheet.paste(tile, (column * (width + GAP), top))
    sheet.save(arguments.output, quality=88)


if __name__ == "__main__":
    main()
