"""The tasks: how a record becomes prompt ids and target ids.

A record is one element of `ssjax.data.builders.open_source`: a dict of `str` and, for a list of
texts, `tuple[str, ...]`. Training and decoding call the same `prompt_ids`. Nothing here cuts.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ssjax.data.tokenizers.chat_template import Messages
from ssjax.data.tokenizers.tokenizer import Tokenizer
from ssjax.errors import UserError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """What the model reads and what it should write, as text that continues text."""

    name: str
    prompt: Callable[[Record], str]  # whole, for people too
    references: Callable[[Record], tuple[str, ...]]  # the first is the training target
    symbols: tuple[str, ...]  # strings that a tokenizer trained for the task never splits
    input_field: str  # the field that a user gives when there is no record
    glue: str  # between prompt and answer

    def record_from_input(self, text: str) -> Record:
        """The record for a bare input, such as a dialogue."""
        return {self.input_field: text}

    def prompt_ids(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        """Ids of the prompt, with what stands before every prompt."""
        return [*tokenizer.prefix_ids, *tokenizer.encode(self.prompt(record))]

    def target_ids(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        """Ids that should follow the prompt, end of sequence included."""
        text = self.glue + self.references(record)[0]
        return [*tokenizer.encode_continuation(text), tokenizer.eos_id]


@dataclass(frozen=True)
class ChatTask(Task):
    """One answer of an assistant, in the form of the tokenizer's chat template.

    The target is what the template writes behind the prompt for the answer, up to the token
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

    def target_ids(self, record: Record, tokenizer: Tokenizer) -> list[int]:
        """Ids of the answer; the token that ends the turn is the last.

        Raises:
          UserError: as `prompt_ids`, or the template writes the chat so far in another way once
            it is answered.
        """
        with _naming_line(record, tokenizer):
            return self._target_ids(record, tokenizer)

    def _target_ids(self, record: Record, tokenizer: Tokenizer) -> list[int]:
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
)

E2E_NLG = Task(
    name="e2e_nlg",
    prompt=lambda record: f"{record['mr']}\n\nText:",
    references=lambda record: record["references"],
    symbols=(),
    input_field="mr",
    glue=" ",
)

SQL_CONTEXT = Task(
    name="sql_context",
    prompt=_sql_prompt,
    references=lambda record: (record["answer"],),
    symbols=(),
    input_field="asked",
    glue=" ",
)

PAIRS = Task(
    name="pairs",
    prompt=lambda record: record["prompt"],
    references=lambda record: (record["response"],),
    symbols=(),
    input_field="prompt",
    glue="",
)

CHAT = ChatTask(
    name="chat",
    prompt=_chat_text,
    references=lambda record: (record["answer"],),
    symbols=(),
    input_field="messages",
    glue="",
)

_TASKS = {task.name: task for task in (DIALOGSUM, E2E_NLG, SQL_CONTEXT, PAIRS, CHAT)}


def get_task(name: str) -> Task:
    """Looks a task up. Raises: UserError for a name that is not known."""
    if name not in _TASKS:
        raise UserError(f"unknown task {name!r}: choose one of {', '.join(sorted(_TASKS))}")
    return _TASKS[name]
