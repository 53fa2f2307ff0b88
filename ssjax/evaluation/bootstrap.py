"""95 % bootstrap intervals of figures that are computed from sums over records."""

from collections.abc import Callable

import numpy as np

_RESAMPLES = 1000
_ROWS_AT_ONCE = 50  # of a table with a column for each record
_SEED = 0


def interval(statistics: np.ndarray, figure: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """The middle 95 % of a figure when records are drawn again with replacement.

    Args:
      statistics: [records, K], what each record adds. Tables of as many records are drawn alike,
        so that the intervals of two metrics are of the same draws.
      figure: of sums over records, [K].
    """
    rng, count = np.random.default_rng(_SEED), len(statistics)
    figures = []
    for _ in range(_RESAMPLES // _ROWS_AT_ONCE):
        weights = rng.multinomial(count, [1 / count] * count, size=_ROWS_AT_ONCE)
        figures += [figure(sums) for sums in weights @ statistics]
    low, high = np.percentile(figures, [2.5, 97.5])
    return float(low), float(high)
