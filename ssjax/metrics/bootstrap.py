"""95 % bootstrap intervals of figures that are computed from sums over records."""

from collections.abc import Callable

import numpy as np

_RESAMPLES = 2000
_AT_ONCE = 50  # resamples; an index for each record of each of them lies in memory
_SEED = 0


def interval(statistics: np.ndarray, figure: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """The middle 95 % of a figure when records are drawn again with replacement.

    Args:
      statistics: [records, K], what each record adds. Tables of as many records are drawn alike,
        so that the intervals of two metrics are of the same draws.
      figure: of sums over records, [K].
    """
    if len(statistics) == 1:  # every draw is that record, and scipy wants two
        value = float(figure(statistics[0]))
        return value, value
    from scipy import stats  # half a second of a start

    drawn = stats.bootstrap(
        (np.arange(len(statistics)),),
        lambda own: figure(statistics[own].sum(axis=0)),
        vectorized=False,
        method="percentile",
        n_resamples=_RESAMPLES,
        batch=_AT_ONCE,
        rng=_SEED,
    )
    low, high = drawn.confidence_interval
    return float(low), float(high)
