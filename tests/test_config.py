"""The config: one default per key, strict values, and a golden for every experiment."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from ssjax import config as config_lib
from ssjax.config import Config
from ssjax.errors import UserError

HERE = Path(__file__).parent


def _goldens_module():
    spec = importlib.util.spec_from_file_location("update_goldens", HERE / "update_goldens.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


goldens = _goldens_module()
VARIANTS = [(n, v) for n, variants in goldens.EXPERIMENTS.items() for v in variants]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_resolved_config_equals_its_golden(name, variant):
    """After a wanted change: python tests/update_goldens.py, and read the diff."""
    golden = (HERE / "golden" / f"{name}.{variant}.json").read_text()
    assert goldens.resolved(name, variant) == golden


def test_every_experiment_has_goldens():
    files = {path.stem for path in (HERE.parent / "experiments").glob("*.py")}
    assert files == set(goldens.EXPERIMENTS)


def test_round_trip_through_json():
    values = config_lib.to_dict(Config())
    assert config_lib.from_dict(json.loads(json.dumps(values))) == Config()
    assert config_lib.from_config_dict(config_lib.default_config()) == Config()
    assert hash(Config()) == hash(config_lib.from_dict(values))


def test_config_dict_is_locked_and_typed():
    c = config_lib.default_config()
    with pytest.raises((AttributeError, KeyError)):
        c.model.width = 3
    with pytest.raises(TypeError):
        c.model.embed_dim = "wide"


@pytest.mark.parametrize(
    ("group", "key", "value", "message"),
    [
        ("model", "num_kv_heads", 4, "model.num_heads 6 is not a multiple"),
        ("model", "head_dim", 7, "model.head_dim 7 must be even"),
        ("model", "dtype", "float16", "model.dtype"),
        ("model", "embed_dim", 0, "model.embed_dim must be positive"),
        ("model", "embed_dim", 1.5, "model.embed_dim must be a int"),
        ("model", "tie_embeddings", 1, "model.tie_embeddings must be a bool"),
        ("streams", "num_stream_layers", 9, "streams.num_stream_layers 9"),
        ("streams", "num_streams", -1, "streams.num_streams"),
        ("data", "batch_size", True, "data.batch_size must be a int"),
        ("train", "accumulation", 5, "data.batch_size 32 is not a multiple"),
        ("decode", "tree", "wide", "decode.tree 'wide'"),
        ("decode", "branching", (2, 0), "decode.branching"),
        ("decode", "num_streams", 5, "decode.num_streams 5 is more than the 4"),
        ("decode", "top_p", 0.0, "decode.top_p"),
        ("decode", "temperature", -1, "decode.temperature"),
        ("decode", "prompt_buckets", (), "decode.prompt_buckets"),
    ],
)
def test_a_value_that_cannot_work_is_named(group, key, value, message):
    values = config_lib.to_dict(Config())
    values[group][key] = value
    with pytest.raises(UserError) as error:
        config_lib.from_dict(values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unknown_and_missing_keys_are_named():
    values = config_lib.to_dict(Config())
    del values["model"]["mlp_dim"]
    values["model"]["mlp"] = 3
    with pytest.raises(UserError, match="unknown key model.mlp; missing key model.mlp_dim"):
        config_lib.from_dict(values)
    with pytest.raises(UserError, match="model must be a group"):
        config_lib.from_dict(config_lib.to_dict(Config()) | {"model": 3})


def test_shrink_keeps_every_key():
    c = config_lib.default_config()
    config_lib.shrink(c)
    small = config_lib.from_config_dict(c)
    assert small.model.embed_dim < Config().model.embed_dim
    assert {f.name for f in dataclasses.fields(small)} == set(config_lib.to_dict(Config()))
