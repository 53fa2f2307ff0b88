"""How long the examples of a split are, and what is cut of them: what a training says first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssjax.data.pipeline import spread
from ssjax.data.records import num_left_out
from ssjax.data.tasks import Record, Task
from ssjax.data.tokenizers.tokenizer import Tokenizer
from ssjax.errors import UserError

_DESCRIBED_RECORDS = 2000


@dataclass(frozen=True)
class LengthReport:
    """How long examples are before cutting, in tokens with bos and eos."""

    num_records: int  # in the source
    num_described: int  # of them, looked at
    prompts_cut: int
    targets_cut: int
    mean_prompt: float
    max_prompt: int
    mean_target: float
    max_target: int
    max_kept: int  # prompt and target of one example, after cutting
    num_dropped: int = 0  # records of the source that are left out, being too long

    def __str__(self) -> str:
        dropped = f"; {self.num_dropped:,} too long, dropped" if self.num_dropped else ""
        return (
            f"{self.num_records:,} records; prompt {self.mean_prompt:.0f} tokens on average, "
            f"{self.max_prompt} at most, {self.prompts_cut} cut; target {self.mean_target:.0f}, "
            f"{self.max_target} at most, {self.targets_cut} cut "
            f"(of {self.num_described:,} looked at){dropped}"
        )


def describe(
    source: Sequence[Record],
    task: Task,
    tokenizer: Tokenizer,
    max_prompt_length: int,
    max_target_length: int,
) -> LengthReport:
    """Measures the examples, of a large source up to 2,000 of them; `str` of it is a log line.

    Raises:
      UserError: every target that is looked at is empty, or one has no end of sequence.
    """
    described = spread(len(source), _DESCRIBED_RECORDS)
    prompts, targets = [], []
    for index in described:
        record = source[index]
        prompts.append(len(task.prompt_ids(record, tokenizer)))
        target = task.target_ids(record, tokenizer)
        if not target or target[-1] not in tokenizer.eos_ids:
            raise UserError(
                f"record {index} of task {task.name}: its target does not end with an end of "
                "sequence, so the model would not learn to stop; check the tokenizer's eos token"
            )
        targets.append(len(target))
    if max(targets) == 1:
        raise UserError(
            f"every target of task {task.name} is empty, so there is nothing to learn; check the "
            "answers in the data, and for chats that the template writes them"
        )
    return LengthReport(
        num_records=len(source),
        num_described=len(described),
        prompts_cut=sum(length > max_prompt_length for length in prompts),
        targets_cut=sum(length > max_target_length for length in targets),
        mean_prompt=float(np.mean(prompts)),
        max_prompt=max(prompts),
        mean_target=float(np.mean(targets)),
        max_target=max(targets),
        max_kept=max(
            min(prompt, max_prompt_length) + min(target, max_target_length)
            for prompt, target in zip(prompts, targets, strict=True)
        ),
        num_dropped=num_left_out(source),
    )
