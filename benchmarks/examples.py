"""Make data/examples: well-exposed photos of free licence, mis-exposed in linear light as a wrong shutter time would.

Linear light is sRGB (IEC 61966-2-1) decoded, multiplied by 2^EV, clipped, encoded again and stored as JPEG.

examples:
  python benchmarks/examples.py PHOTOS data/examples
  python benchmarks/examples.py PHOTOS twelve --hard
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils.colour import from_linear, to_linear

EXAMPLES = {
    "kodak_04": ("portrait", -2.5),
    "kodak_08": ("timber_houses", -3.0),
    "kodak_14": ("rafting", -2.0),
    "kodak_21": ("lighthouse_sea", -4.0),
    "kodak_19": ("lighthouse_fence", 2.5),
    "kodak_22": ("barn", 1.5),
    "kodak_24": ("painted_house", 1.5),
    "detectron_33823288584-1d21cf0a26-k": ("cyclists", 1.25),
}
"""Source photo: name of the example and its exposure shift in EV."""
HARD = {
    "budgie_beacon-street-sunset": ("sunset", 0.0),
    "kodak_20": ("airplane", 0.0),
    "kodak_12": ("beach", 3.0),
    "kodak_18": ("woman", -5.0),
}
"""Four more where little or nothing can be won: two good photos, one clipped widely, one with a few levels left."""


def expose(image: Image.Image, stops: float) -> Image.Image:
    """Return the sRGB photo as if exposed by `stops` EV more."""
    light = to_linear(torch.from_numpy(np.array(image)).double() / 255)
    return Image.fromarray((from_linear((light * 2**stops).clamp(0, 1)) * 255).round().to(torch.uint8).numpy())


def main() -> None:
    """Write the examples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of the source photos")
    parser.add_argument("output", type=Path)
    parser.add_argument("--hard", action="store_true", help="write four hard ones as well")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for source, (name, stops) in {**EXAMPLES, **(HARD if arguments.hard else {})}.items():
        with Image.open(arguments.photos / f"{source}.jpg") as image:
            expose(image.convert("RGB"), stops).save(
                arguments.output / f"{name}_{stops:+g}ev.jpg", quality=92, subsampling=0
            )


if __name__ == "__main__":
    main()
