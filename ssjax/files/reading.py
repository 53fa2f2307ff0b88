"""Texts and JSON of users, read in one way.

A text is UTF-8, with or without a byte order mark. Its lines end at LF or CRLF and nowhere else:
a JSON string, a prompt or a row of a table may hold U+2028, U+0085 or a form feed.
"""

import json
import os
from typing import Any

from ssjax.errors import UserError
from ssjax.files import places


def read_bytes(path: str | os.PathLike, hint: str = "") -> bytes:
    """A file's content.

    Args:
      path: of the file.
      hint: how to mend it where it cannot be read.

    Raises:
      UserError: it cannot be read, naming the path.
    """
    try:
        return places.of(path).read_bytes()
    except OSError as error:
        raise UserError(_with_hint(f"{path}: {error.strerror}", hint)) from None
    except ValueError as error:  # a path with a null character
        raise UserError(_with_hint(f"{str(path)!r}: {error}", hint)) from None


def decode_text(content: bytes, where: str) -> str:
    """UTF-8 as text, without its byte order mark.

    Args:
      content: the bytes.
      where: names the place in error messages.

    Raises:
      UserError: not UTF-8; names the line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{where}, line {line}: not UTF-8; convert the file") from None


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends; blank ones keep their place.

    What follows the last line end is a line if there is any of it.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def read_lines(path: str | os.PathLike, hint: str = "") -> list[str]:
    """The lines of a text file, as `split_lines`. Raises: UserError naming path and line."""
    return split_lines(decode_text(read_bytes(path, hint), str(path)))


def parse_json(content: str | bytes, where: str, hint: str = "") -> Any:
    """The value of a JSON text.

    Args:
      content: the text, or its bytes.
      where: names the place in error messages.
      hint: how to mend it.

    Raises:
      UserError: not UTF-8, not JSON, nested too deeply, or a number too long to be read.
    """
    text = decode_text(content, where) if isinstance(content, bytes) else content
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}" if "\n" in text.strip() else where
        raise UserError(_with_hint(f"{place}: not JSON ({error.msg})", hint)) from None
    except RecursionError:
        raise UserError(_with_hint(f"{where}: JSON nested too deeply", hint)) from None
    except ValueError as error:  # a whole number of thousands of digits
        raise UserError(_with_hint(f"{where}: not JSON ({error})", hint)) from None


def parse_json_object(content: str | bytes, where: str, hint: str = "") -> dict[str, Any]:
    """As `parse_json`, for a text that holds one object. Raises: UserError."""
    value = parse_json(content, where, hint)
    if not isinstance(value, dict):
        raise UserError(_with_hint(f"{where}: not a JSON object", hint))
    return value


def read_json_object(path: str | os.PathLike, hint: str = "") -> dict[str, Any]:
    """The object that a JSON file holds. Raises: UserError naming the path."""
    return parse_json_object(read_bytes(path, hint), str(path), hint)


def to_json(value) -> str:
    """Plain values as the text of a JSON file of ours."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _with_hint(message: str, hint: str) -> str:
    return f"{message}; {hint}" if hint else message
