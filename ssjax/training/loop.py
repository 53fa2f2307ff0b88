"""The training loop: next batch, dispatch, look at the step before, validate, save.

The device never waits for Python: a step is dispatched before the metrics of the step
before it are read. Processes of one run save and stop at the same step, see `Vote`. Nothing random
is kept: weights come from the seed, batch i is a function of (seed, i). So a run that is
stopped and started again ends with the same weights, bit for bit.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ssjax import config as config_lib
from ssjax.config import Config
from ssjax.messages import say
from ssjax.models.parameters import Params
from ssjax.parallel import distributed
from ssjax.parallel.partitioning import global_batch
from ssjax.training.batches import Arrays, Batches
from ssjax.training.compiled import CompiledSteps, Step
from ssjax.training.decoded import Decoded
from ssjax.training.interruption import Interruption, Vote, Wish
from ssjax.training.losses import Batch, loss_weights, weighted_loss
from ssjax.training.policy import Patience, SaveClock, is_due, is_saved_by_steps
from ssjax.training.profiling import Profile
from ssjax.training.programs import TrainPrograms
from ssjax.training.reporting import Reporter
from ssjax.training.step import StepMetrics, TrainState
from ssjax.weights.checkpoint import Checkpoints
from ssjax.weights.saved_steps import merit


@dataclasses.dataclass(frozen=True)
class Training:
    """All that a run keeps from its first step to its last; what steps change is `TrainState`."""

    config: Config
    programs: TrainPrograms
    frozen: Params  # weights that are not trained
    batches: Batches
    reporter: Reporter  # told of every step, loss and checkpoint
    profile_directory: Path  # for the trace of config.train.profile_at
    tokenizer: dict[str, bytes]  # its files, stored with every checkpoint
    # Decodes the validation prompts with the weights of a state, by all processes; None: nothing.
    decode: Callable[[TrainState], Decoded | None] | None = None


def train(
    training: Training, state: TrainState, checkpoints: Checkpoints, patience: Patience
) -> tuple[TrainState, bool]:
    """Trains from state.step to the end, or until a signal or a callback asks to stop.

    Args:
      training: of a run.
      state: initial or restored; donated.
      checkpoints: of the run, written on the way.
      patience: at its beginning, or as it was saved with the state.

    Returns:
      The last state, saved, and whether training is complete: all steps made, or patience at its
      end.

    Raises:
      DivergedError: the loss or the gradient is not finite; that state is not saved.
    """
    config, reporter = training.config, training.reporter
    start, num_steps = int(state.step), config.train.num_steps
    late, saving = _LateReport(reporter), _Saving(training, checkpoints, start, patience)
    steps = CompiledSteps(training.programs)
    vote = Vote(training.programs.mesh)
    profile = Profile(
        training.profile_directory, config.train.profile_at, config.train.profile_steps
    )
    batches = training.batches.start_at(start)
    with (
        reporter.running(start),
        contextlib.closing(batches),
        Interruption(say) as interruption,
    ):
        for step in range(start + 1, num_steps + 1):
            if saving.ends_early(step - 1):
                break
            batch = _batch(training, arrays := next(batches))
            program = steps.find(batch) or _compile(training, steps, late, (state, batch))
            profile.before_step(step)
            with jax.set_mesh(training.programs.mesh):
                state, metrics = program.run(state, training.frozen, batch)
            num_tokens = _num_tokens(arrays, config.data.batch_size)
            late.report_and_take(step, metrics, num_tokens, program.flops)
            profile.after_step(step, metrics)

            last = step == num_steps
            stops = interruption.requested or reporter.stop_requested
            wish = vote.decide(Wish.STOP if stops else saving.wish())
            stop = wish is Wish.STOP and not last
            validate = last or is_due(step, config.train.eval_every)
            save = last or wish is not Wish.GO_ON or is_saved_by_steps(config.checkpoint, step)
            if not (validate or save):
                continue
            late.report()
            measured = None
            if validate:
                with reporter.wall.spent_on("validation"):
                    measured = _validate(training, state, step)
            if saving.is_wanted(measured) or save:
                saving.save(state, step, measured)
            if stop:
                break
        saving.finish()
        if len(steps):
            reporter.add_summary()
    return state, saving.step == num_steps or saving.has_ended


class _LateReport:
    """Metrics of the last step: downloaded when the step after it is under way."""

    def __init__(self, reporter: Reporter):
        self._reporter = reporter
        self._taken = None

    def report_and_take(
        self, step: int, metrics: StepMetrics, num_tokens: int, flops: float
    ) -> None:
        self.report()
        self._taken = (step, metrics, num_tokens, flops)

    def report(self) -> None:
        if self._taken is not None:
            self._reporter.add_step(*jax.device_get(self._taken))
            self._taken = None


class _Saving:
    """Saves in the background; a checkpoint is told of when it is known to be whole."""

    def __init__(
        self, training: Training, checkpoints: Checkpoints, start: int, patience: Patience
    ):
        self._training, self._checkpoints, self._patience = training, checkpoints, patience
        # Of several processes the first one's clock counts.
        minutes = training.config.checkpoint.save_minutes if distributed.is_first() else 0
        self._clock = SaveClock(minutes)
        self._config_values = config_lib.to_dict(training.config)
        # What was saved last, None: nothing of this run.
        self.step = start if checkpoints.latest_step == start else None
        self._under_way = None

    @property
    def has_ended(self) -> bool:
        return self._patience.has_ended

    def ends_early(self, step: int) -> bool:
        """Whether no step is to follow this one; says and reports it."""
        if self.has_ended:
            self._training.reporter.end_early()
            say(
                f"the run ends at step {step}: {self._training.config.checkpoint.best_by} was no "
                f"better in the last validations, {self._patience.waited} in a row (train.patience)"
            )
        return self.has_ended

    def wish(self) -> Wish:
        """Of this process, by its clock."""
        return Wish.SAVE if self._clock.rings() else Wish.GO_ON

    def is_wanted(self, measured: dict[str, float] | None) -> bool:
        """Takes note of a validation; whether the state that it measured is to be saved for it."""
        if measured is None:
            return False
        best_by = self._training.config.checkpoint.best_by
        self._patience = self._patience.after(merit(measured, best_by))
        return self.has_ended or self._checkpoints.is_among_best(measured)

    def save(self, state: TrainState, step: int, measured: dict[str, float] | None) -> None:
        self.finish()
        self._clock.restart()
        self._training.reporter.add_saving(step)
        position = {"seed": self._training.config.seed, "next_batch": step}
        with self._training.reporter.wall.spent_on("saves"):
            self._checkpoints.save(
                state,
                data=position | self._patience.to_save(),
                config=self._config_values,
                tokenizer=self._training.tokenizer,
                measured=measured,
            )
        self.step = self._under_way = step

    def finish(self) -> None:
        with self._training.reporter.wall.spent_on("saves"):
            self._checkpoints.wait()
        if self._under_way is not None:
            self._training.reporter.add_checkpoint(self._under_way)
            self._under_way = None


def _batch(training: Training, arrays: Arrays) -> Batch:
    """The batch on the devices, of which this process has read some rows."""
    data, mesh = training.config.data, training.programs.mesh
    with jax.set_mesh(mesh):
        return global_batch(Batch(**arrays, packed=data.packing), mesh, data.batch_size)


def _compile(training: Training, steps: CompiledSteps, late: _LateReport, state_and_batch) -> Step:
    """The step for rows of another width; the one before it has ended first, in its own time."""
    state, batch = state_and_batch
    late.report()
    with (
        training.reporter.wall.spent_on("compile"),
        jax.set_mesh(training.programs.mesh),
    ):
        return steps.compile(state, training.frozen, batch)


def _num_tokens(arrays: Arrays, batch_size: int) -> int:
    """Tokens of the whole batch, as far as the rows of this process tell."""
    segments = arrays["segments"]
    return int(np.count_nonzero(segments)) * batch_size // len(segments)


def _validate(training: Training, state: TrainState, step: int) -> dict[str, float]:
    """The validation record: the loss that is minimised and those of the outputs, on the validation
    batches, and what the validation prompts say, where they are decoded.

    The state is read, not donated: the next step, which donates it, is dispatched later.
    """
    config, programs = training.config, training.programs
    sums = None
    for arrays in training.batches.validation:
        with jax.set_mesh(programs.mesh):
            batch = global_batch(Batch(**arrays), programs.mesh, config.data.batch_size)
            added = programs.evaluate(state.params, training.frozen, batch)
        sums = added if sums is None else jax.tree.map(jax.numpy.add, sums, added)
    alphas = loss_weights(config.loss, config.streams)
    loss = float(weighted_loss(sums, alphas, sums.weight))
    # A loss that is not finite ends the run; nothing can be decoded with such weights.
    decodes = training.decode is not None and math.isfinite(loss)
    decoded = training.decode(state) if decodes else None
    return training.reporter.add_validation(step, loss, jax.device_get(sums), decoded)
