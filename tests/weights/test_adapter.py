"""What is wrong with a portable directory is one line with its file."""

import json

import jax.numpy as jnp
import pytest

from ssjax.config import Config
from ssjax.errors import UserError
from ssjax.weights import adapter


@pytest.fixture
def directory(tmp_path):
    leaves = {"stream_embedding": jnp.ones((2, 4))}
    adapter.write_addition(tmp_path, adapter.Addition(Config(), leaves, "abc"), None)
    return tmp_path


def test_what_is_written_is_read(directory):
    addition = adapter.read_addition(directory, None)
    assert (addition.config, addition.base_fingerprint) == (Config(), "abc")
    assert addition.leaves["stream_embedding"].shape == (2, 4)
    assert adapter.read_config(directory) == Config()


@pytest.mark.parametrize(
    "changes, message",
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not UTF-8"),
        (b'{"a":' * 100_000, "JSON nested too deeply"),
        ({"format": 2}, "not of format 1"),
        ({"format": [1]}, "not of format 1"),
        ({"base_fingerprint": None}, "not of format 1"),
        ({"base_fingerprint": 3}, '"base_fingerprint" is 3, but must be a text; export it again'),
        ({"config": None}, '"config" is null, but must be an object'),
        ({"config": 3}, '"config" is 3, but must be an object'),
        ({"config": {"model": 3}}, "model must be"),
        ({"config": {"nonsense": 3}}, "unknown key"),
    ],
)
def test_a_malformed_description(directory, changes, message):
    path = directory / "ssjax.json"
    if isinstance(changes, bytes):
        path.write_bytes(changes)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message) as error:
        adapter.read_addition(directory, None)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_missing_and_damaged_tensors(directory):
    path = directory / "streams.safetensors"
    path.write_bytes(b"abc")
    with pytest.raises(UserError, match="a damaged adapter .*; export it again"):
        adapter.read_addition(directory, None)
    path.unlink()
    with pytest.raises(UserError, match=r"streams.safetensors: No such file .*; give a directory"):
        adapter.read_addition(directory, None)
