"""What a training run tells: metrics.jsonl always, a bar or plain lines, TensorBoard if there.

A record of metrics.jsonl is a training record (loss, one loss and accuracy per stream,
grad_norm, learning_rate, tokens_per_second) or a validation record (the weighted loss as
validation_loss, and the others with the prefix validation_). Losses are nats per target token,
means over the steps since the record before.
"""

import contextlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from ssjax.errors import DivergedError
from ssjax.files.reading import read_bytes
from ssjax.files.writing import make_directory, write_atomic, writing
from ssjax.training.losses import LossSums
from ssjax.training.step import StepMetrics


def loss_record(sums: LossSums, names: Sequence[str], prefix: str = "") -> dict[str, float]:
    """Means by name: loss_main, accuracy_main, loss_stream_1, accuracy_stream_1, ..."""
    record = {}
    for name, loss, correct, weight in zip(
        names, sums.cross_entropy, sums.correct, sums.weight, strict=True
    ):
        record[f"{prefix}loss_{name}"] = float(loss) / max(float(weight), 1.0)
        record[f"{prefix}accuracy_{name}"] = float(correct) / max(float(weight), 1.0)
    return record


class Reporter:
    """Collects step metrics and writes records. A context manager.

    Args:
      workdir: of the run; metrics.jsonl is continued there.
      start_step: records behind this step, left by a run that was killed after its last
        checkpoint, are removed.
      num_steps: of the whole run.
      log_every: steps per record; 0: one at the end.
      schedule: learning rate by step.
      names: of the outputs, from `losses.output_names`.
      quiet: write and say nothing; for all but the first process of a run.

    Raises:
      UserError: a file cannot be written.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int,
        num_steps: int,
        log_every: int,
        schedule: Callable[[int], float],
        names: Sequence[str],
        quiet: bool = False,
    ):
        self._quiet = quiet
        self._names = names
        self._log_every = log_every
        self._schedule = schedule
        self._num_steps = num_steps
        self._file = self._board = self._bar = None
        if not quiet:
            path = workdir / "metrics.jsonl"
            write_atomic(path, "".join(_records_until(path, start_step)))
            with writing(path):
                self._file = path.open("a", encoding="utf-8")
            self._board = _tensorboard(workdir / "tensorboard")
        if not quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=num_steps, completed=start_step, state="")
        self._restart()

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()
        for file in (self._board, self._file):
            if file:
                with contextlib.suppress(OSError):  # said where it was written to
                    file.close()

    def add_step(self, step: int, metrics: StepMetrics, num_tokens: int) -> None:
        """Takes the metrics of one step, on the host.

        Args:
          step: updates applied, this one included.
          metrics: of this step.
          num_tokens: prompt and target tokens of its batch.

        Raises:
          DivergedError: the loss or the gradient is not finite.
          UserError: a file cannot be written.
        """
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            found = f"loss {loss}, gradient norm {grad_norm}"
            raise DivergedError(_cannot_begin(found) if step == 1 else _diverged(step, found))
        self._sums = [
            total + np.asarray(value, np.float64)
            for total, value in zip(self._sums, _fields(metrics.sums), strict=True)
        ]
        self._losses.append(loss)
        self._num_tokens += num_tokens
        if self._bar:
            rate = self._num_tokens / max(time.perf_counter() - self._since, 1e-9)
            state = f"loss {loss:.3f}  {rate:,.0f} tokens/s"
            self._bar.update(self._task, completed=step, state=state)
        regular = self._log_every and step % self._log_every == 0
        if regular or step == self._num_steps:
            self._write_training_record(step, grad_norm)

    def add_validation(self, step: int, loss: float, sums: LossSums) -> None:
        """Writes a validation record: the weighted loss, and each output's own.

        Raises:
          DivergedError: the loss is not finite.
          UserError: a file cannot be written.
        """
        if not math.isfinite(loss):  # the step's own loss was: its update is to blame
            raise DivergedError(_diverged(step, f"validation loss {loss}"))
        record = {"validation_loss": loss} | loss_record(sums, self._names, "validation_")
        self._write({"step": step, "time": time.time()} | record)
        self.say(
            f"step {step}: validation loss {loss:.4f}, top-1 accuracy "
            + _accuracies(record, "validation_")
        )

    def say(self, message: str) -> None:
        """One line for the user, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(message, highlight=False, markup=False)
        elif not self._quiet:
            print(message, file=sys.stderr, flush=True)

    def _write_training_record(self, step, grad_norm):
        seconds = time.perf_counter() - self._since
        record = {
            "step": step,
            "time": time.time(),
            "loss": float(np.mean(self._losses)),
            **loss_record(LossSums(*self._sums), self._names),
            "grad_norm": grad_norm,
            "learning_rate": float(self._schedule(step - 1)),
            "tokens_per_second": self._num_tokens / max(seconds, 1e-9),
        }
        self._write(record)
        if not self._bar:
            left = (self._num_steps - step) * seconds / len(self._losses)
            self.say(
                f"step {step}/{self._num_steps}: loss {record['loss']:.3f}, top-1 accuracy "
                f"{_accuracies(record, '')}, {record['tokens_per_second']:,.0f} tokens/s, "
                f"{left:.0f} s left"
            )
        self._restart()

    def _write(self, record):
        if self._quiet:
            return
        with writing(self._file.name):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            if self._board:
                self._board.write(record)

    def _restart(self):
        self._sums = [np.float64(0.0)] * 3
        self._losses = []
        self._num_tokens = 0
        self._since = time.perf_counter()


def _fields(sums: LossSums):
    return sums.cross_entropy, sums.correct, sums.weight


def _accuracies(record, prefix):
    """Top-1 accuracy of the main stream and of each stream, as in "0.71 | 0.52 0.40"."""
    values = [f"{v:.2f}" for k, v in record.items() if k.startswith(f"{prefix}accuracy_")]
    return " | ".join([values[0], " ".join(values[1:])]) if len(values) > 1 else values[0]


def _cannot_begin(found: str) -> str:
    """The first step is computed from what training starts with."""
    return (
        f"training cannot begin: {found} at step 1, before any update; the weights it starts from "
        "hold values that are not finite or too large for model.dtype; check the base model"
    )


def _diverged(step: int, found: str) -> str:
    return (
        f"training diverged at step {step}: {found}; lower optimizer.learning_rate or "
        "optimizer.clip_norm"
    )


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


class _Board:
    """Records as scalars for TensorBoard.

    Written by the thread that calls: the threads of tensorboardX's own writer end without a word
    where the disk is full, and whoever writes on waits for them without end.
    """

    def __init__(self, directory: Path):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto.event_pb2 import Event

        self._scalar, self._event = summary.scalar, Event
        self._writer = event_file_writer.EventsWriter(str(directory / "events"))

    def write(self, record):
        for name, value in record.items():
            if name not in ("step", "time"):
                summary = self._scalar(name, value)
                event = self._event(step=record["step"], wall_time=record["time"], summary=summary)
                self._writer.write_event(event)

    def close(self):
        self._writer.close()


def _tensorboard(directory: Path) -> _Board | None:
    if importlib.util.find_spec("tensorboardX") is None:
        return None
    make_directory(directory)
    with writing(directory):
        return _Board(directory)
