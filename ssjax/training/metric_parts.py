"""Metrics of a run in a bucket, where nothing can be appended to: one object for each start.

    metrics/00001-after-0.jsonl      lines as in metrics.jsonl, of the start that began at step 0
    metrics/00002-after-40.jsonl     of the start that continued from step 40

An object is put whole, again and again while its start goes on: before every checkpoint, at the
end, and every minute. Records of later steps than a start went on from, in the parts before it,
are those of steps that were lost with a kill: who reads leaves them out.
"""

import contextlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssjax.errors import UserError
from ssjax.files.writing import write_atomic
from ssjax.training.callbacks import Recorder

DIRECTORY = "metrics"
_PART = re.compile(r"(\d+)-after-(\d+)\.jsonl")
_SECONDS = 60.0  # between puts that no checkpoint asks for


class MetricParts(Recorder):
    """Records as `MetricsFile` has them.

    Args:
      directory: of a bucket.

    Raises:
      UserError: by every method, if an object cannot be put.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._lines: list[str] = []
        self._path: Path | None = None
        self._put = 0, 0.0  # lines that were put, and when

    def on_start(self, step: int, num_steps: int) -> None:
        number = 1 + max((number for number, _, _ in _parts(self._directory)), default=0)
        self._path = self._directory / f"{number:05d}-after-{step}.jsonl"
        self._put = 0, time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._lines.append(json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")
        if time.monotonic() - self._put[1] > _SECONDS:
            self._keep()

    def on_saving(self, step: int) -> None:
        self._keep()

    def on_end(self, complete: bool) -> None:
        with contextlib.suppress(UserError):  # said where it was put before
            self._keep()

    def _keep(self) -> None:
        if self._put[0] < len(self._lines):
            write_atomic(self._path, "".join(self._lines))
            self._put = len(self._lines), time.monotonic()


def read_parts(directory: Path) -> list[dict[str, Any]]:
    """The records of a run that was started once or many times, as if it had never stopped."""
    records: list[dict[str, Any]] = []
    for _, step, path in _parts(directory):
        new = [json.loads(line) for line in path.read_bytes().decode().splitlines()]
        records = [record for record in records if record["step"] <= step] + new
    return records


def _parts(directory: Path) -> list[tuple[int, int, Path]]:
    """Number, step that it goes on from, and path of each part, in order."""
    matches = ((path, _PART.fullmatch(path.name)) for path in directory.glob("*.jsonl"))
    return sorted((int(m[1]), int(m[2]), path) for path, m in matches if m)
