"""When a checkpoint is due, and when a run has waited long enough for a gain.

Numbers and clocks alone: nothing here knows a model or a file.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping

from ssjax.config import CheckpointConfig


def is_due(step: int, every: int) -> bool:
    """Whether a step is one of every so many; 0: never."""
    return every > 0 and step % every == 0


class SaveClock:
    """Whether minutes have passed since the last save.

    Args:
      minutes: between saves; 0: never.
      now: seconds of a clock that only rises.
    """

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic):
        self._seconds, self._now = 60 * minutes, now
        self.restart()

    def restart(self) -> None:
        """To be called at each save, whatever it was for."""
        self._since = self._now()

    def rings(self) -> bool:
        """Whether a save is due; says so once, and waits anew."""
        due = 0 < self._seconds <= self._now() - self._since
        if due:
            self.restart()
        return due


def is_saved_by_steps(kept: CheckpointConfig, step: int) -> bool:
    """Whether the settings save this step for its number."""
    return is_due(step, kept.save_every) or is_due(step, kept.keep_every)


@dataclasses.dataclass(frozen=True)
class Patience:
    """Validations of a run, as far as they decide whether it goes on.

    Args:
      limit: validations in a row without a gain that end the run; 0: none do.
      best: the greatest merit so far, more is better; -inf: nothing was measured.
      waited: validations in a row that were no better.
    """

    limit: int
    best: float = -math.inf
    waited: int = 0

    @classmethod
    def continued(cls, limit: int, saved: Mapping[str, int | float]) -> "Patience":
        """As a checkpoint has kept it; one of an older version kept nothing."""
        if "best_merit" not in saved:
            return cls(limit)
        return cls(limit, float(saved["best_merit"]), int(saved["validations_waited"]))

    def to_save(self) -> dict[str, int | float]:
        """Plain numbers, for `continued`."""
        return {"best_merit": self.best, "validations_waited": self.waited}

    def after(self, merit: float) -> "Patience":
        """After one more validation; -inf: it could not be measured, and counts for nothing."""
        if merit == -math.inf:
            return self
        if merit > self.best:
            return dataclasses.replace(self, best=merit, waited=0)
        return dataclasses.replace(self, waited=self.waited + 1)

    @property
    def has_ended(self) -> bool:
        """Whether the run is over."""
        return 0 < self.limit <= self.waited
