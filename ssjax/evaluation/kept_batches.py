"""Batches that are decoded one after another, kept on disk, so that a stop costs none of them."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssjax.decoding.completion import Completion
from ssjax.decoding.decoder import BatchTiming
from ssjax.errors import UserError
from ssjax.evaluation.speed import TimedBatch
from ssjax.files import places
from ssjax.files.writing import write_atomic, writing
from ssjax.messages import say
from ssjax.parallel import distributed


class Stopped(Exception):
    """Decoding was asked to stop; what it has done is kept."""


class KeptBatches:
    """The batches of some ways to decode, a line each, after a line that says what they are of.

    A line that a kill has cut off is decoded again, and so is all of it where the first line says
    something else. To be made and called by all processes; the first one writes.

    Args:
      path: of the file, in a directory that all processes see.
      about: plain values that decide what is decoded.
      requested: whether this process was asked to stop.

    Raises:
      UserError: the file cannot be written, or other processes see another one.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], requested: Callable[[], bool]):
        self._path, self._requested = path, requested
        header = json.dumps(about, sort_keys=True)
        distributed.first(lambda: _begin(path, header))
        with writing(path):
            lines = path.read_bytes().decode().splitlines()[1:]
        if len(set(distributed.gather(str(len(lines))))) > 1:
            raise UserError(f"the processes of this run find different files at {path}")
        self._batches = [[_from_plain(way) for way in json.loads(line)] for line in lines]

    def of_ways(self, count: int) -> list[list[TimedBatch]]:
        """For each of so many ways, the batches that are done."""
        if self._batches:
            say(f"evaluation goes on after {len(self._batches)} batches")
        return [[batch[way] for batch in self._batches] for way in range(count)]

    def append(self, batch: Sequence[TimedBatch]) -> None:
        """Keeps one batch, as each way decoded it. Raises: Stopped: as `check`."""
        line = json.dumps([_to_plain(way) for way in batch]) + "\n"
        distributed.first(lambda: _append(self._path, line))
        self.check()

    def check(self) -> None:
        """Raises Stopped where any process was asked to stop."""
        if any(distributed.gather("stop" if self._requested() else "")):
            raise Stopped

    def remove(self) -> None:
        """To be called when what was made of the batches is on disk."""
        distributed.first(lambda: self._path.unlink(missing_ok=True))


def _begin(path: Path, header: str) -> None:
    """Leaves the header and whole lines after it."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole.partition(b"\n")[0] == header.encode():
        if len(whole) < len(content):  # never in a bucket, where objects are whole
            with writing(path):
                os.truncate(path, len(whole))
    else:
        write_atomic(path, header + "\n")


def _append(path: Path, line: str) -> None:
    if places.is_bucket(path):  # nothing can be appended to there
        path.write_bytes(path.read_bytes() + line.encode())
        return
    with writing(path), path.open("a") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _to_plain(batch: TimedBatch) -> dict[str, Any]:
    return dataclasses.asdict(batch)


def _from_plain(values: Mapping[str, Any]) -> TimedBatch:
    completions = tuple(
        Completion(**{k: tuple(v) if isinstance(v, list) else v for k, v in each.items()})
        for each in values["completions"]
    )
    return TimedBatch(completions, BatchTiming(**values["timing"]))
