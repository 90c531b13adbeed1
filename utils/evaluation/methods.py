"""What is compared: a method makes a corrected photo of a photo."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..photos.reading import PhotoError, read_photo

Pixels = npt.NDArray[np.uint8]
Method = Callable[[Pixels], Pixels]


class EvaluationError(Exception):
    """A comparison that cannot be made. The message names the file and says what to do."""


def read(path: Path, longest: int | None) -> Pixels:
    """Return a photo, `(H, W, 3)` uint8 sRGB, upright, reduced to a longest side.

    Raises:
        EvaluationError: it cannot be read.
    """
    try:
        return reduced(read_photo(path), longest)
    except PhotoError as error:
        raise EvaluationError(f"{path}: {error}") from None


def reduced(image: Image.Image, longest: int | None) -> Pixels:
    """Return an image reduced to a longest side, if one is given, with Lanczos's filter."""
    if longest is not None:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=None)
    return np.array(image)
