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
VARIANTS = goldens.variants()


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_resolved_config_equals_its_golden(name, variant):
    """After a wanted change: python tests/update_goldens.py, and read the diff."""
    golden = (HERE / "golden" / f"{name}.{variant}.json").read_text()
    assert goldens.resolved(name, variant) == golden


def test_no_golden_is_left_over():
    files = {path.name for path in (HERE / "golden").glob("*.json")}
    assert files == {f"{name}.{variant}.json" for name, variant in VARIANTS}


@pytest.mark.parametrize("name", sorted({name for name, _ in VARIANTS}))
def test_an_unknown_variant_names_the_known_ones(name):
    module = goldens.experiment(name)
    with pytest.raises(UserError, match=module.VARIANTS[-1]):
        module.get_config("unknown")
    assert module.get_config() is not None


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
        ("model", "embed_dim", 1.5, "model.embed_dim must be a whole number"),
        ("model", "tie_embeddings", 1, "model.tie_embeddings must be True or False"),
        ("streams", "num_stream_layers", 9, "streams.num_stream_layers 9"),
        ("streams", "num_streams", -1, "streams.num_streams"),
        ("data", "batch_size", True, "data.batch_size must be a whole number"),
        ("train", "accumulation", 5, "data.batch_size 32 is not a multiple"),
        ("streams", "exit_rank", -1, "streams.exit_rank"),
        ("streams", "variation", "colour", "streams.variation 'colour' must be embedding or"),
        ("streams", "rotation_length", -1, "streams.rotation_length must be 0 or more"),
        ("streams", "init_rank", -1, "streams.init_rank must be 0 (the identity) or more"),
        ("loss", "stream_decay", 0.0, "loss.stream_decay must lie above 0 and at most at 1"),
        ("loss", "stream_decay", 1.1, "loss.stream_decay must lie above 0 and at most at 1"),
        ("decode", "kept_nodes", 4, "early exit"),
        ("decode", "exit_threshold", 0.1, "early exit"),
        ("decode", "exit_threshold", 1.0, "decode.exit_threshold must"),
        ("model", "block", "round", "model.block 'round' must be one of pre_norm, post_norm"),
        ("model", "positions", "learned", "model.max_positions must be given"),
        ("model", "local_layers", (1,), "model.window must be positive"),
        ("model", "local_layers", (6,), "names a layer that does not exist"),
        ("model", "rotary_dim", 33, "model.rotary_dim 33"),
        ("adaptation", "mode", "lossy", "adaptation.mode 'lossy' must be full, shared or lossless"),
        ("optimizer", "decay", "steep", "optimizer.decay 'steep'"),
        ("decode", "tree", "wide", "decode.tree 'wide'"),
        ("decode", "branching", (2, 0), "decode.branching"),
        ("decode", "num_streams", 5, "decode.num_streams 5 is more than the 4"),
        ("decode", "top_p", 0.0, "decode.top_p"),
        ("decode", "min_p", 1.5, "decode.min_p must lie between 0 (off) and 1"),
        ("decode", "repetition_penalty", 0.0, "decode.repetition_penalty must be positive"),
        ("decode", "banned_tokens", (3, -1), "decode.banned_tokens must hold ids"),
        ("decode", "min_new_tokens", 49, "decode.min_new_tokens 49 must lie between 0 and"),
        ("decode", "stop", ("\n", ""), "decode.stop must hold strings that are not empty"),
        ("decode", "accept", "most", "decode.accept 'most' must be exact or typical"),
        ("decode", "accept", "typical", "decode.accept 'typical' needs decode.temperature above 0"),
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


def test_a_map_to_the_start_of_streams_needs_streams():
    values = config_lib.to_dict(Config())
    values["streams"] |= {"num_streams": 0, "init_rank": 2}
    with pytest.raises(UserError, match="streams.init_rank needs streams"):
        config_lib.from_dict(values)
    values["drafter"]["kind"] = "medusa"  # heads take the place of all that belongs to streams
    assert config_lib.from_dict(values).streams.init_rank == 0


def test_unknown_keys_are_named():
    values = config_lib.to_dict(Config())
    values["model"]["mlp"] = 3
    with pytest.raises(UserError, match="unknown key model.mlp;"):
        config_lib.from_dict(values)
    with pytest.raises(UserError, match="model must be a group"):
        config_lib.from_dict(config_lib.to_dict(Config()) | {"model": 3})


def test_a_run_older_than_a_key_keeps_its_meaning():
    values = config_lib.to_dict(Config())
    values["decode"]["num_nodes"] = 5
    expected = config_lib.from_dict(values)
    for key in ("drafter", "lookup_nodes", "kept_nodes"):
        del values["decode"][key]
    for key in ("variation", "rotation_length", "init_rank"):
        del values["streams"][key]
    del values["loss"]["stream_decay"], values["mesh"]
    assert config_lib.from_dict(values) == expected


def test_shrink_keeps_every_key():
    c = config_lib.default_config()
    config_lib.shrink(c)
    small = config_lib.from_config_dict(c)
    assert small.model.embed_dim < Config().model.embed_dim
    assert {f.name for f in dataclasses.fields(small)} == set(config_lib.to_dict(Config()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "lossless", "rank": 0}, "adaptation.rank must be positive"),
        ({"mode": "shared", "dropout": 1.0}, "adaptation.dropout"),
        ({"mode": "shared", "targets": ("q",)}, "adaptation.targets"),
        ({"mode": "shared", "targets": ()}, "adaptation.targets"),
    ],
)
def test_adaptation_that_cannot_work(changes, message):
    values = config_lib.to_dict(Config())
    values["adaptation"] |= changes
    with pytest.raises(UserError, match=message):
        config_lib.from_dict(values)


def test_lossless_refuses_a_main_stream_that_reads_streams():
    values = config_lib.to_dict(Config())
    values["adaptation"]["mode"] = "lossless"
    values["streams"]["main_reads_streams"] = True
    with pytest.raises(UserError, match="lossless cannot hold with streams.main_reads_streams"):
        config_lib.from_dict(values)


@pytest.mark.parametrize("key", ["workdir", "data.path", "data.prepared_dir"])
def test_a_bucket_is_not_a_path(key):
    values = config_lib.to_dict(config_lib.Config())
    group = values if "." not in key else values["data"]
    group[key.split(".")[-1]] = "gs://my-bucket/runs"
    with pytest.raises(UserError, match=f"{key} 'gs://my-bucket/runs' is not a path; mount"):
        config_lib.from_dict(values)


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("mesh", {"data": -1, "fsdp": -1}, "one of which may be -1"),
        ("mesh", {"tensor": 0}, "positive sizes"),
        ("train", {"remat": "some"}, "must be none, products or full"),
        ("data", {"packing": True, "length_buckets": (64,)}, "choose one"),
        ("data", {"length_buckets": (0, 64)}, "positive widths"),
    ],
)
def test_settings_of_long_runs(group, changes, message):
    values = config_lib.to_dict(config_lib.Config())
    values[group] |= changes
    with pytest.raises(UserError, match=message):
        config_lib.from_dict(values)
