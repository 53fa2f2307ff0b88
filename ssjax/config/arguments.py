"""Values that are passed from Python, checked as those of a config file are."""

import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssjax.config import DecodeConfig, addresses
from ssjax.config.ranges import INT32_MAX, checked, hints, unknown_key
from ssjax.errors import UserError


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
        is_whole(value) and abs(int(value)) <= INT32_MAX for value in values
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
    if not is_whole(value) or not least <= int(value) <= INT32_MAX:
        raise UserError(f"{name} must be a whole number of at least {least}, got {value!r:.80}")
    return int(value)


def read_path(value: Any, name: str) -> str | Path:
    """A path of an argument; an address stays a text. Raises: UserError naming it."""
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise UserError(f"{name} must be a path, got {value!r:.80}")
    return str(value) if addresses.scheme(str(value)) else Path(value)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of Python or NumPy, or an array of one, not a truth."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True
