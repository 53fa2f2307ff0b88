"""Which records and which tokenizer an experiment is trained with."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ssjax.config import Config
from ssjax.data import builders, pipeline
from ssjax.data.lengths import lengths_of
from ssjax.data.records import Chosen, Mixture, RecordSource
from ssjax.data.splits import Reading
from ssjax.data.tasks import Record, get_task
from ssjax.data.tokenizers.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    open_tokenizer,
    train_tokenizer,
)
from ssjax.errors import UserError
from ssjax.files import places
from ssjax.files.gguf import is_gguf


def open_split(config: Config, split: str) -> RecordSource | Mixture:
    """The records of a split, prepared on first use; of train with those of data.mixture."""
    data, reading = config.data, Reading.of(config.data)

    def opened(path: str, reading: Reading) -> RecordSource:
        return builders.open_source(data.task, path, data.prepared_dir, config.seed, split, reading)

    source = opened(data.path, reading)
    if split != "train" or not data.mixture:
        return source
    more = [opened(path, reading.of_train()) for path, _ in data.mixed]
    return Mixture([source, *more], [1.0, *(weight for _, weight in data.mixed)])


def split_names(config: Config) -> tuple[str, ...]:
    """The splits that the data of a config has. Raises: UserError: it cannot be read."""
    data = config.data
    return builders.split_names(data.task, data.path, config.seed, Reading.of(data))


def training_records(config: Config, tokenizer: Tokenizer, split: str) -> Sequence[Record]:
    """What losses are taken of: all records of a split, or those that need no cutting.

    Args:
      config: says which (data.too_long).
      tokenizer: of the run.
      split: train or validation.

    Raises:
      UserError: none is left.
    """
    source, data = open_split(config, split), config.data
    if data.too_long == "cut":
        return source

    def fitting(source: RecordSource) -> Chosen:
        lengths = lengths_of(source, get_task(data.task), tokenizer)
        fit = lengths.fit(data.max_prompt_length, data.max_target_length)
        if not fit.any():
            raise UserError(
                f"all {len(source):,} records of {split} are longer than data.max_prompt_length="
                f"{data.max_prompt_length} or data.max_target_length={data.max_target_length}; "
                "raise them, or give data.too_long=cut"
            )
        return Chosen(source, np.flatnonzero(fit))

    if isinstance(source, Mixture):
        return Mixture([fitting(each) for each in source.sources], source.weights)
    return fitting(source)


def data_digests(config: Config) -> dict[str, str]:
    """SHA-256 of the files that each split is made from, or of the generated sample.

    And of each part of a mixture, with its weight.
    """
    data, reading = config.data, Reading.of(config.data)
    digests = builders.digests(data.task, data.path, config.seed, reading)
    for number, (path, weight) in enumerate(data.mixed, start=1):
        [digest] = builders.digests(data.task, path, config.seed, reading.of_train()).values()
        digests[f"mixture {number}"] = f"{digest} weight {weight:g}"
    return digests


def kept_tokenizer(workdir: Path) -> Tokenizer | None:
    """The tokenizer that a run directory holds, None if there is none yet."""
    if any(workdir.glob("tokenizer*")) or (workdir / "vocab.json").exists():
        return open_tokenizer(workdir)
    return None


def given_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of data.tokenizer: a directory, a GGUF file, or a file of SentencePiece."""
    is_file = places.of(path).is_file() and not is_gguf(path)
    return SentencePieceTokenizer.from_file(path) if is_file else open_tokenizer(path)


def choose_tokenizer(
    workdir: Path, config: Config, base: Path | None, say: Callable[[str], None]
) -> Tokenizer:
    """The run's tokenizer: kept, given, of what it begins with, or trained on the data.

    Args:
      workdir: the run directory; nothing is written to it.
      config: of the run.
      base: the directory of the base model, None if there is none.
      say: is told that a tokenizer is trained, which takes a while.
    """
    if (kept := kept_tokenizer(workdir)) is not None:
        return kept
    if config.data.tokenizer:
        return given_tokenizer(config.data.tokenizer)
    if config.init_from:
        return open_tokenizer(config.init_from)
    if base is not None:
        return open_tokenizer(base)
    task = get_task(config.data.task)
    source = open_split(config, "train")
    say(f"training a tokenizer of {config.data.tokenizer_vocab_size} pieces")
    texts = pipeline.tokenizer_texts(source, task, config.data.tokenizer_records)
    return train_tokenizer(texts, config.data.tokenizer_vocab_size, symbols=task.symbols)
