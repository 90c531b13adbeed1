"""Local curves: a correction made on a small copy of a photo, as curves that run through black and white.

Around every pixel and for each channel, the correction is a monotone curve from (0, 0) to (1, 1), the rational
quadratic of Gregory and Delbourgo ("Piecewise rational quadratic interpolation to monotonic data", 1982) in one piece:

    y = (x² + s x (1 - x)) / (1 + (s + w - 2) x (1 - x)),

s > 0 being its slope at black and w > 0 its slope at white. Any two positive slopes give a monotone curve. s = w = 1 is
no change, and w = 1 / s multiplies the odds x / (1 - x) by s, much as exposure does. The slopes are two smooth maps per
channel, told by their logarithms; they can be interpolated to any size, while the detail comes from the photo.

A colour whose channels fall by curves of their own burns next to white, where the curves are steep. So a channel is
multiplied by no more than the curve multiplies t by, which lies between it and the darkest channel of its pixel:

    y = x min(r(x), r(t)), t = x - SHARED_FALL (x - darkest), r(x) = (x + s (1 - x)) / (1 + (s + w - 2) x (1 - x)).

Greys, and what is only brightened (r falls), are as by the curve itself.

Such curves flatten the lights of a dark photo in which nothing is near white. So the whole photo is levelled first: it
is brightened by the gain g >= 1 that brings its brightest parts as far as the correction does,

    y = g x / sqrt(1 + (g² - 1) x²),

which multiplies x / sqrt(1 - x²) by g and is nearly straight until it comes near white; black and white stay. The
logarithm of g is a third map, the same everywhere.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 4
"""The small copy's longest side by the radius of the windows in which curves are fitted."""
BRIGHTEST, DARKEST = 8.0, 5.0
"""Largest gains of the odds, upwards and downwards: three stops, beside levelling, and a little over two, as a file has
few values next to black and white, and steeper curves make blocks, contours and burnt colours of them."""
IN_COMMON = 0.5
"""How far the curves of a channel are drawn to the mean of all: a change of exposure moves no hue."""
SHARED_FALL = 0.3
"""How far t lies from a channel towards the darkest one of its pixel."""
LEVEL = 3.0
"""Largest gain by which a photo is levelled: nearly four stops of light."""
POWER = 16
"""Of the mean that tells how bright the brightest parts are: a lamp has a say, a speck of light has little."""
RIDGE = 1e-4
"""Mean square of what is fitted below which a window takes a plain gain of the odds rather than a fit."""


def fit(small: Tensor, corrected: Tensor) -> Tensor:
    """Return the curves that lead from a small photo to its correction, in windows around every pixel.

    Args:
        small: `(B, C, H, W)` float, the small copy in [0, 1].
        corrected: `(B, C, H, W)` float, its correction; clipped to [0, 1].

    Returns:
        `(B, 3, C, H, W)` float32: the logarithms of the slopes at black and at white, and of the gain by which the
        photo is levelled; 0 where nothing is corrected.

    The curves lead from the levelled copy to the correction. In each window, first the gain k of the odds that relates
    the two on average: a ratio of sums in which black and white have no say; where it is below 1, t is read. Then
    slopes k (1 + a) and (1 + b) / k by least squares, with a ridge that keeps a and b small where a window is flat; the
    curve's equation is linear in its slopes once multiplied by its denominator. The slopes of the windows that see a
    pixel are averaged, and drawn to the other channels'.
    """
    x, y = small.float().contiguous(), corrected.float().clamp(0, 1).contiguous()
    levelling = (_brightest(y) / _brightest(x)).clamp(1, LEVEL)
    x = level(x, levelling)
    longest = torch.sym_max(*x.shape[-2:])  # not max: exports follow sizes
    radius = torch.sym_max(rounded(longest, WINDOW), 1)
    both = x * y
    gain = _gain(*box_mean(torch.cat((y - both, x - both), dim=1), radius).chunk(2, dim=1))
    t = x + (1 / gain - gain).clamp(0, 1) * (_towards_darkest(x) - x)
    product, both = t * (1 - t), t * y
    below, above = y - both, x - both  # the odds of the correction over the photo's are their ratio
    at_white = product * y  # what the slopes multiply
    at_black = x * (1 - t) - at_white
    rest = (1 - 2 * product) * y - x * t
    products = (at_black.square(), at_black * at_white, at_white.square(), at_black * rest, at_white * rest)
    means = box_mean(torch.cat((below, above, *products), dim=1), radius)
    below, above, bb, bw, ww, br, wr = means.chunk(7, dim=1)
    gain = _gain(below, above)
    # a (k at_black) - b (at_white / k) = rest - k at_black + at_white / k, squared and summed over the window
    square = gain.square()
    bb, ww = square * bb, ww / square
    aa, ab, b2 = bb + RIDGE, -bw, ww + RIDGE
    right_a, right_b = gain * br - bb + bw, bw - ww - wr / gain
    determinant = aa * b2 - ab.square()
    a = ((b2 * right_a - ab * right_b) / determinant).clamp_min(-0.8)
    b = ((aa * right_b - ab * right_a) / determinant).clamp_min(-0.8)
    at_black = (gain * (1 + a)).clamp(1 / DARKEST, BRIGHTEST)
    at_white = ((1 + b) / gain).clamp(1 / BRIGHTEST, DARKEST)
    maps = box_mean(torch.cat((at_black, at_white), dim=1).log(), radius).unflatten(1, (2, -1))
    maps = maps + IN_COMMON * (maps.mean(dim=2, keepdim=True) - maps)
    return torch.cat((maps, levelling.log()[:, None].expand_as(maps[:, :1])), dim=1)


def _brightest(x: Tensor) -> Tensor:
    """Return the mean `(B, 1, 1, 1)` of the brightest channels of `(B, C, H, W)`, in which the brightest count most."""
    return (x.amax(dim=1).pow(POWER).mean(dim=(1, 2)) + 1e-32).pow(1 / POWER)[:, None, None, None]


def level(photo: Tensor, gain: Tensor) -> Tensor:
    """Return a photo `(B, C, H, W)` in [0, 1] brightened by gains `(B, 1, 1, 1)`: by 1, as it is, to the bit."""
    return gain * photo / (1 + (gain.square() - 1) * photo.square()).sqrt()


def _gain(below: Tensor, above: Tensor) -> Tensor:
    """Return the gain of the odds that two sums tell, within its bounds; where both are 0, none."""
    return ((below + 1e-4) / (above.clamp_min(0) + 1e-4)).clamp(1 / DARKEST, BRIGHTEST)


def _towards_darkest(x: Tensor) -> Tensor:
    """Return t of a photo `(B, C, H, W)`."""
    return x - SHARED_FALL * (x - x.amin(dim=1, keepdim=True))


def adjust(maps: Tensor, strength: Tensor | float = 1.0, exposure: Tensor | float = 0.0) -> Tensor:
    """Return curves `(B, 3, C, h, w)` of another strength and brightness, of the same kind.

    Args:
        maps: as `fit` returns them.
        strength: from 0, no correction, to 1; it multiplies the logarithms.
        exposure: stops brighter, or darker if negative; exact for a grey card in sRGB, up to two.
    """
    shift = _log_odds_of_grey(torch.as_tensor(exposure, dtype=maps.dtype, device=maps.device)) - _log_odds_of_grey(
        maps.new_zeros(())
    )
    at_black, at_white, gain = (strength * maps).unbind(dim=1)
    return torch.stack((at_black + shift, at_white - shift, gain), dim=1)


def _log_odds_of_grey(stops: Tensor) -> Tensor:
    """Return ln(x / (1 - x)) of a grey card of 18 % in sRGB, exposed by so many stops; from two on, ln 2 for each."""
    grey = 1.055 * (0.18 * torch.exp2(stops.clamp(max=2))) ** (1 / 2.4) - 0.055
    return torch.logit(grey) + math.log(2) * (stops - 2).clamp_min(0)


def apply(photo: Tensor, maps: Tensor) -> Tensor:
    """Return a photo `(B, C, H, W)` in [0, 1] of any size under curves `(B, 3, C, h, w)`, in float32.

    The slopes are interpolated bilinearly to the photo's size. Black stays black and white stays white.
    """
    x = level(photo.float(), maps[:, 2, :1, :1, :1].float().exp())
    slopes = maps[:, :2].float().exp().flatten(1, 2)  # (B, 2 C, h, w)
    if slopes.shape[-2:] != x.shape[-2:]:
        slopes = F.interpolate(slopes, x.shape[-2:], mode="bilinear")
    at_black, at_white = slopes.chunk(2, dim=1)
    own, shared = (
        (1 + (at_black - 1) * (1 - t)) / (1 + (at_black + at_white - 2) * t * (1 - t)) for t in (x, _towards_darkest(x))
    )
    return x * torch.minimum(own, shared)


def multiply_odds(photo: Tensor, gain: Tensor | float) -> Tensor:
    """Return a photo in [0, 1] under the curve of slopes `gain` and 1 / `gain`: its odds x / (1 - x) times `gain`."""
    return gain * photo / (1 + (gain - 1) * photo)


def rounded(a: Any, b: Any) -> Any:
    """Return the quotient of two lengths as `round` has it, by whole numbers, which exports can follow."""
    return (2 * a + b - 1 + a // b % 2) // (2 * b)


def box_mean(image: Tensor, radius: int) -> Tensor:
    """Return the mean over square windows of `(..., H, W)`, of the pixels that lie inside the image.

    By products with matrices of bands: its cost does not depend on the radius, and neither its result nor its gradient
    on the order in which a GPU adds.
    """
    down, across = (_windows(length, radius, image) for length in image.shape[-2:])
    return down @ (image @ across.T)


def _windows(length: int, radius: int, like: Tensor) -> Tensor:
    """Return `(length, length)`: in each row, the weights of the positions in the window around one."""
    position = torch.arange(length, device=like.device)
    inside = ((position[:, None] - position).abs() <= radius).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
