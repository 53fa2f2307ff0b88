"""Files of prompts, one a line, and outputs as lines.

A text file holds a prompt a line, in which \\n stands for a line break and all else for itself. In
a file whose name ends in .jsonl every line is a JSON text, an object with "prompt", a text, or one
with "messages", a chat; so a prompt may hold anything.

A blank line is a prompt without text. It keeps its place: output line N belongs to input line N.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from ssjax.data.prompts import Prompt, check_text, read_chat
from ssjax.errors import UserError
from ssjax.files.reading import (
    decode_text,
    parse_json,
    parse_json_object,
    read_bytes,
    read_lines,
    split_lines,
)

# What some program or other takes for the end of a line, and the backslash, as JSON escapes them.
_ESCAPES = {
    ord(character): json.dumps(character)[1:-1]
    for character in "\\\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
}


def read_file(path: str | os.PathLike) -> list[Prompt]:
    """The prompts of a file, a blank line among them as "".

    Raises:
      UserError: it cannot be read, or holds something else, naming the line.
    """
    content = read_bytes(path)
    if str(path).lower().endswith(".jsonl"):
        return [
            _record(line, f"{path}, line {number}")
            for number, line in enumerate(split_lines(decode_text(content, str(path))), start=1)
        ]
    return parse_lines(content, str(path))


def parse_lines(content: bytes, where: str) -> list[str]:
    """The prompts of a text, as `read_file`. where: names it in error messages."""
    lines = [from_line(line) for line in split_lines(decode_text(content, where))]
    return ["" if is_blank(line) else line for line in lines]


def read_questions(path: str | os.PathLike) -> list[str]:
    """The first turns of a Spec-Bench or MT-bench question file, at least one.

    Raises:
      UserError: not such a file; names the line.
    """
    texts = []
    lines = read_lines(path, "give a file with a JSON object a line")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        turns = parse_json_object(line, where).get("turns")
        first = turns[0] if isinstance(turns, list) and turns else None
        if not isinstance(first, str) or is_blank(first):
            raise UserError(f'{where}: must be a JSON object with "turns", a list of texts')
        texts.append(check_text(first, where))
    if not texts:
        raise UserError(f"{path} holds no questions")
    return texts


def from_line(line: str) -> str:
    """The prompt that a line stands for."""
    return line.replace("\\n", "\n")


def as_line(text: str) -> str:
    """A text as one line for any reader.

    Line ends of every kind and backslashes are escaped as in JSON (\\n, \\r, \\u2028, \\\\), so
    that the text can be told from it.
    """
    return text.translate(_ESCAPES)


def is_blank(prompt: Prompt) -> bool:
    """Whether there is nothing to decode."""
    return isinstance(prompt, str) and not prompt.strip()


def _record(line: str, where: str) -> Prompt:
    value: Any = parse_json(line, where) if line.strip() else ""
    if isinstance(value, Mapping) and "messages" in value:
        return read_chat(value["messages"], f'{where}: "messages"')
    text = value.get("prompt") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise UserError(
            f'{where}: must be a JSON text, an object with "prompt", a text, or one with '
            '"messages", a list'
        )
    return "" if is_blank(text) else check_text(text, where)
