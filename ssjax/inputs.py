"""What people pass to `Run.generate`: one prompt or several, as text, token ids or chats."""

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssjax.config import DecodeConfig
from ssjax.errors import UserError
from ssjax.ranges import INT32_MAX, checked, hints, unknown_key

Chat = tuple[Mapping[str, Any], ...]  # messages, at least one: {"role": "user", "content": "Hi"}
Prompt = str | tuple[int, ...] | Chat


def read_prompts(inputs: Any, vocab_size: int, name: str = "inputs") -> list[Prompt]:
    """Prompts in one form.

    Args:
      inputs: a text, a sequence of ids or one of messages for one prompt; for several a sequence
        of any of these.
      vocab_size: ids lie below it.
      name: of the argument, for messages.

    Raises:
      UserError: something else, naming the argument and the place in it.
    """
    if isinstance(inputs, str):
        return [_prompt(inputs, vocab_size, name)]
    if not isinstance(inputs, Iterable) or isinstance(inputs, bytes | Mapping):
        raise UserError(f"{name} is {_kind(inputs)}; give a text, a list of texts, or token ids")
    inputs = list(inputs)
    if inputs and (all(_is_id(each) for each in inputs) or is_chat(inputs)):
        return [_prompt(inputs, vocab_size, name)]
    return [_prompt(each, vocab_size, f"{name}[{i}]") for i, each in enumerate(inputs)]


def read_chat(messages: Any, name: str) -> Chat:
    """The messages of a chat. name: of the argument or the place in a file. Raises: UserError."""
    if not isinstance(messages, Sequence) or not is_chat(messages):
        raise UserError(f"{name} is {_kind(messages)}; give a list of messages")
    for number, message in enumerate(messages, start=1):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise UserError(f'{name}: message {number} needs "{key}", a text')
            check_text(message[key], f"{name}, message {number}")
    return tuple(dict(message) for message in messages)


def is_chat(prompt: Any) -> bool:
    """Whether a sequence holds messages, at least one, and nothing else."""
    return bool(prompt) and all(isinstance(each, Mapping) for each in prompt)


def check_text(text: str, name: str) -> str:
    """The text itself. Raises: UserError: it holds something that is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{name} holds what is no character (half of a surrogate pair, or bytes that are not "
            "UTF-8); give text"
        ) from None
    return text


def read_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `DecodeConfig` as they were passed, in the types that those have.

    One string or id stands for a tuple of one, NumPy's numbers for Python's.

    Raises:
      UserError: an unknown field, a wrong type or a value out of range, naming the argument.
    """
    known = hints(DecodeConfig)
    read = {}
    for name, value in changes.items():
        if name not in known:
            raise UserError(unknown_key(known, name).removeprefix("config: "))
        value = value.item() if isinstance(value, np.generic) else value
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if isinstance(getattr(DecodeConfig, name), tuple) and isinstance(value, str | int):
            value = (value,)
        try:
            read[name] = checked(value, known[name], name)
        except UserError as error:
            raise UserError(str(error).removeprefix("config: ")) from None
    return read


def read_seeds(seeds: Any, count: int) -> list[int] | None:
    """Seeds, one for each prompt; None: the config's for all. Raises: UserError."""
    if seeds is None:
        return None
    values = list(seeds) if isinstance(seeds, Sequence | np.ndarray) else [seeds]
    if len(values) != count or not all(
        _is_id(value) and abs(int(value)) <= INT32_MAX for value in values
    ):
        raise UserError(
            f"seeds must be {count} whole number{'s' * (count != 1)} of int32, one for each "
            f"prompt, got {seeds!r:.80}"
        )
    return [int(value) for value in values]


def read_numbers(numbers: Any, count: int) -> list[int]:
    """Places of prompts among more of them; None: 0, 1, ... Raises: UserError."""
    if numbers is None:
        return list(range(count))
    if not isinstance(numbers, Sequence | np.ndarray) or len(numbers) != count:
        raise UserError(f"numbers must be one for each of {count} prompts, got {numbers!r:.80}")
    return [read_count(number, "numbers", least=0) for number in numbers]


def read_count(value: Any, name: str, *, least: int) -> int:
    """A whole number of an argument. Raises: UserError naming it."""
    if not _is_id(value) or not least <= int(value) <= INT32_MAX:
        raise UserError(f"{name} must be a whole number of at least {least}, got {value!r:.80}")
    return int(value)


def read_path(value: Any, name: str) -> Path:
    """A path of an argument. Raises: UserError naming it."""
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise UserError(f"{name} must be a path, got {value!r:.80}")
    return Path(value)


def _prompt(value: Any, vocab_size: int, name: str) -> Prompt:
    if isinstance(value, str):
        return check_text(value, name)
    if isinstance(value, Sequence) and is_chat(value):
        return read_chat(value, name)
    if not isinstance(value, Sequence | np.ndarray) or not all(_is_id(each) for each in value):
        raise UserError(f"{name} is {_kind(value)}; give a text or a list of token ids")
    ids = tuple(int(each) for each in value)
    for token in ids:
        if not 0 <= token < vocab_size:
            raise UserError(f"{name} holds the id {token}; the model has ids 0 to {vocab_size - 1}")
    return ids


def _is_id(value: Any) -> bool:
    """Whether a value is a whole number of Python or NumPy, or an array of one, not a truth."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__} ({value!r:.60})"
