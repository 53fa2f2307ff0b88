"""Where else the metrics of a run go, beside metrics.jsonl: by train.loggers.

Each is a package of its own, imported when it is asked for. What belongs to an account or a server
(project, address, key) is read by the package from its own environment variables.
"""

import contextlib
import importlib.util
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssjax import config as config_lib
from ssjax.config import Config
from ssjax.errors import UserError
from ssjax.files import places
from ssjax.files.reading import read_json_object, to_json
from ssjax.files.writing import make_directory, write_atomic, writing
from ssjax.messages import say_once
from ssjax.training.callbacks import Callback, Recorder

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
_MOST_PARAMETERS = 100  # that MLflow takes at a time


def require(names: Sequence[str], workdir: Path) -> None:
    """Checks that loggers are installed, and can write where the run lives.

    Raises:
      UserError: one is not, and how to install it; or it cannot.
    """
    if "tensorboard" in names and places.is_bucket(workdir):
        raise UserError(
            "config: train.loggers tensorboard appends to a file, which a bucket has no way to; "
            "leave it out: metrics/ of the run has all"
        )
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise UserError(
                f"config: train.loggers {name} needs {_PACKAGES[name]}; run pip install "
                f"'ssjax[{name}]'"
            )


def make_loggers(config: Config, workdir: Path) -> list[Callback]:
    """The callbacks of train.loggers, in a run directory."""
    values = config_lib.to_dict(config)
    made: Mapping[str, Callable[[], Callback]] = {
        "tensorboard": lambda: Board(workdir / "tensorboard"),
        "wandb": lambda: WeightsAndBiases(workdir, values),
        "mlflow": lambda: MLflow(workdir, values),
    }
    return [made[name]() for name in config.train.loggers]


class Board(Recorder):
    """Metrics as scalars for TensorBoard.

    Written by the thread that calls: the threads of tensorboardX's own writer end without a word
    where the disk is full, and whoever writes on waits for them without end.

    Args:
      directory: for the events.

    Raises:
      UserError: by every method, if the directory cannot be written to.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._writer = None

    def on_start(self, step: int, num_steps: int) -> None:
        from tensorboardX import event_file_writer

        make_directory(self._directory)
        with writing(self._directory):
            self._writer = event_file_writer.EventsWriter(str(self._directory / "events"))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        now = time.time()
        with writing(self._directory):
            for name, value in metrics.items():
                scalar = summary.scalar(name, value)
                self._writer.write_event(Event(step=step, wall_time=now, summary=scalar))

    def on_end(self, complete: bool) -> None:
        with contextlib.suppress(OSError):  # said where it was written to
            self._writer.close()


class WeightsAndBiases(Recorder):
    """Metrics for Weights & Biases; a run that is continued is continued there.

    WANDB_PROJECT, WANDB_API_KEY, WANDB_MODE and others say where to.

    Args:
      workdir: of the run; wandb.json keeps its id there.
      values: the config.

    Raises:
      UserError: by `on_start`, if the package refuses to begin.
    """

    def __init__(self, workdir: Path, values: Mapping[str, Any]):
        self._workdir, self._values = workdir, values
        self._run = None

    def on_start(self, step: int, num_steps: int) -> None:
        import wandb

        kept = self._workdir / "wandb.json"
        if not kept.exists():
            write_atomic(kept, to_json({"id": uuid.uuid4().hex}))
        with _beginning("wandb"):
            self._run = wandb.init(
                dir=str(self._workdir),
                id=read_json_object(kept)["id"],
                name=self._workdir.name,
                config=dict(self._values),
                resume="allow",
            )
            # A run that was killed tells of some steps twice; the package's own count only rises.
            self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        with _going_on("wandb"):
            self._run.log({"step": step, **metrics})

    def on_end(self, complete: bool) -> None:
        with _going_on("wandb"):
            self._run.finish(exit_code=0 if complete else 1)


class MLflow(Recorder):
    """Metrics for MLflow; a run that is continued is continued there.

    MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and others say where to.

    Args, Raises: as `WeightsAndBiases`; the file is mlflow.json.
    """

    def __init__(self, workdir: Path, values: Mapping[str, Any]):
        self._workdir, self._values = workdir, values

    def on_start(self, step: int, num_steps: int) -> None:
        import mlflow

        kept = self._workdir / "mlflow.json"
        with _beginning("mlflow"):
            if kept.exists():
                mlflow.start_run(run_id=read_json_object(kept)["id"])
                return
            begun = mlflow.start_run(run_name=self._workdir.name)
            write_atomic(kept, to_json({"id": begun.info.run_id}))
            flat = list(_flat(self._values).items())
            for first in range(0, len(flat), _MOST_PARAMETERS):
                mlflow.log_params(dict(flat[first : first + _MOST_PARAMETERS]))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        import mlflow

        with _going_on("mlflow"):
            mlflow.log_metrics(dict(metrics), step=step)

    def on_end(self, complete: bool) -> None:
        import mlflow

        with _going_on("mlflow"):
            mlflow.end_run("FINISHED" if complete else "KILLED")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


@contextlib.contextmanager
def _beginning(name: str):
    """Whatever a package refuses before the first step, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"train.loggers {name} cannot begin ({_reason(error)}); mend that, or leave it out"
        ) from None


@contextlib.contextmanager
def _going_on(name: str):
    """A server that is away does not end a training: said once."""
    try:
        yield
    except Exception as error:
        say_once(f"train.loggers {name}: {_reason(error)}; training goes on, metrics.jsonl has all")


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
