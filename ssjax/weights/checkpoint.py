"""Checkpoints of a training run. The only module that calls Orbax.

A checkpoint holds the train state (trainable leaves, optimizer, step), the position in the
data, the resolved config and the tokenizer, so it can be read without the rest of the run
directory, and a list of its files with their digests (`manifest`). It is written in the background
and becomes visible in one rename, in a bucket by one object that is put last: a process that is
killed while saving leaves the previous checkpoint as the latest.

Nothing is read from a checkpoint before its files are known to be as they were written. Decoding
then says what is damaged and what is whole; a training goes on from the last that is whole.

Where the weights of a run come from, in this order: (1) the latest whole checkpoint in its own
directory, (2) random initialisation.
"""

import atexit
import contextlib
import itertools
import math
import os
import queue
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ssjax.errors import DamagedError, StorageError, UserError
from ssjax.files import manifest, places
from ssjax.files.writing import make_directory, storage_error
from ssjax.messages import say, say_once
from ssjax.models.parameters import Params, flatten
from ssjax.parallel import distributed
from ssjax.weights.orbax_errors import hush, logged, reason
from ssjax.weights.saved_steps import (
    COMMITTED,
    damage_error,
    is_committed,
    merit,
    metrics_damage,
    steps,
)

Read = TypeVar("Read")


class State(Protocol):
    """What training changes: a tree of arrays that knows how many steps made it."""

    step: jax.Array  # [] int32


class Checkpoints:
    """The checkpoints of one run, for writing. A context manager.

    Args:
      directory: made if missing. Call `restore` first: this class does not look at what is there.
      keep_latest: newest checkpoints that are kept.
      keep_every: checkpoints of every multiple of it are kept too; 0: none for that.
      keep_best: the best checkpoints that are kept besides.
      best_by: the measured value that makes them the best, see `saved_steps.merit`.
      about: plain values that every checkpoint carries: what `read_about` gives.

    Raises:
      UserError: the directory cannot be made or written to.
      DamagedError: what is there cannot be opened.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_latest: int,
        keep_every: int,
        keep_best: int,
        best_by: str,
        about: Mapping[str, Any],
    ):
        hush()
        policies = ocp.training.preservation_policies
        context = ocp.Context()
        # Called when all files are written, before the commit. A function, since Orbax makes deep
        # copies of its settings, and of a method's object with it.
        context.asynchronous.post_finalization_callback = lambda: self._write_manifest()
        self._directory = directory
        self._about = dict(about)
        self._keep_best, self._best_by = keep_best, best_by
        self._step = None  # that is saved, or was last
        self._failed = False
        self._logged = 0  # failures before this save
        preserved = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep_latest),
                *([policies.EveryNSteps(keep_every)] if keep_every else []),
                policies.BestN(
                    get_metric_fn=lambda measured: merit(measured, best_by),
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        make_directory(directory)
        try:
            self._checkpointer = ocp.training.Checkpointer(
                _address(directory),
                context=context,
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=preserved,
                cleanup_tmp_directories=True,
            )
        except Exception as error:
            raise DamagedError(f"{directory} cannot be opened ({reason(error)})") from None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self._failed or kind is KeyboardInterrupt:
            return  # it would be raised once more; whoever interrupts twice does not wait
        try:
            self._call(self._checkpointer.close)
        except Exception as error:
            failure = self._not_saved(error)
            if kind is None:
                raise failure from None
            say(str(failure))  # beside the exception that is under way

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None before the first."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def is_among_best(self, measured: Mapping[str, float]) -> bool:
        """Whether a checkpoint that a validation has measured so would be kept as one of the best.

        One that is as good as those that are there is not: the earlier stays.
        """
        own = merit(measured, self._best_by)
        others = (c.metrics for c in self._checkpointer.checkpoints)
        as_good = [found for found in others if found and merit(found, self._best_by) >= own]
        return own > -math.inf and len(as_good) < self._keep_best

    def save(
        self,
        state: State,
        *,
        data: dict[str, int | float],
        config: dict[str, Any],
        tokenizer: dict[str, bytes],
        measured: Mapping[str, float] | None,
    ) -> None:
        """Starts to save in the background; waits for a save that is still under way.

        Args:
          state: may be donated as soon as this returns.
          data: position in the data, and how validations went; plain numbers.
          config: the resolved config, plain values.
          tokenizer: its files by name.
          measured: by the validation at this step, by name; None: there was none.

        Raises:
          UserError: this save or the one before failed; what was saved earlier is as it was.
        """
        self.wait()
        self._step, self._logged = int(state.step), len(logged)
        try:
            self._checkpointer.save_checkpointables_async(
                self._step,
                {
                    "state": state,
                    "data": data,
                    "config": config,
                    "tokenizer": {k: np.frombuffer(v, np.uint8) for k, v in tokenizer.items()},
                },
                metrics=None if measured is None else dict(measured),
            )
        except Exception as error:
            raise self._not_saved(error) from None

    def wait(self) -> None:
        """Blocks until every save is complete on disk.

        Raises:
          UserError: one failed.
        """
        try:
            self._call(self._checkpointer.wait)
        except Exception as error:
            raise self._not_saved(error) from None

    def _call(self, wait: Callable[[], None]):
        """Calls what waits for the background, until that has failed.

        Of several processes, the thread that failed waits for the others first, and they for it:
        for 20 minutes.
        """
        if jax.process_count() == 1:
            return wait()
        ended = queue.SimpleQueue()

        def run():
            try:
                wait()
                ended.put(None)
            except Exception as error:
                ended.put(error)

        threading.Thread(target=run, daemon=True).start()
        while True:
            with contextlib.suppress(queue.Empty):
                if (error := ended.get(timeout=0.5)) is None:
                    return None
                raise error
            if len(logged) > self._logged:
                raise logged[-1]

    def _write_manifest(self):
        [directory] = self._unfinished()
        manifest.write(directory, self._about)

    def _unfinished(self):
        if places.is_bucket(self._directory):  # written in place
            path = self._directory / str(self._step)
            return [] if is_committed(path) else [path]
        return list(self._directory.glob(f"{self._step}.orbax-checkpoint-tmp*"))

    def _remove_unfinished(self):
        for directory in self._unfinished():
            if places.is_bucket(directory):
                with contextlib.suppress(UserError):
                    places.remove_tree(directory)
            else:
                shutil.rmtree(directory, ignore_errors=True)  # what is there may fill the disk

    def _not_saved(self, error: Exception) -> UserError:
        self._failed = True
        if distributed.is_first():
            self._remove_unfinished()
            # Other writers of the save may be under way yet and make it anew; Python waits for
            # them before it does this.
            atexit.register(self._remove_unfinished)
        saved = [str(step) for step in steps(self._directory) if step != self._step]
        why = reason(error)
        passing = places.is_bucket(self._directory) and places.is_passing(error)
        kind = StorageError if passing or isinstance(error, TimeoutError) else storage_error(why)
        return kind(
            f"checkpoint {self._directory / str(self._step)} could not be saved ({why}); "
            f"earlier ones are as they were: {', '.join(saved) or 'none'}; make room or mend the "
            "place, and run the same command to go on from there"
        )


def restore(directory: Path, state: State) -> tuple[State, dict[str, int | float]] | None:
    """Reads the latest whole checkpoint; to be called by all processes, before `Checkpoints`.

    Damaged ones that are newer are named on stderr and set aside, as STEP.damaged, in a bucket
    removed: the steps are trained again.

    Args:
      directory: of the checkpoints.
      state: arrays, or shape structs that carry shardings.

    Returns:
      The train state and what was saved as `data`; None if nothing was ever saved.

    Raises:
      DamagedError: there are checkpoints, but none is whole.
      UserError: the checkpoint is whole, but of another model.
    """
    damaged = {}
    restored = None
    left = steps(directory)
    while left and restored is None:
        step = left.pop()
        try:
            restored = _read(
                directory / str(step),
                lambda path: ocp.load_checkpointables(
                    path, {"state": _abstract(state), "data": None}
                ),
                partial=False,
            )
        except DamagedError as error:
            damaged[step] = str(error)
    if damaged and restored is None:
        raise DamagedError(
            f"no checkpoint in {directory} is whole: {'; '.join(damaged.values())}; put a copy "
            "back, or remove that directory to train from the start"
        )
    # Orbax looks at the metrics of all when it opens the directory.
    damaged |= {step: problem for step in left if (problem := _damage_of_older(directory, step))}
    distributed.first(lambda: _set_aside(directory, damaged))
    return restored and (restored["state"], restored["data"])


def read_about(directory: Path) -> dict[str, Any] | None:
    """What the newest checkpoint that can be read says about its run.

    None: there is no checkpoint, or they were written by a version that kept nothing.
    """
    found = (manifest.about(directory / str(step)) for step in reversed(steps(directory)))
    return next((about for about in found if about is not None), None)


def load_params(directory: Path, step: int, params: Params) -> Params:
    """Reads only the parameters of a checkpoint.

    Args:
      directory: of the checkpoints.
      step: a saved step.
      params: arrays, or shape structs that carry shardings.

    Raises:
      DamagedError: the checkpoint is not as it was written; says which others are whole.
      UserError: it does not hold these parameters.
    """
    try:
        return _read(
            directory / str(step),
            lambda path: ocp.load(path, {"params": _abstract(params)}, checkpointable_name="state")[
                "params"
            ],
        )
    except DamagedError as error:
        raise damage_error(directory, step, str(error)) from None


def save_model(path: Path, params: Params) -> None:
    """Writes parameters alone; the directory appears when it is complete.

    Raises:
      UserError: they cannot be written.
    """
    hush()
    try:
        ocp.save(_address(path), params)
    except Exception as error:
        why = reason(error)
        raise storage_error(why)(f"cannot write {path} ({why})") from None
    manifest.write(path, {})


def load_model(path: Path, params: Params) -> Params:
    """Reads what `save_model` wrote, or part of it.

    Args:
      path: as given to `save_model`.
      params: the leaves wanted, arrays or shape structs that carry shardings.

    Raises:
      DamagedError: it is not as it was written.
      UserError: they are not there in this shape.
    """
    return _read(path, lambda absolute: ocp.load(absolute, _abstract(params)))


def _read(path: Path, load: Callable[[Path], Read], *, partial: bool = True) -> Read:
    """What Orbax makes of a directory whose files are as they were written."""
    problem = manifest.damage(path, part=jax.process_index(), num_parts=jax.process_count())
    problem = next(filter(None, distributed.gather(problem)), "")
    if problem:
        raise DamagedError(f"{path} is damaged: {problem}")
    listed = manifest.exists(path)
    if not listed:
        say_once(f"{path} was written by an older version: its files cannot be checked")
    hush()
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    try:
        with context:
            return load(_address(path))
    except Exception as error:
        if places.is_bucket(path) and places.is_passing(error):
            raise StorageError(f"{path} cannot be read now ({reason(error)})") from None
        if listed:
            raise UserError(f"{path} does not hold this model ({reason(error)})") from None
        raise DamagedError(f"{path} cannot be read as this model ({reason(error)})") from None


def _damage_of_older(directory: Path, step: int) -> str:
    """What is wrong with a checkpoint that nothing is read from now."""
    if not places.is_bucket(directory):
        return metrics_damage(directory, step)
    # Removed object by object when it was too old, which a kill may have cut short.
    problem = manifest.damage(directory / str(step))
    return problem and f"{directory / str(step)} is damaged: {problem}"


def _set_aside(directory: Path, damaged: Mapping[int, str]) -> None:
    for step, problem in sorted(damaged.items()):
        path = directory / str(step)
        if places.is_bucket(path):  # which renames nothing
            places.remove_tree(path, first=COMMITTED)
            say(f"{problem}; it is removed")
            continue
        names = (f"{step}.damaged{number or ''}" for number in itertools.count())
        aside = next(p for name in names if not (p := directory / name).exists())
        try:
            path.rename(aside)
        except OSError as error:
            raise UserError(f"{problem}, and cannot be set aside: {error.strerror}") from None
        say(f"{problem}; it is set aside as {aside.name}")


def stored_names(path: Path) -> set[str]:
    """Names of the leaves that `save_model` wrote there, as of `parameters.flatten`."""
    return set(flatten(ocp.metadata(_address(path)).metadata))


def _address(path: Path) -> str | Path:
    """As Orbax takes it. Raises: UserError: a kind of bucket that it does not know."""
    if not places.is_bucket(path):
        return path.absolute()
    address = os.fspath(path)
    if not address.startswith("gs://"):
        raise UserError(f"{path}: arrays are kept on disks and in gs:// alone; give one of these")
    return address


def _abstract(tree):
    def describe(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(describe, tree)
