"""Values of JSON objects that others wrote, checked as they are taken out."""

import dataclasses
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from ssjax.config.ranges import INT32_MAX
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


_SMALLEST, _LARGEST = 1.2e-38, 3.4e38  # of float32

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 80
_shown.maxlevel = 2


def show(value) -> str:
    """A value as part of one line, however large it is."""
    return json.dumps(value) if isinstance(value, bool | None) else _shown.repr(value)


@dataclasses.dataclass(frozen=True)
class ConfigJson:
    """An object in a config.json.

    Attributes:
      content: as it was parsed.
      prefix: of its keys in messages, such as "rope_scaling.".
    """

    content: Mapping[str, Any]
    prefix: str = ""

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self.content.get(key) is not None

    def with_defaults(self, **values) -> "ConfigJson":
        """The same with values for keys that are not there; a null stays."""
        return dataclasses.replace(self, content={**values, **self.content})

    def whole(
        self, key: str, default: int | None = None, least: int = 1, most: int = INT32_MAX
    ) -> int:
        """A whole number from `least` to `most`. Raises: UserError, also without a default."""
        value = self._value(key, default)
        right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        if not right and self.has(key):
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, most: float = _LARGEST) -> float:
        """A number above 0, `most` at most. Raises: UserError, as `whole`."""
        value = self._value(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and _SMALLEST <= value <= most) and self.has(key):
            limit = "" if most == _LARGEST else f" and at most {most:g}"
            raise self.wrong(key, f"a number above 0{limit}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """true or false. Raises: UserError, as `whole`."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text. Raises: UserError, as `whole`."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, empty where it is left out. Raises: UserError: something else."""
        value = self.content.get(key)
        value = [] if value is None else value
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self.wrong(key, "a list of texts")
        return tuple(value)

    def group(self, key: str) -> "ConfigJson":
        """An object, empty where it is left out. Raises: UserError: something else."""
        value = self.content.get(key)
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return ConfigJson(value, f"{self.prefix}{key}.")

    def refuse(self, **wanted) -> None:
        """Raises UserError where a key has another value than the only one that we compute."""
        for key, value in wanted.items():
            found = self.content.get(key)
            alike = isinstance(found, bool) == isinstance(value, bool)
            if found is not None and not (alike and found == value):
                raise self.wrong(key, f"{show(value)}: nothing else is supported")

    def wrong(self, key: str, wanted: str) -> UserError:
        """The error that a value is not what is wanted."""
        value = show(self.content.get(key))
        return UserError(f'"{self.prefix}{key}" is {value}, but must be {wanted}')

    def _value(self, key, default):
        value = self.content.get(key)
        if value is None and default is None:
            raise UserError(f'"{self.prefix}{key}" is missing')
        return default if value is None else value
