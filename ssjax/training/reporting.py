"""What is told of a training run: means of its metrics by name, given to callbacks.

A training record holds loss, one loss and accuracy per output (loss_main, accuracy_main,
loss_stream_1, ...), grad_norm, learning_rate, tokens_per_second and step_seconds; where the devices
tell also mfu (operations of the program per second, over the peak of the chip), memory_gib and
memory_peak_gib. A validation record holds the weighted loss as validation_loss, and the others with
the prefix validation_. Losses are nats per target token, means over the steps since the record
before. Where validation prompts are decoded, the record also holds validation_tokens_per_call and
validation_acceptance_1, _2, ...: decode passes that kept a draft node at that depth, over all
decode passes; and what the task scores outputs by, such as validation_rouge1, in percent. The last
record of a start says where its seconds went (`walltime`).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from ssjax.config import Config
from ssjax.config.measured import PREFIX, VALIDATION_LOSS
from ssjax.data.tasks import get_task
from ssjax.errors import DivergedError, UserError
from ssjax.metrics.quality import require_packages, shown_metrics
from ssjax.parallel import accelerators
from ssjax.training.callbacks import Callback, StopTraining
from ssjax.training.decoded import Decoded
from ssjax.training.losses import LossSums, output_names
from ssjax.training.optimizer import make_schedule
from ssjax.training.step import StepMetrics
from ssjax.training.walltime import WallTime


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
    """Collects step metrics, refuses those that are not finite, and calls the callbacks.

    Every process of a run has one; of all but the first it has no callbacks.

    Args:
      callbacks: called in this order, ended in the reverse one.
      num_steps: of the whole run.
      log_every: steps per record; 0: one at the end.
      schedule: learning rate by step.
      names: of the outputs, from `losses.output_names`.
      wall: begun with the run.
      peak_flops: operations per second of a device at most; None: not known.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        *,
        num_steps: int,
        log_every: int,
        schedule: Callable[[int], float],
        names: Sequence[str],
        wall: WallTime,
        peak_flops: float | None = None,
    ):
        self.wall = wall
        self._peak_flops = peak_flops
        self.stop_requested = False  # by a callback
        self._ended_early = False
        self._callbacks = tuple(callbacks)
        self._num_steps = num_steps
        self._log_every = log_every
        self._schedule = schedule
        self._names = names
        self._step = 0
        self._restart()

    @contextlib.contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Starts the callbacks, and ends them when the block ends.

        Args:
          step: updates applied so far.
        """
        self._step = step
        complete = False

        def end(callback):
            with contextlib.suppress(StopTraining):
                callback.on_end(complete)

        with contextlib.ExitStack() as started:
            for callback in self._callbacks:
                with self._asking():
                    callback.on_start(step, self._num_steps)
                started.callback(end, callback)
            self._restart()
            self.wall.begin()
            yield
            complete = self._step == self._num_steps or self._ended_early

    def end_early(self) -> None:
        """Takes note that the run is complete before its last step."""
        self._ended_early = True

    def add_step(
        self, step: int, metrics: StepMetrics, num_tokens: int, flops: float = 0.0
    ) -> None:
        """Takes the metrics of one step, on the host.

        Args:
          step: updates applied, this one included.
          metrics: of this step.
          num_tokens: prompt and target tokens of its batch.
          flops: operations of one device in it.

        Raises:
          DivergedError: the loss or the gradient is not finite.
        """
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            found = f"loss {loss}, gradient norm {grad_norm}"
            raise DivergedError(_cannot_begin(found) if step == 1 else _diverged(step, found))
        self._step = step
        self._sums = [
            total + np.asarray(value, np.float64)
            for total, value in zip(self._sums, _fields(metrics.sums), strict=True)
        ]
        self._losses.append(loss)
        self._num_tokens += num_tokens
        self._flops += flops
        self._seconds += self.wall.end_step()
        rate = self._num_tokens / max(self._seconds, 1e-9)
        self._tell(lambda callback: callback.on_progress(step, loss, rate))
        regular = self._log_every and step % self._log_every == 0
        if regular or step == self._num_steps:
            record = {
                "loss": float(np.mean(self._losses)),
                **loss_record(LossSums(*self._sums), self._names),
                "grad_norm": grad_norm,
                "learning_rate": float(self._schedule(step - 1)),
                "tokens_per_second": rate,
                "step_seconds": self._seconds / len(self._losses),
                **self._of_devices(),
            }
            self._tell(lambda callback: callback.on_step(step, record))
            self._restart()

    def add_validation(
        self, step: int, loss: float, sums: LossSums, decoded: Decoded | None = None
    ) -> dict[str, float]:
        """Takes the validation loss: the weighted one, and each output's own; returns the record.

        Args:
          step: updates applied.
          loss: that was minimised, on the validation batches.
          sums: of these batches, on the host.
          decoded: validation prompts; None: they were not.

        Raises:
          DivergedError: the loss is not finite.
        """
        if not math.isfinite(loss):  # the step's own loss was: its update is to blame
            raise DivergedError(_diverged(step, f"validation loss {loss}"))
        record = {VALIDATION_LOSS: loss} | loss_record(sums, self._names, PREFIX)
        record |= {} if decoded is None else decoded.record()
        self._tell(lambda callback: callback.on_evaluation(step, record))
        return record

    def add_summary(self) -> None:
        """Tells where the seconds went, at the end."""
        record = self.wall.summary()
        self._tell(lambda callback: callback.on_summary(self._step, record))

    def add_saving(self, step: int) -> None:
        """Takes note of a checkpoint that is about to be written."""
        self._tell(lambda callback: callback.on_saving(step))

    def add_checkpoint(self, step: int) -> None:
        """Takes note of a checkpoint that is whole on disk."""
        self._tell(lambda callback: callback.on_checkpoint(step))

    def _tell(self, call: Callable[[Callback], None]) -> None:
        for callback in self._callbacks:
            with self._asking():
                call(callback)

    @contextlib.contextmanager
    def _asking(self):
        try:
            yield
        except StopTraining:
            self.stop_requested = True

    def _restart(self):
        self._sums = [np.float64(0.0)] * 4
        self._losses = []
        self._num_tokens = 0
        self._flops = self._seconds = 0.0

    def _of_devices(self) -> dict[str, float]:
        """How busy and how full they are, where that is known."""
        if not (self._peak_flops and self._flops):
            return accelerators.memory()
        rate = self._flops / max(self._seconds, 1e-9)
        return {"mfu": rate / self._peak_flops, **accelerators.memory()}


def make_reporter(
    config: Config, callbacks: Sequence[Callback], wall: WallTime, devices: Sequence[jax.Device]
) -> Reporter:
    """The reporter of a run from its config.

    Args:
      config: resolved.
      callbacks: of the run.
      wall: begun with it.
      devices: that it runs on.
    """
    num_steps = config.train.num_steps
    return Reporter(
        callbacks,
        num_steps=num_steps,
        log_every=config.train.log_every,
        schedule=make_schedule(config.optimizer, num_steps),
        names=output_names(config.streams),
        wall=wall,
        peak_flops=accelerators.peak_flops(devices),
    )


def check_measured(config: Config) -> None:
    """Checks that validations of a run can score, and what its best checkpoint is judged by.

    Raises:
      UserError: they cannot, or do not measure that; names what they measure.
    """
    of_task = get_task(config.data.task).metrics
    metrics = config.eval.metrics or of_task
    if "sql" in metrics and "sql" not in of_task:
        raise UserError(
            f"config: eval.metrics sql runs outputs on the tables of a record, and the records of "
            f"{config.data.task} have none"
        )
    names, best_by = output_names(config.streams), config.checkpoint.best_by
    known = [VALIDATION_LOSS, *loss_record(LossSums.zeros(len(names)), names, PREFIX)]
    if config.train.eval_prompts and config.streams.num_ahead:
        # A draft is as deep as there are streams, or as a chain of all its nodes.
        decode = config.decode
        depth = max(config.streams.num_ahead, decode.num_nodes, decode.lookup_nodes)
        require_packages(metrics)
        scores = dict.fromkeys(shown_metrics(metrics), 0.0)
        known += Decoded(1.0, (0.0,) * depth, scores).record()
    if best_by not in known:
        raise UserError(
            f"config: checkpoint.best_by {best_by} is not measured by the validations of this run, "
            f"which measure {', '.join(known)}"
        )


def _fields(sums: LossSums):
    return sums.cross_entropy, sums.correct, sums.weight, sums.objective


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
