"""From records to batches: encoding, cutting, padding, shuffling, reading ahead.

A batch is a dict of numpy arrays:

    tokens     [B, T] int32   prompt, target, pad ids; T = max prompt + max target length, or less
    segments   [B, T] int32   which sequence of its row a token belongs to, from 1; 0: padding
    is_target  [B, T] bool    whether it is to be predicted

    tokens     bos p1 p2 y1 y2 eos pad pad          (bos: if the model has one)
    segments    1  1  1  1  1  1   0   0
    is_target   .  .  .  x  x  x   .   .

Answers of a conversation may share a row (`data.join_answers`):

    tokens     bos p1 y1 eos p2 p3 y2 eos
    is_target   .  .  x   x  .  .  x   x

Training batch i is a function of the seed and i alone, see `order.py`, so a run continues
from a step number and no state of the pipeline needs saving.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import grain
import numpy as np

from ssjax.config import DataConfig
from ssjax.data.lengths import lengths_of
from ssjax.data.order import Buckets, OneARow, Packed, Parts
from ssjax.data.records import Mixture
from ssjax.data.tasks import Record, Task
from ssjax.data.tokenizers.tokenizer import Tokenizer
from ssjax.errors import UserError

# Two threads hide reading and encoding behind a step, and eight batches a slow file system.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)

# Records that `describe` looks at, spread evenly over the source.

# Ids of what is read and of what is to be predicted after it, in turn.
Sequenced = Sequence[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Example:
    """One prompt to be answered, and the answers that would be right."""

    index: int  # of the record in its source
    prompt: str  # whole, even where prompt_ids had to be cut
    prompt_ids: tuple[int, ...]
    references: tuple[str, ...]
    record: Record  # as read, for metrics that need more than references


@dataclass(frozen=True)
class BatchLayout:
    """How sequences are cut and laid into the rows of batches; see `DataConfig` for all of it.

    Raises:
      UserError: a size below 1.
    """

    batch_size: int  # rows of a whole batch
    max_prompt_length: int  # tokens, as in `encode_example`
    max_target_length: int
    length_buckets: tuple[int, ...] = ()  # of training: widths of rows below the greatest
    packing: bool = False  # of training: several sequences a row
    join_answers: bool = False  # of training: answers of a conversation in one sequence

    def __post_init__(self):
        for name in ("batch_size", "max_prompt_length", "max_target_length"):
            if (size := getattr(self, name)) < 1:
                raise UserError(f"{name} is {size}: it must be at least 1")

    @classmethod
    def of(cls, data: DataConfig) -> "BatchLayout":
        """That of a run."""
        return cls(**{field.name: getattr(data, field.name) for field in fields(cls)})

    @property
    def limits(self) -> tuple[int, int]:
        """Tokens of the longest prompt and the longest target; a row is as wide as both."""
        return self.max_prompt_length, self.max_target_length

    @property
    def needs_lengths(self) -> bool:
        """Whether training has to know how long all records are."""
        return self.packing or self.join_answers or bool(self.length_buckets)


def encode_example(
    record: Record,
    task: Task,
    tokenizer: Tokenizer,
    max_prompt_length: int,
    max_target_length: int,
) -> tuple[list[int], list[int]]:
    """Encodes the prompt and the first reference.

    Args:
      record: one record of the task.
      task: says what is prompt and what is target.
      tokenizer: encodes both.
      max_prompt_length: a longer prompt loses its beginning, since its end asks the question; what
        stands before every prompt stays.
      max_target_length: a longer target loses its end, eos included: stopping there is not
        what the model should learn.

    Returns:
      prompt ids and target ids (end of sequence last, unless cut).
    """
    prompt_ids = encode_prompt(record, task, tokenizer, max_prompt_length)
    return prompt_ids, task.target_ids(record, tokenizer)[:max_target_length]


def encode_prompt(
    record: Record, task: Task, tokenizer: Tokenizer, max_prompt_length: int
) -> list[int]:
    """The prompt alone; arguments as of `encode_example`."""
    return _cut_prompt(task.prompt_ids(record, tokenizer), tokenizer, max_prompt_length)


def answer_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of decoded ids, without the space that sets it off from the prompt."""
    return without_space(tokenizer.decode_continuation(ids))


def without_space(continuation: str) -> str:
    """The text of an answer from that of its continuation of the prompt."""
    return continuation.removeprefix(" ")


def train_batches(
    source: Sequence[Record],
    task: Task,
    tokenizer: Tokenizer,
    layout: BatchLayout,
    *,
    seed: int,
    rows: Sequence[int] | None = None,
) -> grain.MapDataset:
    """An endless data set of batches, each a function of the seed and its index.

    Args:
      source, task, tokenizer: as in `encode_example`.
      layout: of the batches.
      seed: of the order.
      rows: those of each batch that are wanted here, the only ones that are read; the others
        are read by other processes. None: all.

    Raises:
      UserError: no records.
    """
    sequences = _sequences(source, task, tokenizer, layout)
    plan = _plan(sequences, layout, seed)

    def encode(number: int) -> Sequenced:
        pairs, known = [], 0
        for record in range(sequences.first[number], sequences.last[number] + 1):
            prompt_ids, target_ids = encode_example(source[record], task, tokenizer, *layout.limits)
            pairs.append((prompt_ids[known:], target_ids))
            known = len(prompt_ids) + len(target_ids)
        return pairs

    return grain.MapDataset.source(_PlannedBatches(plan, encode, rows, tokenizer.pad_id))


def num_steps(
    source: Sequence[Record],
    task: Task,
    tokenizer: Tokenizer,
    layout: BatchLayout,
    *,
    seed: int,
    num_epochs: float,
) -> int:
    """Batches of `train_batches` that hold num_epochs times as many sequences as there are.

    The last one may go beyond them. Arguments and errors are those of `train_batches`.
    """
    sequences = _sequences(source, task, tokenizer, layout)
    left, count = max(round(num_epochs * len(sequences.first)), 1), 0
    if not layout.packing:
        return -(-left // layout.batch_size)
    plan = _plan(sequences, layout, seed)
    while left > 0:
        left -= sum(map(len, plan(count).rows))
        count += 1
    return count


@dataclass(frozen=True)
class _Sequences:
    """What is laid into rows: records, or runs of them that are joined."""

    first: np.ndarray  # [S] int, by sequence its first record
    last: np.ndarray  # [S] int, its last
    lengths: np.ndarray | None  # [S] int, tokens after cutting; None: not measured
    targets: np.ndarray | None  # [S] int, those of targets
    parts: Parts  # of a mixture


def _sequences(source, task, tokenizer, layout: BatchLayout) -> _Sequences:
    """Raises: UserError: no records."""
    _check(source)
    parts = source.parts if isinstance(source, Mixture) else ()
    each = np.arange(len(source))
    if not layout.needs_lengths:
        return _Sequences(each, each, None, None, parts)
    measured = lengths_of(source, task, tokenizer)
    lengths, targets = measured.cut(*layout.limits)
    if not layout.join_answers:
        return _Sequences(each, each, lengths, targets, parts)
    first = measured.joined(*layout.limits)
    last = np.append(first[1:], len(source)) - 1
    ends = np.cumsum([size for size, _ in parts]) if parts else np.zeros(0, int)
    sizes = np.diff(np.searchsorted(first, ends), prepend=0)
    joined_parts = [(int(n), weight) for n, (_, weight) in zip(sizes, parts, strict=True)]
    return _Sequences(first, last, lengths[last], np.add.reduceat(targets, first), joined_parts)


def _plan(sequences: _Sequences, layout: BatchLayout, seed: int) -> OneARow | Buckets | Packed:
    """Which sequences make up each batch."""
    width, order, parts = sum(layout.limits), (layout.batch_size, seed), sequences.parts
    if layout.packing:
        measured = sequences.lengths, sequences.targets
        return Packed(*measured, *order, width, layout.max_target_length, parts)
    if layout.length_buckets:
        widths = [bucket for bucket in sorted(layout.length_buckets) if bucket < width]
        return Buckets(sequences.lengths, *order, [*widths, width], parts)
    return OneARow(len(sequences.first), *order, width, parts)


class _PlannedBatches(Sequence):
    """The rows of planned batches that are wanted here, encoded."""

    def __init__(self, plan, encode, rows, pad_id):
        self._plan, self._encode, self._rows, self._pad_id = plan, encode, rows, pad_id

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        planned = self._plan(index)
        chosen = range(len(planned.rows)) if self._rows is None else self._rows
        rows = []
        for row in chosen:
            examples = [self._encode(number) for number in planned.rows[row]]
            rows.append(_row(examples, planned.width, self._pad_id))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def train_iterator(dataset: grain.MapDataset, start: int) -> grain.DatasetIterator:
    """Iterates from batch `start` on, reading ahead in threads.

    The caller ends the threads with `close()`, best by `contextlib.closing`.
    """
    iterator = iter(dataset.to_iter_dataset(_READ_OPTIONS))
    grain.experimental.set_next_index(iterator, start)
    return iterator


class EvalBatches(Sequence):
    """Every record of a source once, in order; see `eval_batches`."""

    def __init__(self, source, task, tokenizer, layout: BatchLayout, rows):
        self._rows = range(layout.batch_size) if rows is None else [int(row) for row in rows]
        self._source = source
        self._task = task
        self._tokenizer = tokenizer
        self._layout = layout

    def __len__(self) -> int:
        return -(-len(self._source) // self._layout.batch_size)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        width, pad_id = sum(self._layout.limits), self._tokenizer.pad_id
        rows = []
        for i in (index * self._layout.batch_size + row for row in self._rows):
            if i < len(self._source):
                example = encode_example(
                    self._source[i], self._task, self._tokenizer, *self._layout.limits
                )
            else:
                example = list(self._tokenizer.prefix_ids) or [self._tokenizer.pad_id], []
            rows.append(_row([[example]], width, pad_id))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def eval_batches(
    source: Sequence[Record],
    task: Task,
    tokenizer: Tokenizer,
    layout: BatchLayout,
    *,
    rows: Sequence[int] | None = None,
) -> EvalBatches:
    """A sequence of batches with every record once, in order, a sequence a row.

    The last batch is filled with rows without a target. Of each batch only `rows` are read, as
    in `train_batches`.

    Raises:
      UserError: no records.
    """
    _check(source)
    return EvalBatches(source, task, tokenizer, layout, rows)


def decode_examples(
    source: Sequence[Record],
    task: Task,
    tokenizer: Tokenizer,
    max_prompt_length: int,
    limit: int,
) -> list[Example]:
    """The prompts to decode, in the order of the source; a prompt that recurs is left out.

    Args:
      source, task, tokenizer, max_prompt_length: as in `encode_example`.
      limit: number of examples; 0: as many as there are.
    """
    examples: list[Example] = []
    seen: set[str] = set()
    for index, record in enumerate(source):
        if limit and len(examples) == limit:
            break
        prompt = task.prompt(record)
        if prompt not in seen:
            seen.add(prompt)
            prompt_ids = encode_prompt(record, task, tokenizer, max_prompt_length)
            references = task.references(record)
            examples.append(Example(index, prompt, tuple(prompt_ids), references, record))
    return examples


def tokenizer_texts(source: Sequence[Record], task: Task, limit: int) -> Iterator[str]:
    """Prompts and targets to train a tokenizer on, of `limit` evenly spread records; 0: of all."""
    for index in spread(len(source), limit or len(source)):
        record = source[index]
        yield task.prompt(record)
        yield task.references(record)[0]


def _cut_prompt(ids: list[int], tokenizer: Tokenizer, max_prompt_length: int) -> list[int]:
    """What stands before every prompt, and as much of the prompt's end as there is room for."""
    if len(ids) <= max_prompt_length:
        return ids
    prefix = tokenizer.prefix_ids[:max_prompt_length]
    return [*prefix, *ids[len(ids) - (max_prompt_length - len(prefix)) :]]


def _row(sequences: Sequence[Sequenced], width: int, pad_id: int) -> dict[str, np.ndarray]:
    """One row of a batch, of one sequence or of several."""
    tokens, segments = np.full(width, pad_id, np.int32), np.zeros(width, np.int32)
    is_target = np.zeros(width, bool)
    start = 0
    for number, sequence in enumerate(sequences, start=1):
        for prompt_ids, target_ids in sequence:
            target, end = start + len(prompt_ids), start + len(prompt_ids) + len(target_ids)
            tokens[start:end] = prompt_ids + target_ids
            segments[start:end] = number
            is_target[target:end] = True
            start = end
    return {"tokens": tokens, "segments": segments, "is_target": is_target}


def _check(source: Sequence[Record]) -> None:
    if not len(source):
        raise UserError("the data source has no records")


def spread(size: int, limit: int) -> list[int]:
    """Up to `limit` indices below `size`, in order and equally far apart."""
    count = min(size, limit)
    return [i * size // count for i in range(count)]
