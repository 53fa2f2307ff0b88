"""What a training run tells: metrics.jsonl always, a bar or plain lines, TensorBoard if there.

A record of metrics.jsonl is a training record (loss, one loss and accuracy per stream,
grad_norm, learning_rate, tokens_per_second) or a validation record (the weighted loss as
validation_loss, and the others with the prefix validation_). Losses are nats per target token,
means over the steps since the record before.
"""

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
from ssjax.files import write_atomic
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
            self._file = path.open("a", encoding="utf-8")
            self._board = _tensorboard(workdir)
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
        if self._board:
            self._board.close()
        if self._file:
            self._file.close()

    def add_step(self, step: int, metrics: StepMetrics, num_tokens: int) -> None:
        """Takes the metrics of one step, on the host.

        Args:
          step: updates applied, this one included.
          metrics: of this step.
          num_tokens: prompt and target tokens of its batch.

        Raises:
          DivergedError: the loss or the gradient is not finite.
        """
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise DivergedError(
                f"training diverged at step {step}: loss {loss}, gradient norm {grad_norm}; "
                "lower optimizer.learning_rate or optimizer.clip_norm"
            )
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
        """Writes a validation record: the weighted loss, and each output's own."""
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
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board:
            for name, value in record.items():
                if name not in ("step", "time"):
                    self._board.add_scalar(name, value, record["step"])

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


def _records_until(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue  # a line cut short by a kill
    return kept


def _tensorboard(workdir: Path):
    if importlib.util.find_spec("tensorboardX") is None:
        return None
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(workdir / "tensorboard"))
