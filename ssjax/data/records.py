"""Sequences of records: of a prepared split, and some of them."""

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


def place_of(index: int, size: int) -> int:
    """An index from either end as one from the beginning. Raises: IndexError."""
    if not -size <= index < size:
        raise IndexError(f"record {index} of {size}")
    return index % size
