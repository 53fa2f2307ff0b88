"""The tasks: how a record becomes prompt ids and target ids.

A record is one element of `ssjax.data.builders.open_source`: a dict of `str` and, for a list of
texts, `tuple[str, ...]`. Training and decoding call the same `prompt_ids`. Nothing here cuts.
A task of the user's own comes in by `register_task`.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ssjax.data.columns import BARE_INPUT, Columns, Line
from ssjax.data.tokenizers.chat_template import Messages
from ssjax.data.tokenizers.tokenizer import Tokenizer
from ssjax.errors import UserError

Record = Mapping[str, Any]

# The text of a record that a model wrote after its prompt, in place of the reference as training
# target; see `ssjax.data.distilled`. Empty or absent: none did.
CONTINUATION = "distilled_continuation"

# What answers are scored by, see `ssjax.metrics.quality`. sql runs them on the tables of the
# record's text "context".
Metric = Literal["rouge", "bleu", "chrf", "sql"]


@dataclass(frozen=True)
class Task:
    """What the model reads and what it should write, as text that continues text."""

    name: str
    prompt: Callable[[Record], str]  # whole, for people too
    references: Callable[[Record], tuple[str, ...]]  # the first is the training target
    symbols: tuple[str, ...]  # strings that a tokenizer trained for the task never splits
    input_field: str  # the field that a user gives when there is no record
    glue: str  # between prompt and answer
    metrics: tuple[Metric, ...]  # the main one first

    def record_from_input(self, text: str) -> Record:
        """The record for a bare input, such as a dialogue."""
        return {self.input_field: text}

    def prompt_ids(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        """Ids of the prompt, with what stands before every prompt."""
        return [*tokenizer.prefix_ids, *tokenizer.encode(self.prompt(record))]

    def target_ids(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        """Ids that should follow the prompt, end of sequence included.

        Raises:
          UserError: a chat that the tokenizer's template cannot write.
        """
        if own := record.get(CONTINUATION):
            return [*tokenizer.encode_continuation(own), tokenizer.eos_id]
        return self._reference_ids(record, tokenizer)

    def _reference_ids(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        text = self.glue + self.references(record)[0]
        return [*tokenizer.encode_continuation(text), tokenizer.eos_id]


@dataclass(frozen=True)
class ChatTask(Task):
    """One answer of an assistant, in the form of the tokenizer's chat template.

    The target is what the template writes after the prompt for the answer, up to the token
    that ends the turn; what comes after that token is the template's own.

        prompt                                        target
        <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello!<|im_end|> | \\n
    """

    def record_from_input(self, text: str) -> Record:
        """A chat of one message."""
        return {self.input_field: json.dumps([{"role": "user", "content": text}])}

    def prompt_ids(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        """Ids of the chat so far, ready for the assistant.

        Raises:
          UserError: the tokenizer has no chat template, or it rejects the chat.
        """
        with _naming_line(record, tokenizer):
            return tokenizer.encode_chat(_messages(record), add_generation_prompt=True)

    def _reference_ids(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        """Ids of the answer; the token that ends the turn is the last.

        Raises:
          UserError: as `prompt_ids`, or the template writes the chat so far in another way once
            it is answered.
        """
        with _naming_line(record, tokenizer):
            return self._answer_ids(record, tokenizer)

    def _answer_ids(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        asked = _messages(record)
        answered = [*asked, {"role": "assistant", "content": self.references(record)[0]}]
        prompt = tokenizer.render_chat(asked, add_generation_prompt=True)
        whole = tokenizer.render_chat(answered, add_generation_prompt=False)
        # Some templates end the prompt with white space that they do not write before an answer.
        shared = len(os.path.commonprefix([prompt, whole]))
        if prompt[shared:].strip():
            raise UserError(
                "the chat template does not begin an answered chat with the prompt that it writes "
                "for the answer, so the answer cannot be told apart; use another template"
            )
        prompt_ids = tokenizer.encode_chat(asked, add_generation_prompt=True)
        ids = tokenizer.encode_chat(answered, add_generation_prompt=False)
        if ids[: len(prompt_ids)] == prompt_ids:
            ids = ids[len(prompt_ids) :]
        else:  # a token spans the end of the prompt, which decoding will not have
            ids = tokenizer.encode_continuation(whole[shared:], special=True)
        ends = [i for i, token in enumerate(ids) if token in tokenizer.eos_ids]
        return ids[: ends[0] + 1] if ends else [*ids, tokenizer.eos_id]


@dataclass(frozen=True)
class OwnTask(Task):
    """A task of the user's own, see `register_task`."""

    columns: Columns

    def same_as(self, other: "OwnTask") -> bool:
        """Whether both mean the same."""
        own, others = ((each.symbols, each.glue, each.metrics, each.name) for each in (self, other))
        return own == others and self.columns.same_as(other.columns)


@contextlib.contextmanager
def _naming_line(record: Record, tokenizer: Tokenizer) -> Iterator[None]:
    """Says which line of the data a chat template cannot write."""
    try:
        yield
    except UserError as error:
        if tokenizer.chat_template is None or "line" not in record:
            raise  # no line of the data is at fault
        raise UserError(f"{record['line']}: {error}") from error


def _messages(record: Record) -> Messages:
    return json.loads(record["messages"])


def _chat_text(record: Record) -> str:
    return "\n".join(f"{m['role']}: {m['content']}" for m in _messages(record))


def _sql_prompt(record: Record) -> str:
    """A bare input is the CREATE TABLE statements and the question in one text."""
    asked = record.get("asked") or f"{record['context']}\n\nQuestion: {record['question']}"
    return f"{asked}\n\nSQL:"


DIALOGSUM = Task(
    name="dialogsum",
    prompt=lambda record: f"{record['dialogue']}\n\nSummary:",
    references=lambda record: record["summaries"],
    symbols=tuple(f"#Person{number}#" for number in range(1, 8)),
    input_field="dialogue",
    glue=" ",
    metrics=("rouge",),
)

E2E_NLG = Task(
    name="e2e_nlg",
    prompt=lambda record: f"{record['mr']}\n\nText:",
    references=lambda record: record["references"],
    symbols=(),
    input_field="mr",
    glue=" ",
    metrics=("bleu", "chrf", "rouge"),
)

SQL_CONTEXT = Task(
    name="sql_context",
    prompt=_sql_prompt,
    references=lambda record: (record["answer"],),
    symbols=(),
    input_field="asked",
    glue=" ",
    metrics=("sql",),
)

PAIRS = Task(
    name="pairs",
    prompt=lambda record: record["prompt"],
    references=lambda record: (record["response"],),
    symbols=(),
    input_field="prompt",
    glue="",
    metrics=("rouge",),
)

CHAT = ChatTask(
    name="chat",
    prompt=_chat_text,
    references=lambda record: (record["answer"],),
    symbols=(),
    input_field="messages",
    glue="",
    metrics=("rouge",),
)

_TASKS = {task.name: task for task in (DIALOGSUM, E2E_NLG, SQL_CONTEXT, PAIRS, CHAT)}
_OWN: dict[str, OwnTask] = {}


def get_task(name: str) -> Task:
    """Looks a task up. Raises: UserError for a name that is not known."""
    known = _TASKS | _OWN
    if name not in known:
        raise UserError(f"unknown task {name!r}: choose one of {', '.join(sorted(known))}")
    return known[name]


def task_of_run(name: str, directory: str | os.PathLike) -> Task:
    """The task that a run was trained for.

    Args:
      name: that its config gives.
      directory: of the run, for messages.

    Raises:
      UserError: a task of the user's own that this process has not registered.
    """
    if name not in _TASKS | _OWN:
        raise UserError(
            f"task {name!r} of {directory} is not registered here; call ssjax.register_task before "
            "ssjax.load, or name the file that does with --task_file"
        )
    return get_task(name)


def register_task(
    name: str,
    *,
    prompt: str,
    answer: str,
    metrics: Sequence[Metric] = ("rouge",),
    symbols: Sequence[str] = (),
    glue: str = " ",
    read: Callable[[Line], Line | None] | None = None,
) -> None:
    """Makes a task of your own known by its name, for `data.task` of an experiment.

    Its data is a directory, `data.path`, with train.jsonl, validation.jsonl and test.jsonl, or in
    another form that `ssjax.data.splits` knows: an object a line, whose columns are texts.

    >>> import ssjax
    >>> ssjax.register_task(
    ...     "shop",
    ...     prompt="{product}: {question}\\nAnswer:",
    ...     answer="answer",
    ... )
    >>> record = {"product": "kettle", "question": "Is it loud?", "answer": ("No.",)}
    >>> get_task("shop").prompt(record)
    'kettle: Is it loud?\\nAnswer:'

    An experiment file registers its task and names it: `c.data.task = "shop"`. A run keeps the name
    alone, so whoever opens it later registers the task again. The same definition may come twice.

    Args:
      name: of letters, digits, "_" and "-"; not that of another task.
      prompt: a template; {product} stands for the text of that column, {{ and }} for braces. A
        bare input, as `generate` takes it, stands for all from the first column to the last.
      answer: the column of the answer: a text, or a list of texts that are all right. Training
        takes the first.
      metrics: what answers are scored by, the main one first: rouge, bleu, chrf, or sql, for which
        the prompt has a column context of CREATE TABLE statements.
      symbols: strings that a tokenizer trained for the task never splits.
      glue: a text between prompt and answer.
      read: a function from the object of a line to its columns, for files in another form; a line
        is left out where it returns None.

    Raises:
      UserError: a definition that cannot work, or a name with another definition.
    """
    _check_name(name)
    columns = Columns(prompt, answer, read)
    _check_metrics(metrics, columns)
    task = OwnTask(
        name=name,
        prompt=columns.fill,
        references=columns.references,
        symbols=tuple(symbols),
        input_field=BARE_INPUT,
        glue=glue,
        metrics=tuple(metrics),
        columns=columns,
    )
    if name in _OWN and not task.same_as(_OWN[name]):
        raise UserError(f"task {name!r} is registered already, with another definition")
    _OWN[name] = task


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[\w-]+", name, re.ASCII):
        raise UserError(f"task name {name!r} must be of letters, digits, _ and -")
    if name in _TASKS:
        raise UserError(f"task {name!r} is one of ssjax's own; choose another name")


def _check_metrics(metrics: Sequence[str], columns: Columns) -> None:
    known = get_args(Metric)
    unknown = [metric for metric in metrics if metric not in known]
    if isinstance(metrics, str) or unknown or not metrics:
        raise UserError(f"metrics {metrics!r} must be some of {', '.join(known)}")
    if "sql" in metrics and "context" not in columns.names:
        raise UserError("metric sql runs answers on tables; give the prompt a column {context}")
