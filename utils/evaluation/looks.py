"""What a correction does to photos without targets: whites that turn grey, blacks that turn to fog, other change."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..colour import luma
from .intervals import means, quantiles
from .metrics import Metric, psnr
from .partial import Row
from .tables import Line, by_method

WHITE, STILL_WHITE = 250, 225
BLACK, STILL_BLACK = 3, 20
DARK_PHOTO = 30
"""Median luma up to which a photo's blacks do not count: shadows may open there."""


def _is_white(photos: Tensor) -> Tensor:
    return _levels(photos).amin(dim=1) >= WHITE


def _is_black(photos: Tensor) -> Tensor:
    is_bright = _levels(luma(photos)).flatten(1).median(dim=1).values > DARK_PHOTO
    return (_levels(photos).amax(dim=1) <= BLACK) & is_bright[:, None, None]


def _levels(photos: Tensor) -> Tensor:
    return photos.mul(255).round()


def _count(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).sum(dim=1).double()


LOOKS = {
    "psnr": Metric("PSNR in dB between the photo before and after, as of pairs", psnr),
    "white": Metric(f"pixels of the photo whose channels are all at least {WHITE}", lambda x, y: _count(_is_white(y))),
    "greyed": Metric(
        f"those of them whose darkest channel ends below {STILL_WHITE}",
        lambda x, y: _count(_is_white(y) & (_levels(x).amin(dim=1) < STILL_WHITE)),
    ),
    "black": Metric(
        f"pixels of the photo whose channels are all at most {BLACK}, if its median luma is above {DARK_PHOTO}",
        lambda x, y: _count(_is_black(y)),
    ),
    "lifted": Metric(
        f"those of them whose brightest channel ends above {STILL_BLACK}",
        lambda x, y: _count(_is_black(y) & (_levels(x).amax(dim=1) > STILL_BLACK)),
    ),
}
"""What is counted in each photo `(B, 3, H, W)` of 8 bits; the photo itself takes the target's place."""

MEANINGS = {
    "whites_greyed": "greyed / white, over the pixels of all photos together",
    "blacks_lifted": "lifted / black, likewise",
    "psnr_median": "median of psnr over photos",
    "psnr_tenth": "tenth percentile of psnr over photos",
}


def summarise_looks(rows: Sequence[Row]) -> list[Line]:
    """Return a line for each method with what `MEANINGS` names, and intervals over photos; None where there is none."""
    lines = []
    for method, own in by_method(rows).items():
        sums, counts = (
            np.array([[row[a], row[b]] for row in own]) for a, b in (("greyed", "lifted"), ("white", "black"))
        )
        shares, share_intervals = means(sums, counts, [""] * len(own), of_strata=False)
        levels, level_intervals = quantiles(np.array([row["psnr"] for row in own]), (0.5, 0.1))
        figures = [None if np.isnan(value) else value for value in (*shares.tolist(), *levels.tolist())]
        intervals = [*share_intervals, *level_intervals]
        lines.append(
            {
                "method": method,
                "photos": len(own),
                **dict(zip(MEANINGS, figures, strict=True)),
                "intervals": dict(zip(MEANINGS, intervals, strict=True)),
            }
        )
    return lines
