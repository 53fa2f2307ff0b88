"""The rows of batches as training sees them: text, token ids and loss mask of every sequence."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssjax.config import Config, DataConfig
from ssjax.data import length_report, pipeline
from ssjax.data.choice import training_records
from ssjax.data.tasks import get_task
from ssjax.data.tokenizers.tokenizer import Tokenizer
from ssjax.errors import UserError

_TOKENS_A_LINE = 8
_ARRAYS = ("tokens", "segments", "is_target")


@dataclasses.dataclass(frozen=True)
class Shown:
    """One sequence of a row of a batch: a prompt and its target."""

    row: int  # counted over batches
    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return tuple(
            itertools.compress(self.token_ids, (not is_target for is_target in self.loss_mask))
        )

    @property
    def target_ids(self) -> tuple[int, ...]:
        return tuple(itertools.compress(self.token_ids, self.loss_mask))


def batches(
    config: Config, tokenizer: Tokenizer, split: str, say: Callable[[str], None]
) -> Iterable[Mapping[str, np.ndarray]]:
    """Batches as of `ssjax.data.pipeline`, those of training without end.

    `say` is told how long the records are.

    Raises:
      UserError: the data cannot be read, or nothing can be learned from it.
    """
    data = config.data
    source, task = training_records(config, tokenizer, split), get_task(data.task)
    layout = pipeline.BatchLayout.of(data)
    say(f"{split}: {length_report.describe(source, task, tokenizer, *layout.limits)}")
    if split != "train":  # a row a batch: none is filled up with rows without a record
        layout = dataclasses.replace(layout, batch_size=1)
        return pipeline.eval_batches(source, task, tokenizer, layout)
    return pipeline.train_batches(source, task, tokenizer, layout, seed=config.seed)


def sequences(batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Shown]:
    """The sequences of batches, row by row."""
    rows = (
        row for batch in batches for row in zip(*(batch[name] for name in _ARRAYS), strict=True)
    )
    for number, (tokens, segments, is_target) in enumerate(rows):
        for segment in range(1, segments.max(initial=0) + 1):
            own = segments == segment
            yield Shown(number, tuple(tokens[own].tolist()), tuple(is_target[own].tolist()))


def check(sequence: Shown, tokenizer: Tokenizer, data: DataConfig, split: str) -> None:
    """Raises: UserError if a model would learn its prompt, nothing, or not to stop."""
    place = f"{data.task} {split}, row {sequence.row}"
    target = sequence.target_ids
    if not target:
        raise UserError(f"{place}: the loss mask is all zeros: nothing is learned; see its answer")
    if len(target) == len(sequence.token_ids):
        raise UserError(
            f"{place}: the loss mask is all ones, so the prompt is empty or would be learned too; "
            f"check the prompts of task {data.task}"
        )
    if target[-1] in tokenizer.eos_ids:
        return
    if len(target) >= data.max_target_length:
        raise UserError(
            f"{place}: the target has no end of sequence, since it was cut at "
            f"data.max_target_length={data.max_target_length}; raise that to learn where to stop"
        )
    raise UserError(
        f"{place}: the target has no end of sequence, so the model would not learn to stop; check "
        "the tokenizer's eos token"
    )


def values(sequence: Shown, tokenizer: Tokenizer) -> dict:
    """A sequence as plain values."""
    return {
        "row": sequence.row,
        "prompt": text_of(sequence.prompt_ids, tokenizer),
        "target": text_of(sequence.target_ids, tokenizer),
        "token_ids": list(sequence.token_ids),
        "loss_mask": [int(is_target) for is_target in sequence.loss_mask],
    }


def show(title: str, sequence: Shown, tokenizer: Tokenizer) -> None:
    """Prints a table, a few tokens a line."""
    table = Table("part", "text", "token ids", "loss", title=title, title_justify="left")
    pairs = zip(sequence.token_ids, sequence.loss_mask, strict=True)
    for is_target, part in itertools.groupby(pairs, key=lambda pair: pair[1]):
        ids = [token for token, _ in part]
        for start in range(0, len(ids), _TOKENS_A_LINE):
            line = ids[start : start + _TOKENS_A_LINE]
            table.add_row(
                "" if start else "target" if is_target else "prompt",
                Text(text_of(line, tokenizer).replace("\n", "\\n")),
                " ".join(map(str, line)),
                " ".join(["x" if is_target else "."] * len(line)),
            )
    Console(highlight=False, width=120).print(table)


def text_of(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of ids, special ones by their role."""
    roles = dict.fromkeys(tokenizer.prefix_ids, "<bos>") | dict.fromkeys(tokenizer.eos_ids, "<eos>")
    text = b""
    for token in ids:
        text += tokenizer.token_bytes(token) or roles.get(token, f"<{token}>").encode()
    return text.decode(errors="replace")
