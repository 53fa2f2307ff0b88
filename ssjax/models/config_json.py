"""Values of somebody else's config.json, checked as they are read.

The file may hold anything. Each getter names the key, the value and what is wanted where the
value is of another kind; null counts as left out. Numbers are finite and fit into 32 bits, which
is what the model computes with.
"""

import dataclasses
import json
import reprlib
from collections.abc import Mapping
from typing import Any

from ssjax.errors import UserError
from ssjax.ranges import INT32_MAX

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
