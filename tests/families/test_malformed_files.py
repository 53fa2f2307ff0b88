"""Files of others that hold anything: each ends right, or in one line that names the matter.

Nothing is computed here; what right values mean is checked in the other files.
"""

import dataclasses
import json
import os

import numpy as np
import pytest
import tiny_models
from safetensors.numpy import save_file

from ssjax import config as config_lib
from ssjax.config import ModelConfig
from ssjax.errors import UserError
from ssjax.weights import families, huggingface, tensor_files

NAN, INF = float("nan"), float("inf")
HUGE = 10**400
# By kind of key, values that a JSON file can hold and that are of no use for it.
NOT_WHOLE = [64.0, 8.5, "8", "", True, False, [], [8], {}, {"a": 8}, -1, 2**31, HUGE, NAN, INF]
NOT_ABOVE_0 = [-1, -0.5, 0, 0.0, 1e-39, 1e39, HUGE, NAN, INF, -INF]  # or not in float32
USELESS = {
    "whole": [*NOT_WHOLE, 0],
    "from 0": NOT_WHOLE,
    "number": ["1e-5", "", True, False, [], {}, *NOT_ABOVE_0],
    "flag": [0, 1, 1.0, 0.0, "true", "False", "", [], [True], {}, NAN],
    "activation": ["tanh", "SILU", "", "gelu_10", "silu\n", 1, 1.0, True, False, [], ["silu"], {}],
    "object": ["linear", "", 1, 0, 2.0, True, False, [], ["linear"], [{"factor": 2.0}], NAN],
    "fixed": [1, 0, 1.0, "false", "", [], {}],
}


def keys(**by_kind):
    """The kind of each key, from the keys of each kind; underscores in a kind are spaces."""
    return {key: kind.replace("_", " ") for kind, names in by_kind.items() for key in names.split()}


LLAMA = keys(
    whole="vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
    "num_key_value_heads head_dim",
    number="rope_theta rms_norm_eps",
    object="rope_scaling rope_parameters",
    flag="tie_word_embeddings",
    activation="hidden_act",
)
QWEN = LLAMA | keys(flag="use_sliding_window", from_0="max_window_layers")
GEMMA2 = {key: kind for key, kind in LLAMA.items() if key != "hidden_act"} | keys(
    whole="sliding_window",
    number="query_pre_attn_scalar final_logit_softcapping",
    activation="hidden_activation",
    fixed="use_bidirectional_attention",
)
# What a family reads.
KEYS = {
    "llama3": LLAMA | keys(flag="attention_bias mlp_bias"),
    "granite": LLAMA
    | keys(
        flag="attention_bias mlp_bias",
        number="embedding_multiplier residual_multiplier attention_multiplier logits_scaling",
    ),
    "olmo2": LLAMA | keys(flag="attention_bias"),
    "smollm3": LLAMA | keys(flag="attention_bias mlp_bias use_sliding_window"),
    "mistral": LLAMA | keys(whole="sliding_window"),
    "qwen2_window": QWEN | keys(whole="sliding_window"),
    "qwen3": QWEN | keys(flag="attention_bias"),
    "gemma": LLAMA | keys(flag="attention_bias"),
    "gemma2": GEMMA2 | keys(number="attn_logit_softcapping"),
    "gemma3": GEMMA2 | keys(number="rope_local_base_freq", whole="sliding_window_pattern"),
    "opt": keys(
        whole="vocab_size hidden_size num_hidden_layers num_attention_heads ffn_dim "
        "max_position_embeddings word_embed_proj_dim",
        flag="do_layer_norm_before _remove_final_layer_norm enable_bias tie_word_embeddings",
        activation="activation_function",
        fixed="layer_norm_elementwise_affine",
    ),
    "phi": {key: kind for key, kind in LLAMA.items() if key != "rms_norm_eps"}
    | keys(number="layer_norm_eps partial_rotary_factor", fixed="qk_layernorm"),
    "phi3": LLAMA | keys(number="partial_rotary_factor", whole="sliding_window"),
    "gpt2": keys(
        whole="vocab_size n_embd n_layer n_head n_positions n_inner",
        number="layer_norm_epsilon",
        flag="tie_word_embeddings",
        activation="activation_function",
        fixed="scale_attn_by_inverse_layer_idx add_cross_attention",
    ),
}


def read_fields(values):
    """What `open_source` makes of a config.json, without files."""
    family = families.find_family(values, "DIR/config.json")
    return ModelConfig(**family.model_fields(values))


@pytest.mark.parametrize("name", KEYS)
def test_every_key_of_the_wrong_kind_is_named(name):
    """A hundred or more values a family."""
    config_json = tiny_models.find(name).config_json
    for key, kind in KEYS[name].items():
        for value in USELESS[kind]:
            with pytest.raises(UserError) as raised:
                read_fields(config_json | {key: value})
                pytest.fail(f"{key}: {value!r} was taken")
            line = str(raised.value)
            assert f'"{key}" is ' in line and "must be" in line, (key, value, line)
            assert "\n" not in line and len(line) < 400, (key, value, line)


@pytest.mark.parametrize("name", KEYS)
def test_null_is_left_out(name):
    """As if the key were not there, or a line that it is missing; a few mean something by it."""
    config_json = tiny_models.find(name).config_json
    caps = {"attn_logit_softcapping", "final_logit_softcapping"}
    for key in set(KEYS[name]) - caps - {"sliding_window", "num_key_value_heads"}:
        without = {k: value for k, value in config_json.items() if k != key}
        try:
            expected = read_fields(without)
        except UserError as error:
            with pytest.raises(UserError) as raised:
                read_fields(config_json | {key: None})
            assert str(raised.value) == str(error) == f'"{key}" is missing'
        else:
            assert read_fields(config_json | {key: None}) == expected, key


LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
LONG = {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
SLIDING, FULL = "sliding_attention", "full_attention"
ODD = [  # name of the model, changes, what the line says
    ("llama", {"hidden_size": 64.0}, '"hidden_size" is 64.0, but must be a whole number from 1 to'),
    ("llama", {"rope_scaling": "linear"}, "\"rope_scaling\" is 'linear', but must be an object"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, '"rope_scaling.type" is \'dy'),
    ("llama", {"rope_scaling": {"rope_type": "yarn"}}, "\"rope_scaling.rope_type\" is 'yarn'"),
    ("llama", {"rope_scaling": {"rope_type": ["linear"]}}, '"rope_scaling.rope_type" is'),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, '"rope_scaling.factor" is missing'),
    ("llama", {"rope_scaling": {"factor": 4.0}}, '"rope_scaling.factor" is 4.0, but must be 1'),
    *(
        ("llama", {"rope_scaling": LINEAR | {"factor": factor}}, '"rope_scaling.factor" is ')
        for factor in (0, -2.0, NAN, INF, "2", True, [2.0], {})
    ),
    *(
        ("llama", {"rope_parameters": LLAMA3 | {key: value}}, f'"rope_parameters.{key}" is ')
        for key in ("factor", "low_freq_factor", "high_freq_factor", "rope_theta")
        for value in (0, "1", NAN)
    ),
    ("llama", {"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, 'above "low_freq_factor" 1'),
    ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 40.0}}, "is 40.0"),
    ("llama", {"rope_parameters": {FULL: LINEAR}}, '"rope_parameters.full_attention" is'),
    ("llama", {"rope_parameters": LINEAR, "rope_scaling": LLAMA3}, 'what "rope_parameters" says'),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, 'partial_rotary_factor" is 0.5'),
    ("llama", {"partial_rotary_factor": 0.5}, '"partial_rotary_factor" is 0.5, but must be 1'),
    ("llama", {"num_hidden_layers": 10**6}, "is 1000000, but must be a whole number from 1 to 100"),
    ("llama", {"num_attention_heads": 64}, '"num_attention_heads" is 64, but must be such that '),
    ("llama", {"num_attention_heads": 32}, '"num_attention_heads" is 32, but must be such that '),
    ("llama", {"num_key_value_heads": 3}, "is 3, but must be a divisor of"),
    ("llama", {"head_dim": 7}, '"head_dim" is 7, but must be even'),
    ("llama", {"head_dim": 2**31 - 2}, '"head_dim" is 2147483646'),
    ("llama", {"quantization_config": {"bits": 4}}, "\"quantization_config\" is {'bits': 4}, but"),
    ("llama", {"quantization_config": {}}, "model.dequantize"),
    ("llama", {"quantization_config": "int8"}, "\"quantization_config\" is 'int8'"),
    ("llama", {"per_layer_config": {"0": {"head_dim": 4}}}, '"per_layer_config" is'),
    ("llama", {"is_encoder_decoder": True}, '"is_encoder_decoder" is true, but must be false'),
    ("llama", {"architectures": [], "model_type": None}, 'neither "architectures" nor "model'),
    ("llama", {"architectures": [], "model_type": "mamba"}, "architecture 'mamba' is not known"),
    ("llama", {"architectures": "LlamaForCausalLM"}, "\"architectures\" is 'LlamaForCausalLM'"),
    ("llama", {"architectures": [7]}, '"architectures" is [7], but must be a list of texts'),
    ("llama", {"architectures": {"LlamaForCausalLM": 1}}, '"architectures" is'),
    ("llama", {"architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM' is not known; these"),
    ("llama", {"model_type": 7}, '"model_type" is 7, but must be a text'),
    ("llama", {"model_type": "mistral"}, "\"model_type\" is 'mistral', which is not that of"),
    ("llama", {"model_type": "x" * 10**6}, '"model_type" is \'xxx'),
    ("mistral", {"layer_types": [FULL] * 4}, '"layer_types" is'),
    ("mistral", {"layer_types": [SLIDING, FULL] * 2}, '"layer_types" is'),
    *(
        ("smollm3", {"no_rope_layers": value}, '"no_rope_layers" is ')
        for value in ([1, 1, 0], [1, 1, 0, 2], [True] * 4, [1.0] * 4, "1101", {}, 1, [])
    ),
    (
        "smollm3",
        {"layer_types": [FULL, SLIDING] * 2, "sliding_window": 7},
        '"use_sliding_window" is off',
    ),
    ("qwen2", {"layer_types": [FULL, SLIDING] * 2}, '"use_sliding_window" is off'),
    *(
        ("qwen2_window", {"layer_types": types}, '"layer_types" is ')
        for types in (
            "full",
            FULL,
            [FULL] * 3,
            [FULL] * 5,
            [FULL] * 3 + ["chunked_attention"],
            [FULL] * 3 + [None],
            [0] * 4,
            {},
            4,
            True,
        )
    ),
    ("gemma2", {"sliding_window": None}, '"sliding_window" is missing'),
    ("gemma3", {"sliding_window": None}, '"sliding_window" is missing'),
    ("gemma3", {"rope_parameters": LINEAR}, '"rope_parameters.rope_type" is'),
    ("gemma3", {"rope_parameters": {FULL: "linear"}}, '"rope_parameters.full_attention" is'),
    ("gemma3", {"rope_parameters": {SLIDING: LINEAR}}, '"rope_parameters.sliding_attention.rope_t'),
    ("gemma3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, '"rope_scaling.type" is'),
    ("gemma3", {"attn_logit_softcapping": 5.0}, "is 5.0, but must be null"),
    ("gemma", {"hidden_activation": "relu"}, '"hidden_activation" is'),
    *(
        ("phi", {"partial_rotary_factor": share}, '"partial_rotary_factor" is ')
        for share in (0.1, 1.5, 0.2, "0.5", 2)
    ),
    ("phi", {"qk_layernorm": True}, '"qk_layernorm" is true, but must be false: nothing else is'),
    ("opt", {"layer_norm_elementwise_affine": False}, "is false, but must be true"),
    ("gemma2", {"use_bidirectional_attention": True}, '"use_bidirectional_attention" is true'),
    ("gpt2", {"scale_attn_weights": False}, '"scale_attn_weights" is false, but must be true'),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "is true, but must be false"),
    *(
        ("phi3_long", {"rope_scaling": LONG | {key: value}}, f'"rope_scaling.{key}" is ')
        for key in ("short_factor", "long_factor")
        for value in ([1.0] * 5, [1.0] * 7, [1.0] * 5 + [0], [1.0] * 5 + [NAN], ["1"] * 6, 1.0, {})
    ),
    *(
        ("phi3_long", {"rope_scaling": LONG | {key: None}}, f'"rope_scaling.{key}" is missing')
        for key in ("short_factor", "long_factor")
    ),
    ("phi3_long", {"rope_scaling": LONG | {"factor": 0}}, '"rope_scaling.factor" is 0'),
    ("phi3_long", {"rope_scaling": LONG | {"attention_factor": -1}}, "attention_factor"),
    ("phi3_long", {"rope_scaling": LONG | {"type": "su"}}, "must be default or longrope"),
    ("phi3_long", {"rope_scaling": {"factor": 2.0}}, '"rope_scaling.factor" is 2.0, but must be 1'),
    ("phi3_long", {"original_max_position_embeddings": 1}, "must be a whole number from 2 to"),
    ("llama", {"rope_scaling": LONG}, "must be default, linear or llama3"),
    ("phi", {"rope_parameters": {"partial_rotary_factor": 0.05}}, '"rope_parameters.partial_rot'),
]


@pytest.mark.parametrize(
    "name, changes, message", ODD, ids=[f"{i}-{o[0]}" for i, o in enumerate(ODD)]
)
def test_odd_configs_are_one_line(name, changes, message):
    values = dict(tiny_models.find(name).config_json)
    if "rope_parameters" in changes and "rope_scaling" not in changes:
        values.pop("rope_scaling", None)
    with pytest.raises(UserError) as raised:
        read_fields(values | changes)
    line = str(raised.value)
    assert message in line and "\n" not in line and len(line) < 500, line


BYTES = {
    "empty": (b"", "not JSON"),
    "a list": (b"[1, 2]", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "cut": (b'{"vocab_size": 61, ', "not JSON"),
    "not UTF-8": (b'{"model_type": "ll\xffama"}', "line 1: not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "deep lists": (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "nested too deeply"),
    "deeper lists": (b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "nested too deeply"),
    "deep objects": (b'{"a": ' * 200 + b"1" + b"}" * 200, "nested too deeply"),
    "half a character": (b'{"a": "\\ud800"}', "half of a character"),
    "many digits": (b'{"vocab_size": ' + b"1" * 10**4 + b"}", "not JSON"),
}


@pytest.mark.parametrize("content, message", BYTES.values(), ids=BYTES.keys())
def test_what_is_no_config_json_is_one_line(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        huggingface.read_model_config(str(tmp_path), "float32")
    assert str(tmp_path / "config.json") in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("before, after", [("\ufeff", ""), ("", " \n"), ('{"vocab_size": 7,', "")])
def test_harmless_bytes_change_nothing(tmp_path, before, after):
    """A byte order mark, white space, and of a key that is there twice the last, as elsewhere."""
    values = tiny_models.find("llama3").config_json
    text = json.dumps(values)
    text = before + (text[1:] if before.startswith("{") else text) + after
    (tmp_path / "config.json").write_bytes(text.encode())
    config = huggingface.read_model_config(str(tmp_path), "float32")
    assert dataclasses.replace(config, pretrained="") == read_fields(values)
    config_lib.validate_model(config)


FIRST, SECOND = "model-1.safetensors", "model-2.safetensors"
WHOLE = {"a": FIRST, "b": SECOND}


@pytest.fixture
def sharded(tmp_path):
    """Two files beside the index, one outside, one below; `a` lies in both of the two."""
    directory = tmp_path / "model"
    (directory / "below").mkdir(parents=True)
    save_file({"a": np.zeros(2, np.float32)}, directory / FIRST)
    save_file({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}, directory / SECOND)
    for outside in (tmp_path / "outside.safetensors", directory / "below" / FIRST):
        save_file({"a": np.full(2, 7, np.float32)}, outside)
    (directory / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (directory / "loop.safetensors").symlink_to(directory / "loop.safetensors")
    return directory


INDEXES = {
    "up": (WHOLE | {"a": "../outside.safetensors"}, "outside.safetensors', but must be the name"),
    "below": (WHOLE | {"a": f"below/{FIRST}"}, "but must be the name of a file beside the index"),
    "absolute": (WHOLE | {"a": "/etc/passwd"}, "'/etc/passwd', but must be the name"),
    "backslash": (WHOLE | {"a": "..\\outside.safetensors"}, "but must be the name"),
    "empty name": (WHOLE | {"a": ""}, "is '', but must be the name"),
    "here": (WHOLE | {"a": "."}, "is '.', but must be the name"),
    "above": (WHOLE | {"a": ".."}, "is '..', but must be the name"),
    "null byte": (WHOLE | {"a": "a\0b"}, "but must be the name"),
    "long name": (WHOLE | {"a": "x" * 10**5}, "but must be the name"),
    "no text": (WHOLE | {"a": 1}, "the file of tensor a is 1, but must be the name"),
    "a list": (WHOLE | {"a": [FIRST]}, "the file of tensor a is"),
    "null": (WHOLE | {"a": None}, "the file of tensor a is null"),
    "link outside": (WHOLE | {"a": "link.safetensors"}, "is a link to .*outside of the directory"),
    "link to itself": (WHOLE | {"a": "loop.safetensors"}, "loop.safetensors is missing"),
    "directory": (WHOLE | {"a": "below"}, "below is missing"),
    "no such file": (WHOLE | {"a": "model-7.safetensors"}, "model-7.safetensors is missing; fetch"),
    "not in its file": (WHOLE | {"b": FIRST}, f"tensor b is not in {FIRST}, which is named for it"),
    "no such tensor": (WHOLE | {"c": FIRST}, f"tensor c is not in {FIRST}"),
    "not in the index": ({"a": FIRST, **{"a": SECOND}}, "tensor b is not in model.safeten"),
    "empty": ({}, '"weight_map" is {}, but must be an object'),
    "left out": (None, '"weight_map" is null, but must be an object'),
    "names": ([FIRST, SECOND], '"weight_map" is .*, but must be an object'),
    "one name": (FIRST, '"weight_map" is .*, but must be an object'),
}


@pytest.mark.parametrize("weight_map, message", INDEXES.values(), ids=INDEXES.keys())
def test_an_index_names_files_beside_it(sharded, weight_map, message):
    (sharded / tensor_files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message) as raised:
        tensor_files.find_tensors(sharded)
    line = str(raised.value)
    assert str(sharded) in line and "\n" not in line and len(line) < 400, line


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"\xff", b"{" * 10**5])
def test_what_is_no_index_is_one_line(sharded, content):
    (sharded / tensor_files.INDEX).write_bytes(content)
    with pytest.raises(UserError, match="fetch the file again|convert the file") as raised:
        tensor_files.find_tensors(sharded)
    assert tensor_files.INDEX in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("owner, values", [(FIRST, 0), (SECOND, 1)])
def test_a_tensor_is_read_from_the_file_that_is_named(sharded, owner, values, capsys):
    """Wherever else it lies, which is said."""
    index = {"weight_map": WHOLE | {"a": owner}}
    (sharded / tensor_files.INDEX).write_text(json.dumps(index))
    save_file({"a": np.full(2, 9, np.float32)}, sharded / "model.safetensors")
    tensors = tensor_files.find_tensors(sharded)
    assert tensors.keys() == {"a", "b"} and tensors["a"].path == sharded / owner
    np.testing.assert_array_equal(tensors["a"].read((slice(0, 2),)), np.full(2, values))
    said = capsys.readouterr().err
    assert "model.safetensors is not read" in said
    assert (f"{SECOND}: 1 tensors, a the first, are not read" in said) == (owner == FIRST)


def test_links_of_the_hubs_cache_are_followed(sharded, tmp_path):
    """Snapshots hold links to the blobs of their repository, those to a store of all of them."""
    repository = tmp_path / "hub" / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "0c5e", repository / "blobs"
    store = tmp_path / "hub" / "blobs" / "ab"
    for directory in (snapshot, blobs, store):
        directory.mkdir(parents=True)
    (sharded / FIRST).rename(blobs / "1f")
    (sharded / SECOND).rename(store / "2f")
    (blobs / "2f").symlink_to("../../blobs/ab/2f")
    (blobs / "3f").write_text(json.dumps({"weight_map": WHOLE}))
    for name, blob in ((FIRST, "1f"), (SECOND, "2f"), (tensor_files.INDEX, "3f")):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    assert tensor_files.find_tensors(snapshot).keys() == {"a", "b"}
    os.remove(snapshot / FIRST)
    (snapshot / FIRST).symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(UserError, match="outside of the directory"):
        tensor_files.find_tensors(snapshot)
