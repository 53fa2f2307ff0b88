"""Values of JSON objects that others wrote, checked as they are taken out."""

import dataclasses
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from ssjax.config.ranges import INT32_MAX
from ssjax.errors import UserError

REQUIRED: Final = object()  # in place of a default: the key has to be there

_ID = re.compile(r"[0-9]{1,18}")  # int() takes digits of every script, signs and underscores
_SMALLEST, _LARGEST = 1.2e-38, 3.4e38  # of float32
_LONGEST_NAME = 60  # characters of a key in a message

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 80
_shown.maxlevel = 2


def show(value) -> str:
    """A value as part of one line, however large it is."""
    return json.dumps(value) if isinstance(value, bool | None) else _shown.repr(value)


def parse_id(text: str) -> int | None:
    """A token id that a JSON object has as a key; None: it is none."""
    return int(text) if _ID.fullmatch(text) else None


@dataclasses.dataclass(frozen=True)
class Fields:
    """A JSON object.

    Every reader takes a null for a key that is left out. It raises UserError where the value is
    another one than wanted, and where there is none and no default is given.

    Attributes:
      values: as they were parsed.
      where: the file, for messages; empty: whoever catches the error names it.
      hint: how to mend it; empty: the message is enough.
      prefix: of its keys in messages, such as "rope_scaling.".
    """

    values: Mapping[str, Any]
    where: str = ""
    hint: str = ""
    prefix: str = ""

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self.values.get(key) is not None

    def with_defaults(self, **values) -> "Fields":
        """The same with values for keys that are not there; a null stays."""
        return dataclasses.replace(self, values={**values, **self.values})

    def whole(self, key: str, default: Any = REQUIRED, least: int = 1, most: int = INT32_MAX):
        """A whole number from `least` to `most`."""
        wanted = f"a whole number from {least} to {most}"
        return self._value(key, default, wanted, lambda n: _is_whole(n) and least <= n <= most)

    def number(self, key: str, default: Any = REQUIRED, most: float = _LARGEST) -> float:
        """A number above 0, `most` at most."""
        wanted = "a number above 0" + ("" if most == _LARGEST else f" and at most {most:g}")
        return float(self._value(key, default, wanted, lambda n: _is_positive(n) and n <= most))

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of so many numbers above 0."""
        wanted = f"a list of {length} numbers above 0"
        found = self._value(
            key,
            REQUIRED,
            wanted,
            lambda value: (
                isinstance(value, list)
                and len(value) == length
                and all(_is_positive(number) and number <= _LARGEST for number in value)
            ),
        )
        return tuple(float(number) for number in found)

    def flag(self, key: str, default: Any = REQUIRED):
        """true or false."""
        return self._value(key, default, "true or false", lambda value: isinstance(value, bool))

    def text(self, key: str, default: Any = REQUIRED):
        """A text."""
        return self._value(key, default, "a text", lambda value: isinstance(value, str))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, empty where it is left out."""
        return tuple(self._value(key, [], "a list of texts", _are_texts))

    def ids(self, key: str) -> tuple[int, ...]:
        """Whole numbers, given as one, as a list or not at all; null in a list is passed over."""
        value = self.values.get(key)
        numbers = [n for n in (value if isinstance(value, list) else [value]) if n is not None]
        if not all(map(_is_whole, numbers)):
            raise self.wrong(key, "a whole number or a list of them")
        return tuple(numbers)

    def group(self, key: str) -> "Fields":
        """An object, empty where it is left out."""
        values = self._value(key, {}, "an object", lambda value: isinstance(value, Mapping))
        return dataclasses.replace(self, values=values, prefix=f"{self.prefix}{key}.")

    def members(self, key: str) -> "Fields":
        """What a list or an object holds, by names for messages; empty where it is left out."""
        values = self._value(
            key, {}, "a list or an object", lambda value: isinstance(value, Mapping | list)
        )
        if isinstance(values, Mapping):
            named = {f"{key}.{name}": member for name, member in values.items()}
        else:
            named = {f"{key}[{number}]": member for number, member in enumerate(values)}
        return dataclasses.replace(self, values=named)

    def refuse(self, **wanted) -> None:
        """Raises UserError where a key has another value than the only one that we compute."""
        for key, value in wanted.items():
            found = self.values.get(key)
            alike = isinstance(found, bool) == isinstance(value, bool)
            if found is not None and not (alike and found == value):
                raise self.wrong(key, f"{show(value)}: nothing else is supported")

    def wrong(self, key: str, wanted: str) -> UserError:
        """The error that a value is not what is wanted."""
        return self._error(key, f"is {show(self.values.get(key))}, but must be {wanted}")

    def _value(self, key: str, default: Any, wanted: str, is_right: Callable[[Any], bool]) -> Any:
        value = self.values.get(key)
        if value is None and default is REQUIRED:
            raise self._error(key, "is missing")
        if value is not None and not is_right(value):
            raise self.wrong(key, wanted)
        return default if value is None else value

    def _error(self, key: str, problem: str) -> UserError:
        name = json.dumps(self.prefix + key)[1:-1]  # of any text, on one line
        name = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
        place, hint = self.where and f"{self.where}: ", self.hint and f"; {self.hint}"
        return UserError(f'{place}"{name}" {problem}{hint}')


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and value >= _SMALLEST


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
