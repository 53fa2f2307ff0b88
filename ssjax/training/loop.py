"""The training loop: next batch, dispatch, look at the step before, validate, save.

The device never waits for Python: a step is dispatched before the metrics of the step
before it are read. Processes of one run stop at the same step, see `StopVote`. Nothing random
is kept: weights come from the seed, batch i is a function of (seed, i). So a run that is
stopped and started again ends with the same weights, bit for bit.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from ssjax.config import Config
from ssjax.messages import say
from ssjax.models.parameters import Params
from ssjax.parallel.partitioning import global_batch
from ssjax.training.interruption import Interruption, StopVote
from ssjax.training.losses import Batch, loss_weights, weighted_loss
from ssjax.training.profiling import Profile
from ssjax.training.reporting import Reporter
from ssjax.training.step import TrainState
from ssjax.weights.checkpoint import Checkpoints


class Steps(Protocol):
    """The two step functions, jitted by the entry point, and the mesh that they run on."""

    mesh: Mesh
    train: Callable  # (state, frozen, batch) -> (state, metrics); donates the state
    evaluate: Callable  # (params, frozen, batch) -> LossSums


def train(
    config: Config,
    steps: Steps,
    state: TrainState,
    frozen: Params,
    *,
    open_batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    validation_batches: Sequence[dict[str, np.ndarray]],
    checkpoints: Checkpoints,
    reporter: Reporter,
    profile_directory: Path,
    tokenizer: dict[str, bytes],
    config_values: dict,
) -> tuple[TrainState, bool]:
    """Trains from state.step to the end, or until a signal or a callback asks to stop.

    Args:
      config: of the run.
      steps: compiled step functions.
      state: initial or restored; donated.
      frozen: weights that are not trained.
      open_batches: batches from the given index on, the rows of this process.
      validation_batches: for the validation loss.
      checkpoints: written on the way.
      reporter: told of every step, loss and checkpoint.
      profile_directory: for the trace of config.train.profile_at.
      tokenizer, config_values: stored with every checkpoint.

    Returns:
      The last state, saved, and whether training is complete.

    Raises:
      DivergedError: the loss or the gradient is not finite; that state is not saved.
    """
    num_steps = config.train.num_steps
    start = int(state.step)
    saved_step = start if checkpoints.latest_step == start else None
    pending = unconfirmed = None

    def report_pending():
        nonlocal pending
        if pending is not None:
            reporter.add_step(*jax.device_get(pending))
            pending = None

    def wait_for_checkpoint():
        nonlocal unconfirmed
        checkpoints.wait()
        if unconfirmed is not None:
            reporter.add_checkpoint(unconfirmed)
            unconfirmed = None

    batches = open_batches(start)
    vote = StopVote(steps.mesh)
    profile = Profile(profile_directory, config.train.profile_at, config.train.profile_steps)
    with (
        reporter.running(start),
        contextlib.closing(batches),
        Interruption(say) as interruption,
    ):
        for step in range(start + 1, num_steps + 1):
            arrays = next(batches)
            profile.before_step(step)
            with jax.set_mesh(steps.mesh):
                batch = Batch(**arrays, packed=config.data.packing)
                batch = global_batch(batch, steps.mesh, config.data.batch_size)
                state, metrics = steps.train(state, frozen, batch)
            report_pending()
            pending = (step, metrics, _num_tokens(arrays, config.data.batch_size))
            profile.after_step(step, metrics)

            last = step == num_steps
            validate_every = config.train.eval_every
            validate = last or (validate_every and step % validate_every == 0)
            asked = interruption.requested or reporter.stop_requested
            stop = vote.decide(asked) and not last
            save_every = config.checkpoint.save_every
            if not (validate or stop or (save_every and step % save_every == 0)):
                continue
            report_pending()
            validation_loss = None
            if validate:
                validation_loss = _validate(
                    config, steps, state, frozen, validation_batches, reporter, step
                )
            wait_for_checkpoint()
            checkpoints.save(
                state,
                data={"seed": config.seed, "next_batch": step},
                config=config_values,
                tokenizer=tokenizer,
                validation_loss=validation_loss,
            )
            saved_step = unconfirmed = step
            if stop:
                break
        wait_for_checkpoint()
    return state, saved_step == num_steps


def _num_tokens(arrays, batch_size) -> int:
    """Tokens of the whole batch, as far as the rows of this process tell."""
    segments = arrays["segments"]
    return int(np.count_nonzero(segments)) * batch_size // len(segments)


def _validate(config, steps, state, frozen, batches, reporter, step) -> float:
    """The loss that is minimised, on the validation batches: what the best checkpoint has least."""
    sums = None
    for arrays in batches:
        with jax.set_mesh(steps.mesh):
            batch = global_batch(Batch(**arrays), steps.mesh, config.data.batch_size)
            added = steps.evaluate(state.params, frozen, batch)
        sums = added if sums is None else jax.tree.map(jax.numpy.add, sums, added)
    alphas = loss_weights(config.loss, config.streams)
    loss = float(weighted_loss(sums, alphas, sums.weight))
    reporter.add_validation(step, loss, jax.device_get(sums))
    return loss
