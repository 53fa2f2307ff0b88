"""Which checkpoints a directory holds, and which of them are as they were written."""

import json
import math
import re
from pathlib import Path

from ssjax.errors import DamagedError, UserError
from ssjax.files import manifest

BEST_METRIC = "validation_loss"
_METRICS_FILE = "metrics/metrics"  # where Orbax writes it


def steps(directory: Path) -> list[int]:
    """Saved steps in rising order, damaged ones too."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if _is_step(path.name))


def _is_step(name: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]{0,17}", name) is not None


def find_step(directory: Path, which: str) -> int:
    """Resolves "latest", "best" (lowest validation loss) or a number to a saved step.

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
        losses = {step: _validation_loss(directory / str(step)) for step in saved}
        measured = {step: loss for step, loss in losses.items() if loss is not None}
        if measured:
            return min(measured, key=measured.get)
    if _is_step(which) and int(which) in saved:
        return int(which)
    names = ", ".join(map(str, saved)) or "none"
    raise UserError(f"no checkpoint {which!r} in {directory}; steps saved: {names}")


def damage_error(directory: Path, step: int, problem: str) -> DamagedError:
    """The error for a damaged checkpoint; says which others are whole."""
    others = [other for other in steps(directory) if other != step]
    whole = [str(n) for n in others if not manifest.damage(directory / str(n))]
    mend = f"whole: {', '.join(whole)} (--checkpoint {whole[-1]})" if whole else "no other is whole"
    return DamagedError(f"{problem}; {mend}; the same training, started again, mends the run")


def metrics_damage(directory: Path, step: int) -> str:
    """What is wrong with the validation loss of a checkpoint; empty: nothing."""
    path = directory / str(step)
    problem = manifest.damage(path, only=[_METRICS_FILE])
    if not problem:
        try:
            _validation_loss(path)
        except (OSError, ValueError, TypeError, KeyError):
            problem = f"{_METRICS_FILE} cannot be read"
    return problem and f"{path} is damaged: {problem}"


def _validation_loss(path: Path) -> float | None:
    file = path / _METRICS_FILE
    if not file.exists():
        return None
    loss = float(json.loads(file.read_bytes())[BEST_METRIC])
    return loss if math.isfinite(loss) else None
