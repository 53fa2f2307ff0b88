"""What a setting may be: its kind and range, declared beside it and checked here alone.

A setting is a field of a frozen dataclass, its type says all:

    num_heads: Annotated[int, Range(1)] = 6
    dropout: Annotated[float, Range(0, below=1)] = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    targets: tuple[str, ...] = ()

Whole numbers are those of int32 unless a range is narrower, since arrays hold them. Numbers are
finite.
"""

import ast
import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Iterable
from typing import Any

from ssjax.errors import UserError

INT32_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number."""

    low: float | None = None  # the least value
    high: float | None = None  # the greatest
    above: float | None = None  # less than any value
    below: float | None = None  # more than any

    def holds(self, value: float) -> bool:
        """Whether a finite value lies inside."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"from {self.low:g} to {self.high:g}"
        bounds = [
            (self.low, "of at least"),
            (self.above, "above"),
            (self.high, "of at most"),
            (self.below, "below"),
        ]
        return " and ".join(f"{word} {bound:g}" for bound, word in bounds if bound is not None)


_INT32 = Range(-INT32_MAX - 1, INT32_MAX)
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The types of the fields of a dataclass, with what is declared beside them."""
    return typing.get_type_hints(cls, include_extras=True)


def hint_of(cls: type, key: str) -> Any:
    """The type of a dotted key such as "model.num_heads".

    Raises:
      UserError: no such key, naming the closest ones; or a group of keys.
    """
    hint: Any = cls
    for name in key.split("."):
        hint = hints(hint).get(name) if dataclasses.is_dataclass(hint) else None
    if hint is None:
        raise UserError(unknown_key(keys(cls), key))
    if dataclasses.is_dataclass(hint):
        first = next(iter(hints(hint)))
        raise UserError(f"config: {key} is a group of keys, such as {key}.{first}")
    return hint


def keys(cls: type, group: str = "") -> list[str]:
    """Every dotted key below a dataclass."""
    found = []
    for name, hint in hints(cls).items():
        nested = dataclasses.is_dataclass(hint)
        found += keys(hint, f"{group}{name}.") if nested else [f"{group}{name}"]
    return found


def unknown_key(known: Iterable[str], key: str) -> str:
    """What to say of a key that does not exist: the closest ones that do."""
    known = list(known)
    last = key.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    ends = {other.rsplit(".", 1)[-1]: other for other in known}
    same_end = [other for other in known if other.rsplit(".", 1)[-1] == last]
    similar = [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.8)]
    named = ", ".join(dict.fromkeys([*same_end, *close, *similar]))
    advice = f"did you mean {named}?" if named else "python -m ssjax.train --help lists the keys"
    return f"config: unknown key {key}; {advice}"


def build(cls: type, values: Any, group: str = "") -> Any:
    """An instance of a dataclass from nested plain values, each checked.

    Args:
      cls: whose fields are settings, or dataclasses of them.
      values: what is not named keeps its default.
      group: dotted name of cls in messages, with a dot at its end; empty: the root.

    Raises:
      UserError: an unknown key, a wrong type or a value out of range.
    """
    if not isinstance(values, dict):
        raise UserError(f"config: {group[:-1] or 'it'} must be a group of keys, got {values!r:.80}")
    for name in values:
        if name not in hints(cls):
            raise UserError(unknown_key(keys(cls, group), f"{group}{name}"))
    built = {}
    for name, hint in hints(cls).items():
        if name not in values:
            continue  # older than this key; its default is what was done before there was one
        nested = dataclasses.is_dataclass(hint)
        check = (lambda value, hint, key: build(hint, value, f"{key}.")) if nested else checked
        built[name] = check(values[name], hint, f"{group}{name}")
    return cls(**built)


def check_fields(settings: Any, group: str) -> None:
    """Checks a dataclass that was made without `build`. Raises: UserError naming the key."""
    for name, hint in hints(type(settings)).items():
        checked(getattr(settings, name), hint, f"{group}{name}")


def checked(value: Any, hint: Any, key: str) -> Any:
    """A value in the type that its setting has.

    Args:
      value: plain, as JSON or Python has it.
      hint: of the setting, as in the module's docstring.
      key: names the setting.

    Raises:
      UserError: another type, or out of range; names key, value and what is wanted.
    """
    kind, bounds = _parts(hint)
    if typing.get_origin(kind) is tuple:
        element, bounds = _parts(typing.get_args(kind)[0])
        values = tuple(_as(element, each) for each in value) if _is_list(value) else (None,)
        if all(_fits(each, element, bounds) for each in values):
            return values
    else:
        converted = _as(kind, value)
        # A single text names something, where a stop string may hold any character.
        if _fits(converted, kind, bounds) and not (kind is str and "\0" in converted):
            return converted
    raise UserError(f"config: {key} must be {wanted(hint)}, got {value!r:.80}")


def parse(text: str, hint: Any, key: str) -> Any:
    """A value from the command line.

    Args:
      text: as typed; a tuple is written 1,2 or (1, 2).
      hint, key: as in `checked`.

    Raises:
      UserError: as `checked`.
    """
    kind, _ = _parts(hint)
    try:
        value = _parse_tuple(text, kind) if typing.get_origin(kind) is tuple else _parse(text, kind)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"config: {key} must be {wanted(hint)}, got {text!r:.80}") from None
    return checked(value, hint, key)


def wanted(hint: Any) -> str:
    """What a setting must be, in words."""
    kind, bounds = _parts(hint)
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(typing.get_args(kind))}"
    if typing.get_origin(kind) is tuple:
        return f"a tuple, each of it {wanted(typing.get_args(kind)[0])}"
    if kind is int:
        low = bounds.low if bounds and bounds.low is not None else _INT32.low
        high = bounds.high if bounds and bounds.high is not None else _INT32.high
        return f"{_KINDS[int]} from {low:.0f} to {high:.0f}"
    return f"{_KINDS[kind]} {bounds or ''}".strip()


def _parts(hint: Any) -> tuple[Any, Range | None]:
    """The type of a hint and the range beside it."""
    if typing.get_origin(hint) is typing.Annotated:
        kind, bounds = typing.get_args(hint)
        return kind, bounds
    return hint, None


def _fits(value: Any, kind: Any, bounds: Range | None) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return False
    if kind is int:
        return _INT32.holds(value) and (bounds is None or bounds.holds(value))
    if kind is float:
        return math.isfinite(value) and (bounds is None or bounds.holds(value))
    return True


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _as(kind: Any, value: Any) -> Any:
    """A whole number where a number is wanted becomes one."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1000 else math.inf
    return value


def _parse(text: str, kind: Any) -> Any:
    if kind is bool:
        named = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
        if text.lower() not in named:
            raise ValueError(text)
        return named[text.lower()]
    if kind in (int, float) and text.isascii():
        return kind(text)
    if kind in (int, float):  # digits of other scripts
        raise ValueError(text)
    return text


def _parse_tuple(text: str, kind: Any) -> tuple:
    element = _parts(typing.get_args(kind)[0])[0]
    if not text.strip() or text.strip() in ("()", "[]"):
        return ()
    if text.strip()[0] in "([\"'":
        value = ast.literal_eval(text.strip())
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    # Spaces of a text may mean something, as in a stop string.
    parts = [part if element is str else part.strip() for part in text.split(",")]
    return tuple(_parse(part, element) for part in parts)
