"""Values of JSON objects that others wrote, taken out by name and type.

A value of another type is one line that names the file, the key and the value. What is absent or
null is None everywhere: published files use both for "not said".
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ssjax.errors import UserError

_SHOWN = 60  # characters of a value in a message
_ID = re.compile(r"[0-9]{1,18}")  # int() takes digits of every script, signs and underscores


class Fields:
    """A JSON object. Every reader raises UserError where the value has another type."""

    def __init__(self, values: Mapping[str, Any], where: str, hint: str):
        """Args: values: the object; where: names it in messages; hint: how to mend it."""
        self.values = values
        self.where = where
        self._hint = hint

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def error(self, key: str, wanted: str, value: Any) -> UserError:
        """A line about a value; wanted: what should be there, such as "a text"."""
        try:
            shown = _short(json.dumps(value))
        except RecursionError:
            shown = f"a deeply nested {type(value).__name__}"
        name = _short(json.dumps(key)[1:-1])  # of any text, on one line
        return UserError(f"{self.where}: {name} should be {wanted}, found {shown}; {self._hint}")

    def text(self, key: str) -> str | None:
        return self._of(key, "a text", lambda value: isinstance(value, str))

    def flag(self, key: str) -> bool | None:
        return self._of(key, "true or false", lambda value: isinstance(value, bool))

    def ids(self, key: str) -> tuple[int, ...]:
        """Whole numbers, given as one, as a list or not at all; null in a list is passed over."""
        value = self.values.get(key)
        numbers = [n for n in (value if isinstance(value, list) else [value]) if n is not None]
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            raise self.error(key, "a whole number or a list of them", value)
        return tuple(numbers)

    def members(self, key: str) -> list[tuple[str, Any]]:
        """What a list or an object holds, each with a name for messages; [] if absent."""
        value = self.values.get(key)
        if isinstance(value, dict):
            return [(f"{key}.{name}", member) for name, member in value.items()]
        if isinstance(value, list):
            return [(f"{key}[{number}]", member) for number, member in enumerate(value)]
        if value is None:
            return []
        raise self.error(key, "a list or an object", value)

    def object(self, key: str) -> "Fields":
        """An object; an empty one if absent."""
        value = self._of(key, "an object", lambda value: isinstance(value, dict))
        return Fields(value or {}, f"{self.where}: {key}", self._hint)

    def _of(self, key: str, wanted: str, is_right: Callable[[Any], bool]) -> Any:
        value = self.values.get(key)
        if value is not None and not is_right(value):
            raise self.error(key, wanted, value)
        return value


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def parse_id(text: str) -> int | None:
    """A token id that a JSON object has as a key; None: it is none."""
    return int(text) if _ID.fullmatch(text) else None
