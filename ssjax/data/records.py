"""Sequences of records: of a prepared split, some of them, and several together."""

import bisect
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class RecordSource(Sequence):
    """A prepared split: `len`, and records by number as dicts of str and tuple[str, ...].

    Attributes:
      directory: of the prepared data, which changes with what it was made from.
      split: its name.
    """

    def __init__(self, encoded: Sequence[Mapping[str, Any]], directory: Path, split: str):
        """encoded: a TFDS data source, whose texts are bytes."""
        self._encoded = encoded
        self.directory, self.split = directory, split

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            field: value.decode() if isinstance(value, bytes) else tuple(v.decode() for v in value)
            for field, value in self._encoded[place_of(index, len(self))].items()
        }


class Chosen(Sequence):
    """Some records of a source, in its order.

    Attributes:
      source: all of them.
      numbers: [N] int, of those that are chosen.
    """

    def __init__(self, source: Sequence, numbers: np.ndarray):
        self.source, self.numbers = source, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.source[int(self.numbers[place_of(index, len(self))])]


class Mixture(Sequence):
    """The records of several sources, one source after the other.

    Attributes:
      sources: at least one.
      weights: of each, how often its records are drawn in training.
    """

    def __init__(self, sources: Sequence[Sequence], weights: Sequence[float]):
        self.sources, self.weights = tuple(sources), tuple(weights)
        self._begins = [0, *itertools.accumulate(map(len, sources))]

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        place = place_of(index, len(self))
        number = bisect.bisect_right(self._begins, place) - 1
        return self.sources[number][place - self._begins[number]]

    @property
    def parts(self) -> list[tuple[int, float]]:
        """By source, its number of records and its weight."""
        return [(len(s), weight) for s, weight in zip(self.sources, self.weights, strict=True)]


def num_left_out(source: Sequence) -> int:
    """Records that a source has and that were not chosen."""
    if isinstance(source, Mixture):
        return sum(map(num_left_out, source.sources))
    return len(source.source) - len(source) if isinstance(source, Chosen) else 0


def place_of(index: int, size: int) -> int:
    """An index from either end as one from the beginning. Raises: IndexError."""
    if not -size <= index < size:
        raise IndexError(f"record {index} of {size}")
    return index % size
