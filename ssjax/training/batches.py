"""The batches of a training run: what this process reads of each."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from ssjax.config import Config
from ssjax.data import length_report, pipeline
from ssjax.data.choice import training_records
from ssjax.data.lengths import lengths_of
from ssjax.data.tasks import get_task
from ssjax.data.tokenizers.tokenizer import Tokenizer
from ssjax.parallel import partitioning

Arrays = dict[str, np.ndarray]  # of `training.losses.Batch`, the rows of this process


@dataclasses.dataclass(frozen=True)
class Batches:
    """What a run trains on and is validated on."""

    start_at: Callable[[int], Iterator[Arrays]]  # endless, from the batch of this index on
    validation: Sequence[Arrays]


def measure(config: Config, tokenizer: Tokenizer) -> None:
    """Measures the records that `open_batches` has to know the lengths of, which are then kept.

    Raises:
      UserError: the data cannot be read, or no record is short enough.
    """
    data = config.data
    for split in ("train", "validation"):
        source = training_records(config, tokenizer, split)
        if split == "train" and pipeline.BatchLayout.of(data).needs_lengths:
            lengths_of(source, get_task(data.task), tokenizer)


def open_batches(
    config: Config, tokenizer: Tokenizer, mesh: Mesh
) -> tuple[Batches, length_report.LengthReport]:
    """Opens the data of a config; says how long the training examples are.

    Args:
      config: resolved.
      tokenizer: of the run.
      mesh: whose devices the rows of a batch are divided over.

    Raises:
      UserError: the data cannot be read, or there is nothing to train on.
    """
    data = config.data
    task = get_task(data.task)
    layout = pipeline.BatchLayout.of(data)
    source = training_records(config, tokenizer, "train")
    lengths = length_report.describe(source, task, tokenizer, *layout.limits)
    rows = partitioning.local_rows(mesh, data.batch_size)
    batches = pipeline.train_batches(source, task, tokenizer, layout, seed=config.seed, rows=rows)
    validation = training_records(config, tokenizer, "validation")
    held_out = pipeline.eval_batches(validation, task, tokenizer, layout, rows=rows)
    num_held_out = min(config.train.eval_batches, len(held_out))
    opened = Batches(
        start_at=lambda index: pipeline.train_iterator(batches, index),
        validation=[held_out[i] for i in range(num_held_out)],
    )
    return opened, lengths
