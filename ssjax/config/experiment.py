"""An experiment: a Python file that states a run, and what the command line changes of it.

    --config experiments/dialogsum.py:small --config.train.num_steps=100

What follows a colon is the argument of `get_config`. This is the command line of ml_collections'
config_flags, read here because a key that does not exist, a value of the wrong kind and an error in
the file each deserve one line that names the place.
"""

import contextlib
import dataclasses
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from ssjax import config as config_lib
from ssjax.config import Config, ranges
from ssjax.errors import UserError


def load(name: str, overrides: Mapping[str, str]) -> Config:
    """The config of an experiment file.

    Args:
      name: a path, with :VARIANT if the file has variants.
      overrides: text by dotted key.

    Raises:
      UserError: no such file, an error in it, or a value that cannot work.
    """
    changes = _parsed(overrides)
    path, colon, variant = name.partition(":")
    path = Path(path)
    with _file_of_user(path):
        config = _get_config(path, variant if colon else None)
        _set(config, changes)  # before what the file derives from them is computed
        values = config.to_dict()
    return config_lib.from_dict(values)


def changed(config: Config, overrides: Mapping[str, str]) -> Config:
    """A config, such as that of a run, with what the command line changes of it.

    Args:
      config: of the run.
      overrides: text by dotted key.

    Raises:
      UserError: a value that cannot work.
    """
    values = dataclasses.asdict(config)
    _set(values, _parsed(overrides))
    return config_lib.from_dict(values)


def _parsed(overrides: Mapping[str, str]) -> dict[str, Any]:
    return {
        key: ranges.parse(text, ranges.hint_of(Config, key), key) for key, text in overrides.items()
    }


def _set(groups: ConfigDict | dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        *above, last = key.split(".")
        group = groups
        for each in above:
            group = group[each]
        group[last] = value


def run(name: str) -> None:
    """Runs a file for what it does when it is read, such as `ssjax.register_task`.

    Args:
      name: a path; an experiment, with its :VARIANT or without, is one.

    Raises:
      UserError: no such file, or an error in it.
    """
    path = Path(name.partition(":")[0])
    with _file_of_user(path):
        _module_of(path)


@contextlib.contextmanager
def _file_of_user(path: Path) -> Iterator[None]:
    """What is wrong with a file, or with the code in it, as one line. Raises: UserError."""
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"cannot read the experiment {path}: it {problem}; see experiments/")
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # it may raise anything
        raise UserError(f"the experiment {_place(path, error)}: {_reason(error)}") from error


def split_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes --config.KEY=VALUE, --config.KEY VALUE and --noconfig.KEY out of a command line.

    Returns:
      The other arguments, and the text of each key; of a key given twice the last.

    Raises:
      UserError: a key without a value.
    """
    rest, overrides = [], {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, text = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name.startswith(("config.", "noconfig.")):
            rest.append(argument)
            continue
        key = name.partition(".")[2]
        if name.startswith("noconfig."):
            text = "False"
        elif not equals and _is_switch(key, waiting):
            text = "True"
        elif not equals:
            if not waiting:
                raise UserError(f"--config.{key} has no value; write --config.{key}=VALUE")
            text = waiting.pop(0)
        overrides[key] = text
    return rest, overrides


def _is_switch(key: str, following: list[str]) -> bool:
    """Whether a key without a value is turned on by being named."""
    follows = following and not following[0].startswith("-")
    return key in ranges.keys(Config) and ranges.hint_of(Config, key) is bool and not follows


def _get_config(path: Path, variant: str | None) -> ConfigDict:
    """The config that a file states. Raises: UserError, or what the file raises."""
    module = _module_of(path)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"the experiment {path} defines no function get_config")
    config = module.get_config() if variant is None else module.get_config(variant)
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"the experiment {path}: get_config must return what ssjax.config.default_config() "
            f"gave, changed; it returns {type(config).__name__}"
        )
    missing = sorted({*ranges.keys(Config)} - {*_keys(config)})
    if missing:
        raise UserError(
            f"the experiment {path}: get_config returns a config without {missing[0]}; begin with "
            "ssjax.config.default_config()"
        )
    return config


def _module_of(path: Path) -> ModuleType:
    """Runs a file. Raises: UserError, or what the file raises."""
    spec = importlib.util.spec_from_file_location("ssjax_experiment", path.absolute())
    if spec is None or spec.loader is None:
        raise UserError(f"the experiment {path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses of the file look for themselves
    spec.loader.exec_module(module)
    return module


def _keys(config: ConfigDict, group: str = "") -> list[str]:
    found = []
    for name, value in config.items():
        nested = isinstance(value, ConfigDict)
        found += _keys(value, f"{group}{name}.") if nested else [f"{group}{name}"]
    return found


def _place(path: Path, error: BaseException) -> str:
    """The file and the last line of it that led to an error."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{path}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
