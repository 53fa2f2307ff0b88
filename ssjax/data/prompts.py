"""Prompts in one form: texts, token ids and chats, as people pass them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ssjax.config.arguments import is_whole
from ssjax.errors import UserError

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
    if inputs and (all(is_whole(each) for each in inputs) or is_chat(inputs)):
        return [_prompt(inputs, vocab_size, name)]
    return [_prompt(each, vocab_size, f"{name}[{i}]") for i, each in enumerate(inputs)]


def check_filled(prompts: Sequence[Prompt]) -> None:
    """Raises: UserError: a prompt without a word or an id, by its number."""
    for number, prompt in enumerate(prompts, start=1):
        if not (prompt.strip() if isinstance(prompt, str) else prompt):
            raise UserError(f"prompt {number} is empty; give at least one word")


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


def _prompt(value: Any, vocab_size: int, name: str) -> Prompt:
    if isinstance(value, str):
        return check_text(value, name)
    if isinstance(value, Sequence) and is_chat(value):
        return read_chat(value, name)
    if not isinstance(value, Sequence | np.ndarray) or not all(is_whole(each) for each in value):
        raise UserError(f"{name} is {_kind(value)}; give a text or a list of token ids")
    ids = tuple(int(each) for each in value)
    for token in ids:
        if not 0 <= token < vocab_size:
            raise UserError(f"{name} holds the id {token}; the model has ids 0 to {vocab_size - 1}")
    return ids


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__} ({value!r:.60})"
