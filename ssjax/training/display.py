"""What a training run shows on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from ssjax.config.measured import PREFIX, TOKENS_PER_CALL
from ssjax.messages import say
from ssjax.metrics.quality import LABELS
from ssjax.training.callbacks import Callback


class Display(Callback):
    """Shows how far training is, its losses and its speed.

    While a bar is shown, rich puts what is printed on stderr above it.
    """

    def __init__(self):
        self._bar = None

    def on_start(self, step: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self._restart(step)
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=num_steps, completed=step, state="")
            self._bar.start()

    def on_progress(self, step: int, loss: float, tokens_per_second: float) -> None:
        if self._bar:
            state = f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"
            self._bar.update(self._task, completed=step, state=state)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self._bar:
            seconds = time.perf_counter() - self._since
            left = (self._num_steps - step) * seconds / (step - self._step)
            say(
                f"step {step}/{self._num_steps}: loss {metrics['loss']:.3f}, top-1 accuracy "
                f"{_accuracies(metrics, '')}, {metrics['step_seconds']:.3g} s a step, "
                f"{metrics['tokens_per_second']:,.0f} tokens/s{_of_devices(metrics)}, "
                f"{left:.0f} s left"
            )
        self._restart(step)

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        say(
            f"step {step}: validation loss {metrics['validation_loss']:.4f}, top-1 accuracy "
            + _accuracies(metrics, "validation_")
            + _drafts(metrics)
        )

    def on_summary(self, step: int, metrics: Mapping[str, float]) -> None:
        parts = {k.removeprefix("seconds_"): v for k, v in metrics.items() if k != "goodput"}
        spent = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in parts.items())
        say(f"goodput {100 * metrics['goodput']:.0f} %: {spent}")

    def on_end(self, complete: bool) -> None:
        if self._bar:
            self._bar.stop()

    def _restart(self, step):
        self._step, self._since = step, time.perf_counter()


def _accuracies(metrics, prefix):
    """Top-1 accuracy of the main stream and of each stream, as in "0.71 | 0.52 0.40"."""
    values = [f"{v:.2f}" for k, v in metrics.items() if k.startswith(f"{prefix}accuracy_")]
    return " | ".join([values[0], " ".join(values[1:])]) if len(values) > 1 else values[0]


def _of_devices(metrics):
    """As far as they tell, as in ", MFU 41.0 %, 11.2 GiB (peak 13.9)"."""
    busy = f", MFU {100 * metrics['mfu']:.1f} %" if "mfu" in metrics else ""
    if "memory_gib" not in metrics:
        return busy
    return f"{busy}, {metrics['memory_gib']:.1f} GiB (peak {metrics['memory_peak_gib']:.1f})"


def _drafts(metrics):
    """Of the prompts that were decoded, as in ", 2.53 tokens per call, acceptance 0.81 0.46"."""
    if TOKENS_PER_CALL not in metrics:
        return ""
    shares = [f"{v:.2f}" for k, v in metrics.items() if k.startswith("validation_acceptance_")]
    scores = "".join(
        f", {label} {metrics[PREFIX + name]:.1f}"
        for name, label in LABELS.items()
        if PREFIX + name in metrics
    )
    return (
        f", {metrics[TOKENS_PER_CALL]:.2f} tokens per call, acceptance {' '.join(shares)}{scores}"
    )
