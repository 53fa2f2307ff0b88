"""How many rows and draft nodes a pass has, by how many slots are busy.

With few busy slots a pass is short of work, and draft nodes cost little; with all of them busy each
node costs what a token of another request would. So an engine has programs of several sizes:

    busy    rows    draft nodes    tokens/s = busy * tokens per call / seconds
    1       1       8              1 * 3.2 / 0.029 = 110    the best that holds 1
    2..4    4       8              4 * 3.2 / 0.071 = 180
    5..16   16      0              16 * 1.0 / 0.081 = 198   with 8 nodes: 16 * 3.2 / 0.29 = 177

Tokens per call are those of calibration; seconds are what the engine's own passes take at its
start. What a request becomes is the same whatever size its passes have. (The figures above are
made up.)
"""

import dataclasses
from collections.abc import Mapping, Sequence

from ssjax.decoding.drafters import Drafter, PlainDrafter, Way

_GROWTH = 4  # from one number of rows to the next


@dataclasses.dataclass(frozen=True)
class Size:
    """A program of the engine."""

    rows: int  # slots that it runs, the busy ones among them
    way: Way
    # Of a row; where nothing is known of the drafter 1, and no other is to be compared with it.
    tokens_per_call: float
    seconds: float | None = None  # of a pass; None: not measured

    @property
    def num_draft_nodes(self) -> int:
        return self.way.drafter.num_nodes - 1

    def tokens_per_second(self, busy: int) -> float:
        """With so many busy slots."""
        return busy * self.tokens_per_call / self.seconds


def make_sizes(
    way: Way,
    counts: Sequence[int],
    chosen: Mapping[int, Way],
    tokens: Mapping[Drafter, float],
) -> list[Size]:
    """The programs among which measured seconds are to choose.

    For a number of rows that was calibrated, as it was; for others that way, half of its nodes, and
    plain decoding, as far as their tokens per call are known.

    Args:
      way: how all slots together would be decoded.
      counts: numbers of rows, S among them.
      chosen: calibrated ways by number of rows.
      tokens: calibrated tokens per call of drafters.
    """
    sizes = []
    for rows in counts:
        ways = [chosen[rows]] if rows in chosen else _down_from(way, tokens)
        sizes += [Size(rows, each, _tokens_of(each, tokens)) for each in ways]
    return sizes


def row_counts(num_slots: int) -> list[int]:
    """1, 4, 16, ... and S itself."""
    counts, rows = [], 1
    while rows < num_slots:
        counts.append(rows)
        rows *= _GROWTH
    return [*counts, num_slots]


def plan(sizes: Sequence[Size], num_slots: int) -> tuple[Size, ...]:
    """The size that gives most tokens per second, for 1 to S busy slots.

    Among equals the one with the fewest nodes, then with the fewest rows.

    Args:
      sizes: measured, unless there is one alone; at least one holds all slots.
      num_slots: S.
    """
    if len(sizes) == 1:
        return tuple(sizes) * num_slots
    found = []
    for busy in range(1, num_slots + 1):
        able = [size for size in sizes if size.rows >= busy]
        found.append(
            max(able, key=lambda s: (s.tokens_per_second(busy), -s.num_draft_nodes, -s.rows))  # noqa: B023
        )
    return tuple(found)


def _down_from(way: Way, tokens: Mapping[Drafter, float]) -> list[Way]:
    """A way, one with about half of its nodes, and none."""
    whole = way.drafter.num_nodes - 1
    if not whole or way.drafter not in tokens:
        return [way]
    half = [
        drafter
        for drafter in tokens
        if 0 < drafter.num_nodes - 1 <= (whole + 1) // 2 < whole and len(drafter.widths) == 1
    ]
    fewer = [max(half, key=tokens.__getitem__)] if half else []
    return [
        way,
        *(dataclasses.replace(way, drafter=drafter) for drafter in (*fewer, PlainDrafter())),
    ]


def _tokens_of(way: Way, tokens: Mapping[Drafter, float]) -> float:
    return tokens.get(way.drafter, 1.0)
