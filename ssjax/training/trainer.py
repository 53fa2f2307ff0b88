"""A training run from its config: the base, the tokenizer and the data opened, a run that was
stopped continued, and the trained model handed over.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ssjax import messages
from ssjax.config import CheckpointConfig, Config
from ssjax.data import distilled
from ssjax.data.choice import choose_tokenizer, open_split
from ssjax.data.tokenizers.tokenizer import open_tokenizer
from ssjax.errors import UserError
from ssjax.files import places
from ssjax.parallel import accelerators, distributed, partitioning
from ssjax.training import draft_vocabulary, epochs, lock, loggers, loop, profiling, reporting
from ssjax.training.batches import measure, open_batches
from ssjax.training.callbacks import Callback
from ssjax.training.claim import about_run, check_workdir, claim_workdir
from ssjax.training.decoded import DecodeValidation
from ssjax.training.description import hardware_lines, line_of_positions, parameter_line
from ssjax.training.display import Display
from ssjax.training.inherit import inherited
from ssjax.training.policy import Patience
from ssjax.training.programs import make_train_programs
from ssjax.training.provenance import line_of_data
from ssjax.training.records import keep_records
from ssjax.training.start import starting_params
from ssjax.training.step import TrainState
from ssjax.training.walltime import WallTime
from ssjax.weights import checkpoint, load, saved_steps
from ssjax.weights.base import Base, open_base, read_base_config, resolve
from ssjax.weights.checkpoint import Checkpoints
from ssjax.weights.load import Trained


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a training came to."""

    trained: Trained  # its weights divided as training does
    mesh: Mesh  # of the same devices, to decode on
    complete: bool  # False: a signal or a callback stopped it, after saving


@contextlib.contextmanager
def held(workdir: Path, flag: str = "--config.workdir") -> Iterator[None]:
    """The directory of a run, locked by the first process for as long as the block lasts.

    Args:
      workdir: the directory.
      flag: that gives another one, for messages.

    Raises:
      UserError: another process writes there.
    """
    with contextlib.ExitStack() as stack:
        distributed.first(lambda: stack.enter_context(lock.hold(workdir, flag)))
        yield


def train(
    config: Config,
    callbacks: Sequence[Callback] = (),
    devices: Sequence[jax.Device] | None = None,
    decode_validation: DecodeValidation | None = None,
) -> Outcome:
    """Trains or continues the run of a config, in a directory that is `held`.

    Args:
      config: of the run, which lives in its workdir.
      callbacks: told of steps, losses and checkpoints besides what is written and shown.
      devices: that it runs on; None: all.
      decode_validation: called at each validation; None: no prompts are decoded.

    Raises:
      UserError: settings, base, data or directory do not go together, or the loss diverged.
    """
    wall = WallTime()
    messages.say_once(accelerators.fallback_line())
    workdir, base = places.of(config.workdir), _open_base(config)
    config = resolve(config, base)
    mesh = partitioning.make_mesh(config.mesh, devices)
    partitioning.check_shardable(config, mesh)
    decode_mesh = partitioning.decode_mesh(config.mesh, config.model, mesh)
    reporting.check_measured(config)
    loggers.require(config.train.loggers, workdir)
    distributed.first(lambda: prepare(workdir, config, base))
    config = epochs.kept(draft_vocabulary.kept(config, workdir), workdir)
    tokenizer = open_tokenizer(workdir)
    model = load.make_model(config, tokenizer)
    _check_longest_sequence(config)
    programs = make_train_programs(config, model, mesh)
    trainable, frozen = starting_params(workdir, config, model, base, mesh)
    if config.init_from and not saved_steps.steps(workdir / "checkpoints"):
        trainable = inherited(config, model, tokenizer, trainable, mesh)
    for line in hardware_lines(config, mesh, decode_mesh):
        messages.say(line)
    messages.say(parameter_line(model, trainable, frozen))
    messages.say_once(line_of_data(config, frozen))
    with jax.set_mesh(mesh):
        state = programs.init(trainable)
    batches, lengths = open_batches(config, tokenizer, mesh)
    messages.say(f"training data: {lengths}")
    messages.say_once(line_of_positions(config.model, lengths.max_kept))
    base_config = read_base_config(workdir)

    def trained(state: TrainState) -> Trained:
        step = int(state.step)
        return Trained(workdir, step, config, tokenizer, state.params, frozen, base_config)

    told = [
        keep_records(workdir),
        *loggers.make_loggers(config, workdir),
        Display(),
        *callbacks,
    ]
    training = loop.Training(
        config=config,
        programs=programs,
        frozen=frozen,
        batches=batches,
        reporter=reporting.make_reporter(
            config, told if distributed.is_first() else [], wall, list(mesh.devices.flat)
        ),
        profile_directory=workdir / "profile",
        tokenizer=tokenizer.files,
        decode=decode_validation and (lambda state: decode_validation(trained(state), decode_mesh)),
    )
    directory, about = workdir / "checkpoints", about_run(config, tokenizer)
    state, saved = _latest(directory, state)
    patience = Patience.continued(config.train.patience, saved)
    with (
        profiling.server(config.train.profiler_port),
        _open_checkpoints(directory, config.checkpoint, about) as checkpoints,
    ):
        state, complete = loop.train(training, state, checkpoints, patience)
    return Outcome(trained(state), decode_mesh, complete)


def _open_base(config: Config) -> Base | None:
    if config.model.pretrained:
        base = open_base(config.model.pretrained, config.model.dtype)
        messages.say(f"base model: {base.title}")
        return base
    if config.adaptation.mode != "full":
        raise UserError(
            f"adaptation.mode {config.adaptation.mode} adapts a base model; give one with "
            "--config.model.pretrained=DIR_OR_HUB_ID"
        )
    return None


def _latest(directory: Path, state: TrainState) -> tuple[TrainState, Mapping[str, int | float]]:
    """The last whole checkpoint in a directory; without one the given state, and nothing more."""
    if (restored := checkpoint.restore(directory, state)) is None:
        return state, {}
    messages.say(f"continuing from step {restored[1]['next_batch']}")
    return restored


def _open_checkpoints(
    directory: Path, kept: CheckpointConfig, about: Mapping[str, Any]
) -> Checkpoints:
    return Checkpoints(
        directory,
        keep_latest=kept.keep_latest,
        keep_every=kept.keep_every,
        keep_best=kept.keep_best,
        best_by=kept.best_by,
        about=about,
    )


def prepare(workdir: Path, config: Config, base: Base | None) -> None:
    """Makes the files of a run that the other processes read: config, tokenizer, prepared data.

    Raises:
      UserError: the directory holds another run, or the data cannot be read.
    """
    config = epochs.kept(draft_vocabulary.kept(config, workdir), workdir)
    check_workdir(workdir, config)
    distilled.check_lengths(config.data)
    for name in ("train", "validation"):
        open_split(config, name)
    directory = None if base is None else base.directory
    tokenizer = choose_tokenizer(workdir, config, directory, messages.say)
    measure(config, tokenizer)
    config = draft_vocabulary.found(config, tokenizer, messages.say)
    config = epochs.found(config, tokenizer, messages.say)
    # What was refused until now may be started again with other settings.
    claim_workdir(workdir, config)
    tokenizer.save(workdir)


def _check_longest_sequence(config: Config) -> None:
    needed = config.data.max_prompt_length + config.data.max_target_length
    longest = config.model.longest_sequence
    if 0 < longest < needed:
        raise UserError(
            f"config: data.max_prompt_length + data.max_target_length is {needed}, but the model "
            f"has positions for {longest}"
        )
