"""How many steps a run has that is given in epochs.

Known when its data is open, and kept in the config that the run writes: schedule, loop and whoever
opens the run later know steps alone.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ssjax.config import Config
from ssjax.data import pipeline
from ssjax.data.choice import training_records
from ssjax.data.tasks import get_task
from ssjax.data.tokenizers.tokenizer import Tokenizer
from ssjax.weights.base import read_config


def kept(config: Config, workdir: Path) -> Config:
    """The config with the steps that its run has found before, for as many epochs."""
    if not config.train.num_epochs or not (workdir / "config.json").exists():
        return config
    before = read_config(workdir).train
    if before.num_epochs != config.train.num_epochs:
        return config
    return _with_steps(config, before.num_steps)


def found(config: Config, tokenizer: Tokenizer, say: Callable[[str], None]) -> Config:
    """The config with the steps of its epochs, if it is given in epochs.

    Args:
      config: resolved.
      tokenizer: of the run.
      say: is told how many they are.

    Raises:
      UserError: there is nothing to train on.
    """
    num_epochs = config.train.num_epochs
    if not num_epochs:
        return config
    source = training_records(config, tokenizer, "train")
    num_steps = pipeline.num_steps(
        source,
        get_task(config.data.task),
        tokenizer,
        pipeline.BatchLayout.of(config.data),
        seed=config.seed,
        num_epochs=num_epochs,
    )
    say(f"{num_epochs:g} epochs of {len(source):,} records are {num_steps:,} steps")
    return _with_steps(config, num_steps)


def _with_steps(config: Config, num_steps: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=num_steps))
