"""Where the metrics of a run are always kept: metrics.jsonl, in a bucket metrics/ in its place."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

from ssjax.files import places
from ssjax.files.reading import read_bytes
from ssjax.files.writing import write_atomic, writing
from ssjax.training import metric_parts
from ssjax.training.callbacks import Callback, Recorder
from ssjax.training.metric_parts import MetricParts


def keep_records(workdir: Path) -> Callback:
    """The callback that keeps metrics in a run directory."""
    if places.is_bucket(workdir):
        return MetricParts(workdir / metric_parts.DIRECTORY)
    return MetricsFile(workdir / "metrics.jsonl")


class MetricsFile(Recorder):
    """One line of JSON a record: step, time (seconds since the epoch) and the metrics.

    What is there is continued. Records of later steps than the one that training goes on from,
    left by a run that was killed after its last checkpoint, are removed.

    Args:
      path: of the file.

    Raises:
      UserError: by every method, if the file cannot be written.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file = None

    def on_start(self, step: int, num_steps: int) -> None:
        write_atomic(self._path, "".join(_records_until(self._path, step)))
        with writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        with writing(self._file.name):
            self._file.write(json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")
            self._file.flush()

    def on_end(self, complete: bool) -> None:
        with contextlib.suppress(OSError):  # said where it was written to
            self._file.close()


def _records_until(path: Path, step: int) -> list[str]:
    kept = []
    content = read_bytes(path) if path.exists() else b""
    for line in content.decode(errors="replace").split("\n"):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # cut short by a kill, or damaged
    return kept
