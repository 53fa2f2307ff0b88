"""Checkpoints of a training run. The only module that calls Orbax.

A checkpoint holds the train state (trainable leaves, optimizer, step), the position in the
data, the resolved config and the tokenizer, so it can be read without the rest of the run
directory. It is written in the background and becomes visible in one rename: a process that
is killed while saving leaves the checkpoint before as the latest.

Where the weights of a run come from, in this order: (1) the latest checkpoint in its own
directory, (2) random initialisation.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ssjax.errors import UserError
from ssjax.models.parameters import Params, flatten
from ssjax.training.step import TrainState

_BEST_METRIC = "validation_loss"


class Checkpoints:
    """The checkpoints of one run, for writing and resuming. A context manager.

    Args:
      directory: made if missing.
      keep_latest: newest checkpoints that are kept.
      keep_best: checkpoints with the lowest validation loss that are kept besides.
    """

    def __init__(self, directory: Path, *, keep_latest: int, keep_best: int):
        policies = ocp.training.preservation_policies
        self._directory = directory
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep_latest),
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics[_BEST_METRIC],
                        reverse=True,
                        n=keep_best,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None before the first."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(
        self,
        state: TrainState,
        *,
        data: dict[str, int],
        config: dict[str, Any],
        tokenizer: dict[str, bytes],
        validation_loss: float | None,
    ) -> None:
        """Starts to save in the background; waits for a save that is still under way.

        Args:
          state: may be donated as soon as this returns.
          data: position in the data, plain numbers.
          config: the resolved config, plain values.
          tokenizer: its files by name.
          validation_loss: at this step, None where it was not measured.
        """
        self._checkpointer.save_checkpointables_async(
            int(state.step),
            {
                "state": state,
                "data": data,
                "config": config,
                "tokenizer": {k: np.frombuffer(v, np.uint8) for k, v in tokenizer.items()},
            },
            metrics=None if validation_loss is None else {_BEST_METRIC: validation_loss},
        )

    def wait(self) -> None:
        """Blocks until every save is complete on disk."""
        self._checkpointer.wait()

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, int]]:
        """Reads the latest checkpoint.

        Args:
          state: arrays, or shape structs that carry shardings.

        Returns:
          The train state and the position in the data.

        Raises:
          UserError: the checkpoint cannot be read as this state.
        """
        step = self.latest_step
        try:
            restored = self._checkpointer.load_checkpointables(
                step, {"state": _abstract(state), "data": None}
            )
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(
                f"checkpoint {self._directory / str(step)} cannot be read as this model "
                f"({_first_line(error)}); if the run is damaged, remove that directory to "
                "continue from the one before"
            ) from error
        return restored["state"], restored["data"]


def find_step(directory: Path, which: str) -> int:
    """Resolves "latest", "best" (lowest validation loss) or a number to a saved step.

    Raises:
      UserError: there is no such checkpoint.
    """
    if not directory.is_dir():
        raise UserError(f"{directory.parent} holds no checkpoints; is it the workdir of a run?")
    with ocp.training.Checkpointer(directory.absolute()) as checkpointer:
        saved = {c.step: c.metrics for c in checkpointer.checkpoints}
    measured = {step: m[_BEST_METRIC] for step, m in saved.items() if m}
    if which == "latest" and saved:
        return max(saved)
    if which == "best" and measured:
        return min(measured, key=measured.get)
    if which.isdigit() and int(which) in saved:
        return int(which)
    names = ", ".join(str(step) for step in sorted(saved)) or "none"
    raise UserError(f"no checkpoint {which!r} in {directory}; steps saved: {names}")


def load_params(directory: Path, step: int, params: Params) -> Params:
    """Reads only the parameters of a checkpoint.

    Args:
      directory: of the checkpoints.
      step: a saved step.
      params: arrays, or shape structs that carry shardings.

    Raises:
      UserError: the checkpoint does not hold these parameters.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            return ocp.load(
                (directory / str(step)).absolute(),
                {"params": _abstract(params)},
                checkpointable_name="state",
            )["params"]
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(
            f"checkpoint {directory / str(step)} does not hold this model ({_first_line(error)})"
        ) from error


def save_model(path: Path, params: Params) -> None:
    """Writes parameters alone; the directory appears when it is complete."""
    ocp.save(path.absolute(), params)


def load_model(path: Path, params: Params) -> Params:
    """Reads what `save_model` wrote, or part of it.

    Args:
      path: as given to `save_model`.
      params: the leaves wanted, arrays or shape structs that carry shardings.

    Raises:
      UserError: they are not there in this shape.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            return ocp.load(path.absolute(), _abstract(params))
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(f"{path} does not hold this model ({_first_line(error)})") from error


def stored_names(path: Path) -> set[str]:
    """Names of the leaves that `save_model` wrote there, as of `parameters.flatten`."""
    return set(flatten(ocp.metadata(path.absolute()).metadata))


def _abstract(tree):
    def describe(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(describe, tree)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
