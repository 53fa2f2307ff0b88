"""Which records make up each training batch: a function of the seed and the batch's number.

Records are gone through in a new order every epoch. Three ways of making rows of them:

    one a row       rows as wide as the longest sequence allowed
    buckets         one a row; batches of sequences of like length, as wide as their bucket
    packed          as many as fit into a row, in the order in which they come

The last two look at the lengths of all records, once, so that every process of a run knows
every batch without reading it, and a run continues anywhere, on any number of processes.
"""

import bisect
import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np

# Batches that are sorted together: wide enough that most are of one bucket, narrow enough that
# lengths stay mixed over time.
_WINDOW_BATCHES = 32

# Of a mixture: by source, its number of records and its weight; empty: there is none.
Parts = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class BatchPlan:
    """A batch before it is read."""

    rows: tuple[tuple[int, ...], ...]  # by row, the records that it holds
    width: int  # tokens of a row


class OneARow:
    """Batches of single sequences, all equally wide.

    Args:
      num_records: of the source.
      batch_size: rows of a batch.
      seed: of the order.
      width: tokens of a row.
      parts: as of `shuffled`.
    """

    def __init__(self, num_records: int, batch_size: int, seed: int, width: int, parts: Parts = ()):
        self._ids = shuffled(num_records, seed, parts)
        self._batch_size, self._width = batch_size, width

    def __call__(self, index: int) -> BatchPlan:
        ids = range(index * self._batch_size, (index + 1) * self._batch_size)
        return BatchPlan(tuple((int(self._ids[i]),) for i in ids), self._width)


class Buckets:
    """Batches of sequences of like length, each as wide as the smallest bucket that holds them.

    Every window of 32 batches takes the records that come next, sorts them by length, cuts
    them into batches and shuffles those.

    Args:
      lengths: tokens of every record.
      batch_size: rows of a batch.
      seed: of the order.
      widths: of the buckets, rising; the last holds every record.
      parts: as of `shuffled`.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        widths: Sequence[int],
        parts: Parts = (),
    ):
        self._lengths, self._batch_size, self._seed = np.asarray(lengths), batch_size, seed
        self._widths = tuple(widths)
        self._ids = shuffled(len(lengths), seed, parts)
        self._window = functools.lru_cache(maxsize=4)(self._make_window)

    def __call__(self, index: int) -> BatchPlan:
        window, place = divmod(index, _WINDOW_BATCHES)
        ids = self._window(window)[place]
        width = self._widths[bisect.bisect_left(self._widths, int(self._lengths[ids].max()))]
        return BatchPlan(tuple((int(record),) for record in ids), width)

    def _make_window(self, window):
        size = _WINDOW_BATCHES * self._batch_size
        ids = np.array([self._ids[i] for i in range(window * size, (window + 1) * size)])
        by_length = ids[np.argsort(self._lengths[ids], kind="stable")]
        batches = by_length.reshape(_WINDOW_BATCHES, self._batch_size)
        return np.random.default_rng((self._seed, window)).permutation(batches, axis=0)


class Packed:
    """Rows that hold several sequences, filled first come, first served.

    A row is closed when the next sequence does not fit, by all its tokens or by its target
    tokens, of which a row has a limited number of places. Rows follow from the lengths of all
    records before them, which are kept: a run that continues at a late step counts them again.

    Args:
      lengths: tokens of every record.
      target_lengths: target tokens of every record.
      batch_size: rows of a batch.
      seed: of the order.
      width: tokens of a row.
      max_targets: target tokens of a row.
      parts: as of `shuffled`.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        target_lengths: Sequence[int],
        batch_size: int,
        seed: int,
        width: int,
        max_targets: int,
        parts: Parts = (),
    ):
        self._lengths = np.asarray(lengths).tolist()
        self._targets = np.asarray(target_lengths).tolist()
        self._batch_size, self._width, self._max_targets = batch_size, width, max_targets
        self._ids = shuffled(len(self._lengths), seed, parts)
        self._rows: list[tuple[int, ...]] = []
        self._next = 0  # place in the order of the records
        self._lock = threading.Lock()  # batches are read by several threads

    def __call__(self, index: int) -> BatchPlan:
        first = index * self._batch_size
        with self._lock:
            while len(self._rows) < first + self._batch_size:
                self._rows.append(self._fill())
        return BatchPlan(tuple(self._rows[first : first + self._batch_size]), self._width)

    def _fill(self):
        row, tokens, targets = [], 0, 0
        while True:
            record = int(self._ids[self._next])
            tokens += self._lengths[record]
            targets += self._targets[record]
            if row and (tokens > self._width or targets > self._max_targets):
                return tuple(row)
            row.append(record)
            self._next += 1


def shuffled(num_records: int, seed: int, parts: Parts = ()) -> grain.MapDataset:
    """Record numbers in a new order every epoch, without end.

    Args:
      num_records: all of them.
      seed: of the order.
      parts: of a mixture, which lie one after the other: each is gone through in orders of its
        own, and of any stretch of numbers every part has its share by weight, to one record.
    """
    if not parts:
        return grain.MapDataset.range(num_records).seed(seed).shuffle().repeat(None)
    orders, begin = [], 0
    for number, (size, _) in enumerate(parts):
        [own_seed] = np.random.SeedSequence([seed, number]).generate_state(1)
        own = grain.MapDataset.range(begin, begin + size).seed(int(own_seed))
        orders.append(own.shuffle().repeat(None))
        begin += size
    return grain.MapDataset.mix(orders, [weight for _, weight in parts])
