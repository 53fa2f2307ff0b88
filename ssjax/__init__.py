"""Speculative Streaming in JAX: train decoder language models that draft for themselves.

    import ssjax
    run = ssjax.load("runs/dialogsum")
    [answer] = run.generate("#Person1#: Hi! ...")
    answer.text, answer.tokens_per_call

`import ssjax` loads nothing heavy: what a function needs is imported when it is called.
`ssjax.models` and `ssjax.decoding` need JAX, Flax and NumPy only.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssjax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from ml_collections import ConfigDict

    from ssjax.config import Config
    from ssjax.data.tasks import register_task
    from ssjax.run import Answer, Run
    from ssjax.training.callbacks import Callback, StopTraining

__all__ = [
    "Answer",
    "Callback",
    "Run",
    "StopTraining",
    "UserError",
    "__version__",
    "load",
    "register_task",
    "train",
]
# Public names that are defined elsewhere, imported when they are asked for.
_HOMES = {
    "Answer": "ssjax.run",
    "Callback": "ssjax.training.callbacks",
    "Run": "ssjax.run",
    "StopTraining": "ssjax.training.callbacks",
    "register_task": "ssjax.data.tasks",
}

try:
    __version__ = importlib.metadata.version("ssjax")
except importlib.metadata.PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+unknown"


def load(
    workdir: str | os.PathLike[str],
    checkpoint_name: str | int = "latest",
    *,
    adapter: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    mesh: Mesh | None = None,
    int8: bool = False,
) -> Run:
    """Opens a model for decoding: a run, an exported or converted model, or a base model.

    >>> run = ssjax.load("runs/first")
    >>> [answer] = run.generate("#Person1#: Hello!", max_new_tokens=4)
    >>> len(answer.completion.tokens) <= 4
    True

    Args:
      workdir: run directory of a training, directory that `python -m ssjax.export` or `convert`
        wrote, directory of Hugging Face files, or a hub id such as "org/name" or
        "org/name@revision".
      checkpoint_name: of a run: "latest", "best" (by checkpoint.best_by), or a step.
      adapter: directory of `python -m ssjax.export --format adapter`, put on the base weights of
        `workdir`.
      base: where the base weights of a run are now; None: where they were in training.
      mesh: of the devices that the weights are divided over, with the axes data, fsdp and tensor;
        None: the first device.
      int8: decode with projections, embedding and heads in eight bits, a scale for each row: half
        or a quarter of the memory, and another model by rounding.

    Returns:
      The model with its tokenizer, task and decode settings.

    Raises:
      UserError: nothing there that can be decoded, or parts that do not belong together. Damaged
        files raise `ssjax.errors.DamagedError`, which is one too.
    """
    from ssjax import run

    return run.load(workdir, checkpoint_name, adapter=adapter, base=base, mesh=mesh, int8=int8)


def train(config: Config | ConfigDict, callbacks: Sequence[Callback] = ()) -> Run:
    """Trains a model, or continues a training that was stopped.

    A streams model after "Speculative Streaming: Fast LLM Inference without Auxiliary Models"
    (arXiv:2402.11131), unless the config asks for Medusa heads or for no drafter.

    >>> from ssjax.config import default_config, shrink
    >>> c = default_config()  # learns the generated sample of DialogSum
    >>> shrink(c)  # to sizes that train in seconds
    >>> c.workdir, c.train.num_steps = "runs/first", 2
    >>> class Losses(ssjax.Callback):
    ...     def on_step(self, step, metrics):
    ...         print(f"step {step}: {metrics['loss']:.0f} nats per token")
    >>> run = ssjax.train(c, callbacks=[Losses()])
    step 2: 10 nats per token
    >>> run.step
    2

    The directory `config.workdir` is locked meanwhile. What is said goes to stderr, measurements
    to metrics.jsonl in that directory. Ctrl-C or SIGTERM saves after the current step and returns:
    `run.step` is then less than `run.config.train.num_steps`, and the same call continues. So it is
    where `train.patience` ended the run; `Callback.on_end` is told which of both it was.

    Args:
      config: what `ssjax.config.default_config()` gave, changed; or its frozen form. Its keys,
        units and ranges: `python -m ssjax.train --help`.
      callbacks: told of steps, losses and checkpoints, and may end the training in order, see
        `ssjax.Callback`.

    Returns:
      The trained model, its weights on the devices that it was trained on.

    Raises:
      UserError: settings, base, data or directory do not go together, or another process trains
        there; `ssjax.errors.DivergedError`: the loss is not finite.
    """
    from ssjax import config as config_lib
    from ssjax.evaluation import training_run
    from ssjax.files import places
    from ssjax.run import open_run
    from ssjax.training import trainer

    is_frozen = isinstance(config, config_lib.Config)
    values = config_lib.to_dict(config) if is_frozen else config.to_dict()
    config = config_lib.from_dict(values)
    with trainer.held(places.of(config.workdir)):
        outcome = training_run.train(config, callbacks)
    return open_run(outcome.trained, outcome.mesh)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "load_run":  # as scripts of 0.1 call it
        from ssjax.messages import say_once

        say_once("ssjax.load_run is called ssjax.load now")
        return load
    raise AttributeError(f"module 'ssjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
