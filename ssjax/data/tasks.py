"""The tasks: how a record becomes a prompt and the texts that would be right answers.

A record is one element of `ssjax.data.builders.open_source`: a dict of `str` and, for a list of
texts, `tuple[str, ...]`. Nothing here cuts, encodes or cleans.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ssjax.errors import UserError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """What the model reads and what it should write."""

    name: str
    prompt: Callable[[Record], str]
    references: Callable[[Record], tuple[str, ...]]  # the first is the training target
    symbols: tuple[str, ...]  # strings that a tokenizer trained for the task never splits
    input_field: str  # the field that a user gives when there is no record

    def prompt_from_input(self, text: str) -> str:
        """The prompt for a bare input, such as a dialogue."""
        return self.prompt({self.input_field: text})


DIALOGSUM = Task(
    name="dialogsum",
    prompt=lambda record: f"{record['dialogue']}\n\nSummary:",
    references=lambda record: record["summaries"],
    symbols=tuple(f"#Person{number}#" for number in range(1, 8)),
    input_field="dialogue",
)

E2E_NLG = Task(
    name="e2e_nlg",
    prompt=lambda record: f"{record['mr']}\n\nText:",
    references=lambda record: record["references"],
    symbols=(),
    input_field="mr",
)

_TASKS = {task.name: task for task in (DIALOGSUM, E2E_NLG)}


def get_task(name: str) -> Task:
    """Looks a task up. Raises: UserError for a name that is not known."""
    if name not in _TASKS:
        raise UserError(f"unknown task {name!r}: choose one of {', '.join(sorted(_TASKS))}")
    return _TASKS[name]
