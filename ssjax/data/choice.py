"""Which records and which tokenizer an experiment is trained with."""

from collections.abc import Callable
from pathlib import Path

from ssjax.config import Config
from ssjax.data import builders, pipeline
from ssjax.data.records import RecordSource
from ssjax.data.splits import Reading
from ssjax.data.tasks import get_task
from ssjax.data.tokenizers.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    open_tokenizer,
    train_tokenizer,
)
from ssjax.files.gguf import is_gguf


def open_split(config: Config, split: str) -> RecordSource:
    """The records of a split, prepared on first use."""
    data = config.data
    reading = Reading.of(data)
    return builders.open_source(
        data.task, data.path, data.prepared_dir, config.seed, split, reading
    )


def data_digests(config: Config) -> dict[str, str]:
    """SHA-256 of the files that each split is made from, or of the generated sample."""
    data = config.data
    return builders.digests(data.task, data.path, config.seed, Reading.of(data))


def kept_tokenizer(workdir: Path) -> Tokenizer | None:
    """The tokenizer that a run directory holds, None if there is none yet."""
    if any(workdir.glob("tokenizer*")) or (workdir / "vocab.json").exists():
        return open_tokenizer(workdir)
    return None


def given_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of data.tokenizer: a directory, a GGUF file, or a file of SentencePiece."""
    is_file = Path(path).is_file() and not is_gguf(path)
    return SentencePieceTokenizer.from_file(path) if is_file else open_tokenizer(path)


def choose_tokenizer(
    workdir: Path, config: Config, base: Path | None, say: Callable[[str], None]
) -> Tokenizer:
    """The run's tokenizer: kept from before, given, that of the base, or trained on the data.

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
    if base is not None:
        return open_tokenizer(base)
    task = get_task(config.data.task)
    source = open_split(config, "train")
    say(f"training a tokenizer of {config.data.tokenizer_vocab_size} pieces")
    texts = pipeline.tokenizer_texts(source, task, config.data.tokenizer_records)
    return train_tokenizer(texts, config.data.tokenizer_vocab_size, symbols=task.symbols)
