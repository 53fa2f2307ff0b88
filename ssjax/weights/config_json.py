"""The config.json of a model, read from its directory or made from a GGUF file's metadata."""

from pathlib import Path
from typing import Any

from ssjax.errors import UserError
from ssjax.files.gguf import is_gguf, read_header
from ssjax.files.reading import read_json_object, to_json
from ssjax.weights import gguf
from ssjax.weights.text_part import text_values

_DEEPEST = 50  # objects and lists within each other in a config.json


def read_values(path: Path) -> dict[str, Any]:
    """The config.json of the text model in a directory or a GGUF file.

    Raises:
      UserError: as `read_config_json`, `text_values` and `gguf.config_values`.
    """
    if is_gguf(path):
        return gguf.config_values(read_header(path))
    return text_values(read_config_json(path), str(place(path)))


def place(path: Path) -> Path:
    """Where the values stand, for messages."""
    return path if is_gguf(path) else path / "config.json"


def read_config_json(directory: Path) -> dict[str, Any]:
    """The config.json of a model directory.

    Raises:
      UserError: missing, not a JSON object, or one that could not be written again.
    """
    path = directory / "config.json"
    values = read_json_object(path, "give a Hugging Face model directory or a hub id")
    level = [values]
    for _ in range(_DEEPEST):
        inner = [entry.values() if isinstance(entry, dict) else entry for entry in level]
        level = [value for part in inner for value in part if isinstance(value, dict | list)]
    if level:
        raise UserError(f"{path}: JSON nested too deeply; it is no model's config")
    try:
        to_json(values).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: a text in it has half of a character; correct it") from None
    return values


def is_model_directory(directory: Path) -> bool:
    """Whether config.json there is one of Hugging Face."""
    if not (directory / "config.json").is_file():
        return False
    values = read_config_json(directory)
    return "architectures" in values or "model_type" in values
