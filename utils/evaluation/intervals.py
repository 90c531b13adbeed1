"""95 % intervals of means, shares and quantiles over photos: a percentile bootstrap within strata.

Photos are drawn again, with replacement, as often as there are; the interval holds the middle 95 % of what comes out.
The draws are the same in every run.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Interval = tuple[float, float]

DRAWS = 10_000
_BOUNDS = (0.025, 0.975)
_AT_ONCE = 2**22
"""Photos drawn at once, over several draws."""


def means(
    sums: Values, counts: Values, strata: Sequence[str], *, of_strata: bool
) -> tuple[Values, list[Interval | None]]:
    """Return the mean of every column and its interval, None where a stratum has but one photo.

    Args:
        sums: `(photos, columns)`, the sum of a photo's values.
        counts: `(photos,)` or `(photos, columns)`, how many values these are.
        strata: each photo's; photos are drawn within them.
        of_strata: whether strata weigh alike, or values do.
    """
    names, kinds = np.unique(np.array(strata), return_inverse=True)
    counts = np.broadcast_to(counts.reshape(len(sums), -1), sums.shape)
    rng = np.random.default_rng(0)
    exact, drawn, is_possible = [], [], True
    for kind in range(len(names)):
        both = np.concatenate((sums[kinds == kind], counts[kinds == kind]), axis=1)
        exact.append(both.sum(axis=0, keepdims=True))
        is_possible &= len(both) > 1
        times = (_times(indices) for indices in _draws(rng, len(both)))
        drawn.append(np.concatenate([row @ both for row in times]))
    mean, spread = (_ratio(np.stack(parts), of_strata) for parts in (exact, drawn))
    return mean[0], [_interval(column) if is_possible else None for column in spread.T]


def quantiles(values: Values, shares: Sequence[float]) -> tuple[Values, list[Interval | None]]:
    """Return quantiles of `(photos,)` values and their intervals, None for a single photo."""
    exact = np.quantile(values, shares)
    if len(values) < 2:
        return exact, [None] * len(shares)
    draws = _draws(np.random.default_rng(0), len(values))
    drawn = np.concatenate([np.quantile(values[indices], shares, axis=1) for indices in draws], axis=1)
    return exact, [_interval(row) for row in drawn]


def _interval(drawn: Values) -> Interval | None:
    """Return where the middle 95 % lie of what was drawn, without draws of nothing."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, _BOUNDS).tolist()
    return low, high


def _draws(rng: np.random.Generator, count: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield `(draws, count)` indices of photos, `DRAWS` draws in all."""
    step = max(_AT_ONCE // count, 1)
    for start in range(0, DRAWS, step):
        yield rng.integers(count, size=(min(step, DRAWS - start), count))


def _times(indices: npt.NDArray[np.int64]) -> Values:
    """Return how often each photo was drawn, `(draws, photos)`."""
    draws, count = indices.shape
    places = indices + count * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=places.size).reshape(draws, count).astype(np.float64)


def _ratio(parts: Values, of_strata: bool) -> Values:
    """Return the means `(draws, columns)` of `(strata, draws, 2 * columns)` sums and counts."""
    sums, counts = np.split(parts, 2, axis=-1)
    with np.errstate(invalid="ignore"):  # nothing to count: no mean
        return np.mean(sums / counts, axis=0) if of_strata else sums.sum(axis=0) / counts.sum(axis=0)
