"""Which checkpoints a directory holds, which of them is the best, and which are as they were
written.

A checkpoint carries what the validation at its step measured, by the names of metrics.jsonl. Which
of it makes the best is a setting of the run, which may change on the way: a checkpoint without the
value is never the best by it.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssjax.config.measured import VALIDATION_LOSS, is_better_low
from ssjax.errors import DamagedError, UserError
from ssjax.files import manifest, places

_METRICS_FILE = "metrics/metrics"  # where Orbax writes it
COMMITTED = "commit_success.txt"  # what Orbax puts last in a bucket


def steps(directory: Path) -> list[int]:
    """Saved steps in rising order, damaged ones too."""
    if not directory.is_dir():
        return []
    named = (path for path in directory.iterdir() if _is_step(path.name))
    return sorted(int(path.name) for path in named if is_committed(path))


def is_committed(path: Path) -> bool:
    """Whether all of a checkpoint was written; on a disk it has its name from then on."""
    return not places.is_bucket(path) or (path / COMMITTED).exists()


def _is_step(name: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]{0,17}", name) is not None


def merit(measured: Mapping[str, Any], best_by: str) -> float:
    """How good a checkpoint is, more is better; -inf where that was not measured.

    Args:
      measured: by a validation, as the checkpoint carries it.
      best_by: checkpoint.best_by of the run.
    """
    value = float(measured.get(best_by, math.nan))
    value = -value if is_better_low(best_by) else value
    return value if math.isfinite(value) else -math.inf


def find_step(directory: Path, which: str, best_by: str = VALIDATION_LOSS) -> int:
    """Resolves "latest", "best" or a number to a saved step.

    Args:
      directory: of the checkpoints.
      which: one of these; the best of those that were measured so.
      best_by: as in `merit`.

    Raises:
      UserError: there is no such checkpoint.
      DamagedError: it cannot be told which is the best.
    """
    if not directory.is_dir():
        raise UserError(f"{directory.parent} holds no checkpoints; is it the workdir of a run?")
    saved = steps(directory)
    if which == "latest" and saved:
        return saved[-1]
    if which == "best":
        for step in saved:
            if problem := metrics_damage(directory, step):
                raise damage_error(directory, step, problem)
        merits = {step: merit(_measured(directory / str(step)), best_by) for step in saved}
        if max(merits.values(), default=-math.inf) > -math.inf:
            return max(merits, key=merits.get)
    if _is_step(which) and int(which) in saved:
        return int(which)
    names = ", ".join(map(str, saved)) or "none"
    judged = f", none measured by {best_by}" if which == "best" and saved else ""
    raise UserError(f"no checkpoint {which!r} in {directory}; steps saved: {names}{judged}")


def damage_error(directory: Path, step: int, problem: str) -> DamagedError:
    """The error for a damaged checkpoint; says which others are whole."""
    others = [other for other in steps(directory) if other != step]
    whole = [str(n) for n in others if not manifest.damage(directory / str(n))]
    mend = f"whole: {', '.join(whole)} (--checkpoint {whole[-1]})" if whole else "no other is whole"
    return DamagedError(f"{problem}; {mend}; the same training, started again, mends the run")


def metrics_damage(directory: Path, step: int) -> str:
    """What is wrong with the measurements of a checkpoint; empty: nothing."""
    path = directory / str(step)
    problem = manifest.damage(path, only=[_METRICS_FILE])
    if not problem:
        try:
            for name in (found := _measured(path)):
                merit(found, name)
        except (OSError, ValueError, TypeError, AttributeError):
            problem = f"{_METRICS_FILE} cannot be read"
    return problem and f"{path} is damaged: {problem}"


def _measured(path: Path) -> dict[str, Any]:
    """What the validation at the step of a checkpoint measured; empty: there was none."""
    file = path / _METRICS_FILE
    return json.loads(file.read_bytes()) if file.exists() else {}
