"""The config: one default per key, strict values, and a golden for every experiment."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import pytest

from ssjax import config as config_lib
from ssjax.config import Config, measured, ranges
from ssjax.errors import UserError

HERE = Path(__file__).parents[1]


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


def changed(key, value):
    """Plain values of the default config with one dotted key changed."""
    values = config_lib.to_dict(Config())
    *groups, name = key.split(".")
    group = values
    for each in groups:
        group = group[each]
    group[name] = value
    return values


def refusal(key, value):
    """What is said of a value."""
    with pytest.raises(UserError) as error:
        config_lib.from_dict(changed(key, value))
    assert "\n" not in str(error.value)
    return str(error.value)


WRONG = {
    int: (None, 1.5, True, "3", [1], 2**31, -(2**31) - 1, float("nan")),
    float: (None, True, "0.5", [0.5], float("nan"), float("inf"), -float("inf"), 10**400),
    str: (None, 3, ["text"], "nul\0character"),
    bool: (None, 0, 1.0, "True"),
    tuple: (None, 3, "abc", {}, [None], [[1]], [float("nan")], [2**31]),
    Literal: (None, 3, "nope", ["float32"]),
}


@pytest.mark.parametrize("key", ranges.keys(Config))
def test_every_setting_refuses_what_it_cannot_be(key):
    hint = ranges.hint_of(Config, key)
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    for value in WRONG[get_origin(kind) or kind]:
        assert f"config: {key} must be " in refusal(key, value)


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (
            (0, -1),
            "model.embed_dim model.num_layers model.num_heads model.num_kv_heads model.head_dim "
            "model.mlp_dim streams.num_stream_layers drafter.num_heads adaptation.rank "
            "loss.chunk_size data.max_prompt_length data.max_target_length data.batch_size "
            "data.tokenizer_vocab_size train.num_steps train.accumulation train.eval_batches "
            "train.profile_steps checkpoint.keep_latest decode.num_nodes decode.lookup_match "
            "decode.batch_size",
        ),
        (
            (-1,),
            "seed model.vocab_size model.max_positions model.window streams.num_streams "
            "streams.rotation_length streams.init_rank streams.exit_rank optimizer.warmup_steps "
            "data.tokenizer_records train.log_every train.eval_every train.eval_prompts "
            "train.patience checkpoint.save_every checkpoint.keep_every "
            "checkpoint.keep_best decode.top_k decode.max_new_tokens eval.max_records",
        ),
        (
            (0.0, -0.1),
            "model.rope_theta model.rope_factor model.norm_epsilon adaptation.alpha "
            "optimizer.learning_rate loss.stream_decay decode.top_p decode.repetition_penalty",
        ),
        (
            (-0.1,),
            "model.query_scale model.logit_softcap loss.main_weight loss.stream_weight "
            "optimizer.final_learning_rate optimizer.weight_decay optimizer.clip_norm "
            "optimizer.beta1 adaptation.dropout decode.temperature decode.min_p",
        ),
        (
            (1.0, 1.1),
            "optimizer.beta1 optimizer.beta2 adaptation.dropout model.norm_epsilon "
            "decode.exit_threshold",
        ),
        ((1.1,), "loss.stream_decay decode.top_p decode.min_p"),
        (((0, 64), (-1,)), "data.length_buckets decode.branching decode.prompt_buckets"),
    ],
)
def test_settings_stay_where_the_mathematics_holds(values, keys):
    for key in keys.split():
        for value in values:
            assert f"config: {key} must be " in refusal(key, value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.num_kv_heads", 4, "model.num_heads 6 is not a multiple"),
        ("model.head_dim", 7, "model.head_dim 7 must be even"),
        ("model.positions", "learned", "model.max_positions must be given"),
        ("model.local_layers", (1,), "model.window must be positive"),
        ("model.local_layers", (6,), "names a layer that does not exist"),
        (
            "model.no_rope_layers",
            (6,),
            "model.no_rope_layers (6,) names a layer",
        ),
        ("model.rotary_dim", 33, "model.rotary_dim 33"),
        ("streams.num_stream_layers", 9, "streams.num_stream_layers 9"),
        ("train.accumulation", 5, "data.batch_size 32 is not a multiple"),
        ("decode.kept_nodes", 4, "early exit"),
        ("decode.exit_threshold", 0.1, "early exit"),
        ("decode.num_streams", 5, "decode.num_streams 5 is more than the 4"),
        ("decode.min_new_tokens", 49, "decode.min_new_tokens 49 must lie between 0 and"),
        ("decode.stop", ("\n", ""), "decode.stop must hold strings that are not empty"),
        ("decode.accept", "typical", "decode.accept 'typical' needs decode.temperature above 0"),
        ("decode.temperature", 1e-30, "decode.temperature must be 0 (greedy) or at least"),
        ("decode.prompt_buckets", (), "decode.prompt_buckets is empty"),
        ("decode.branching", (), "decode.branching is empty"),
        ("workdir", "", "workdir is empty"),
        ("loss", {"main_weight": 0.0, "stream_weight": 0.0}, "leave nothing to train"),
        ("mesh", {"data": -1, "fsdp": -1}, "one of which may be -1"),
        ("mesh", {"tensor": 0}, "positive sizes"),
        ("data", {"packing": True, "length_buckets": (64,)}, "choose one"),
        ("adaptation", {"mode": "shared", "targets": ()}, "adaptation.targets is empty"),
        ("adaptation", {"mode": "shared", "targets": ("q",)}, "adaptation.targets must be a tuple"),
    ],
)
def test_values_that_cannot_work_together_are_named(key, value, message):
    assert message in refusal(key, value)


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("train", {"eval_prompts": 0}, "needs prompts that are decoded, and train.eval_prompts"),
        ("streams", {"num_streams": 0}, "needs streams or Medusa heads"),
        ("decode", {"drafter": "plain"}, "needs drafts, and decode.drafter is plain"),
    ],
)
def test_the_best_by_tokens_per_call_needs_drafts_that_are_decoded(group, values, message):
    by_drafts = {"checkpoint": {"best_by": "validation_tokens_per_call"}}
    assert config_lib.from_dict(by_drafts).checkpoint.best_by == "validation_tokens_per_call"
    assert config_lib.from_dict(by_drafts | {"drafter": {"kind": "medusa"}})
    with pytest.raises(UserError, match=message):
        config_lib.from_dict(by_drafts | {group: values})


def test_the_best_is_named_as_in_metrics_jsonl():
    with pytest.raises(UserError, match="best_by 'loss' must be named as .* such as validation_lo"):
        config_lib.from_dict({"checkpoint": {"best_by": "loss"}})
    without_drafts = {"train": {"eval_prompts": 0}, "checkpoint": {"best_by": "validation_loss_x"}}
    assert config_lib.from_dict(without_drafts)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"best_by": "loss"}, "validation_loss"),
        ({"best_by": "tokens_per_call"}, "validation_tokens_per_call"),
        ({"best_by": "validation_accuracy_main"}, "validation_accuracy_main"),
        ({}, "validation_loss"),
    ],
)
def test_the_best_of_a_run_of_an_older_version_is_known_by_its_new_name(before, now):
    assert config_lib.from_saved({"checkpoint": before}).checkpoint.best_by == now


@pytest.mark.parametrize(
    ("name", "low", "decoded"),
    [
        ("validation_loss", True, False),
        ("validation_loss_stream_1", True, False),
        ("validation_accuracy_main", False, False),
        ("validation_tokens_per_call", False, True),
        ("validation_acceptance_2", False, True),
        ("validation_rougeLsum", False, True),
        ("validation_malformed", True, True),
    ],
)
def test_measured_values_have_a_direction_and_may_need_prompts(name, low, decoded):
    assert (measured.is_better_low(name), measured.is_decoded(name)) == (low, decoded)


def test_a_stop_string_may_hold_any_character():
    assert config_lib.from_dict(changed("decode.stop", ["\0", "\n"])).decode.stop == ("\0", "\n")


def test_zero_is_off_where_it_can_be():
    off = {"optimizer": {"clip_norm": 0.0}, "train": {"log_every": 0, "eval_every": 0}}
    off |= {
        "checkpoint": {"save_every": 0, "save_minutes": 0.0, "keep_best": 0},
        "data": {"tokenizer_records": 0},
    }
    assert config_lib.from_dict(off).optimizer.clip_norm == 0.0


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("3", "train.num_steps", 3),
        ("1e-3", "optimizer.learning_rate", 1e-3),
        ("2", "optimizer.learning_rate", 2.0),
        ("True", "data.packing", True),
        ("0", "data.packing", False),
        ("3,2", "decode.branching", (3, 2)),
        ("(3, 2)", "decode.branching", (3, 2)),
        ("", "decode.banned_tokens", ()),
        ("q_proj,v_proj", "adaptation.targets", ("q_proj", "v_proj")),
        ("END", "decode.stop", ("END",)),
        ('("a, b",)', "decode.stop", ("a, b",)),
        ("runs/a=b", "workdir", "runs/a=b"),
    ],
)
def test_values_of_the_command_line(text, key, value):
    assert ranges.parse(text, ranges.hint_of(Config, key), key) == value


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("three", "train.num_steps"),
        ("1.5", "train.num_steps"),
        ("\u0661\u0662", "train.num_steps"),
        ("1e400", "optimizer.learning_rate"),
        ("nan", "optimizer.clip_norm"),
        ("maybe", "data.packing"),
        ("(3", "decode.branching"),
        ("3,x", "decode.branching"),
        ("[" * 10000, "decode.branching"),
        ("float16", "model.dtype"),
        ("", "model.num_heads"),
    ],
)
def test_what_the_command_line_cannot_mean(text, key):
    with pytest.raises(UserError, match=f"config: {key} must be .*, got "):
        ranges.parse(text, ranges.hint_of(Config, key), key)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("nope", "lists the keys"),
        ("num_steps", "did you mean train.num_steps?"),
        ("model.num_head", "did you mean model.num_heads"),
        ("optimizer.num_steps", "did you mean train.num_steps"),
        ("model", "model is a group of keys, such as model.pretrained"),
        ("model.num_heads.x", "unknown key model.num_heads.x"),
        ("", "unknown key"),
    ],
)
def test_unknown_keys_name_the_closest(key, named):
    with pytest.raises(UserError, match=re.escape(named)):
        ranges.hint_of(Config, key)


def test_a_map_to_the_start_of_streams_needs_streams():
    values = config_lib.to_dict(Config())
    values["streams"] |= {"num_streams": 0, "init_rank": 2}
    with pytest.raises(UserError, match="streams.init_rank needs streams"):
        config_lib.from_dict(values)
    values["drafter"]["kind"] = "medusa"  # heads take the place of all that belongs to streams
    streams = config_lib.from_dict(values).streams
    assert (streams.init_rank, streams.root_rank, streams.parent_rank) == (0, 0, 0)


@pytest.mark.parametrize(
    ("group", "change"), [("streams", "main_reads_streams"), ("decode", "deferred")]
)
def test_orders_that_cannot_know_the_root_are_refused(group, change):
    values = config_lib.to_dict(Config())
    values["streams"]["root_rank"] = 2
    config_lib.from_dict(values)
    values[group][change] = not values[group][change]
    with pytest.raises(UserError, match=f"{group}.{change}.*before the root is drawn"):
        config_lib.from_dict(values)


def test_unknown_keys_are_named():
    values = config_lib.to_dict(Config())
    values["model"]["mlp"] = 3
    with pytest.raises(UserError, match="unknown key model.mlp; did you mean model.mlp_"):
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
    for key in ("parent_rank", "root_rank"):  # whose defaults are not what was done before
        del values["streams"][key]
    before = config_lib.from_saved(values).streams
    assert (before.parent_rank, before.root_rank) == (0, 0)
    assert config_lib.from_dict(values).streams.parent_rank > 0
    whole = config_lib.to_dict(expected)
    assert config_lib.from_saved(whole) == expected
    with pytest.raises(UserError, match="streams must be a group"):
        config_lib.from_saved(whole | {"streams": 3})


def test_shrink_keeps_every_key():
    c = config_lib.default_config()
    config_lib.shrink(c)
    small = config_lib.from_config_dict(c)
    assert small.model.embed_dim < Config().model.embed_dim
    assert {f.name for f in dataclasses.fields(small)} == set(config_lib.to_dict(Config()))


@pytest.mark.parametrize("mode", ["lossless", "detached"])
def test_a_mode_that_keeps_streams_apart_refuses_a_main_stream_that_reads_them(mode):
    values = config_lib.to_dict(Config())
    values["adaptation"]["mode"] = mode
    values["streams"] |= {"main_reads_streams": True, "root_rank": 0}
    with pytest.raises(UserError, match=f"{mode} cannot hold with streams.main_reads_streams"):
        config_lib.from_dict(values)


@pytest.mark.parametrize(
    ("group", "key", "message"),
    [
        ("streams", "num_streams", "trains streams beside a fine-tune .without streams choose sha"),
        ("loss", "main_weight", "loss.main_weight is 0; choose lossless"),
    ],
)
def test_detached_refuses_what_another_mode_is_for(group, key, message):
    values = config_lib.to_dict(Config())
    values["adaptation"]["mode"] = "detached"
    values[group][key] = 0
    with pytest.raises(UserError, match=f"config: adaptation.mode detached .*{message}"):
        config_lib.from_dict(values)


@pytest.mark.parametrize("place", ["s3://my-bucket/runs", "az://my-bucket/runs"])
def test_runs_live_on_disks_and_in_buckets_that_keep_arrays(place):
    values = config_lib.to_dict(config_lib.Config())
    values["workdir"] = place
    with pytest.raises(UserError, match=f"workdir {place!r} must be a path or an address of gs://"):
        config_lib.from_dict(values)
    values |= {"workdir": "gs://my-bucket/run", "init_from": "gs://my-bucket/run/"}
    with pytest.raises(UserError, match="init_from gs://my-bucket/run/ is the workdir itself"):
        config_lib.from_dict(values)
    config_lib.from_dict(values | {"init_from": "gs://my-bucket/other"})


@pytest.mark.parametrize(
    ("key", "value"), [("path", "az://bucket/data"), ("mixture", ["http://host/data=0.5"])]
)
def test_addresses_of_unknown_kinds_are_refused(key, value):
    values = config_lib.to_dict(config_lib.Config())
    values["data"][key] = value
    with pytest.raises(UserError, match=f"data.{key} .* of an unknown kind; give a path, or one"):
        config_lib.from_dict(values)
    values["data"][key] = "gs://bucket/data" if key == "path" else ["s3://bucket/data=0.5"]
    config_lib.from_dict(values)
