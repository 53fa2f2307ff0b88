"""Where the seconds of a run go: into steps, or into what they wait for."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal

Kind = Literal["compile", "validation", "saves"]


class WallTime:
    """Seconds of one start of a run, from when this is made.

    A step lasts from the end of the one before to its own, without what was spent on something else
    in between. The device has nothing under way whenever something else begins.

    Args:
      now: seconds of a clock that only rises.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._begun = self._mark = now()
        self._apart = 0.0  # seconds since the mark that no step took
        self._seconds = {"steps": 0.0, "compile": 0.0, "validation": 0.0, "saves": 0.0}

    @contextlib.contextmanager
    def spent_on(self, kind: Kind) -> Iterator[None]:
        """While the block lasts, no step does. Blocks do not lie within each other."""
        begun = self._now()
        try:
            yield
        finally:
            seconds = self._now() - begun
            self._seconds[kind] += seconds
            self._apart += seconds

    def begin(self) -> None:
        """To be called before the first step; what came before was the start."""
        self._mark, self._apart = self._now(), 0.0

    def end_step(self) -> float:
        """To be called when the result of a step is there; the seconds that it took."""
        now = self._now()
        seconds = max(now - self._mark - self._apart, 0.0)
        self._mark, self._apart = now, 0.0
        self._seconds["steps"] += seconds
        return seconds

    def summary(self) -> dict[str, float]:
        """goodput: the share of steps in all seconds; and all seconds by what they went into."""
        total = self._now() - self._begun
        rest = max(total - sum(self._seconds.values()), 0.0)
        return {
            "goodput": self._seconds["steps"] / max(total, 1e-9),
            **{f"seconds_{kind}": seconds for kind, seconds in self._seconds.items()},
            "seconds_other": rest,
        }
