"""GGUF files against the safetensors that they were made from, and every way they can be wrong."""

import dataclasses

import family_cases
import numpy as np
import pytest
import tiny_gguf

from ssjax.errors import UserError
from ssjax.files.gguf import read_header
from ssjax.models.parameters import flatten
from ssjax.weights import families, gguf_tensors, huggingface
from ssjax.weights.base import open_base, read_model_config
from ssjax.weights.conversion import convert
from ssjax.weights.load import load_trained, read_base, untouched_config

package = pytest.importorskip("gguf", reason="gguf is not installed")

MODELS = [
    ("llama", "llama"),
    ("llama3", "llama"),
    ("llama_linear", "llama"),
    ("llama_bias", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("phi3", "phi3"),
    ("phi3_long", "phi3"),
    ("granite", "granite"),
    ("olmo2", "olmo2"),
    ("smollm3", "smollm3"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3"),
    ("gpt2", "gpt2"),
]


def params_of(source, num_stream_layers=2):
    config = source.model_config("float32")
    return flatten(huggingface.read_params(source, config, num_stream_layers))


@pytest.mark.parametrize("name, architecture", MODELS, ids=[name for name, _ in MODELS])
def test_as_the_safetensors_path(tmp_path, name, architecture):
    """Config and weights; what a norm loses by having been stored with 1 is rounding."""
    tiny_gguf.write_model(tmp_path / "m.gguf", name, architecture)
    ours = huggingface.open_source(tmp_path / "m.gguf")
    theirs = huggingface.open_source(family_cases.GOLDEN / name)
    if architecture in ("gemma2", "gemma3"):  # a file does not say it: that of published models
        theirs = dataclasses.replace(theirs, values=theirs.values | {"query_pre_attn_scalar": 12})
        ours = dataclasses.replace(ours, values=ours.values | {"query_pre_attn_scalar": 12})
    if architecture == "smollm3":  # nor which layers are rotated
        theirs = dataclasses.replace(theirs, values=theirs.values | {"no_rope_layers": None})
        theirs = dataclasses.replace(theirs, values=theirs.values | {"no_rope_layer_interval": 4})
    config, expected = (
        dataclasses.replace(source.model_config("float32"), pretrained="")
        for source in (ours, theirs)
    )
    factor = pytest.approx(expected.rope_attention_factor, rel=1e-7)  # float32 in the file
    assert config.rope_attention_factor == factor
    assert dataclasses.replace(config, rope_attention_factor=1.0) == dataclasses.replace(
        expected, rope_attention_factor=1.0
    )
    expected = params_of(theirs)
    for path, leaf in params_of(ours).items():
        is_shifted = architecture.startswith("gemma") and "norm" in path
        tolerance = 2e-7 if is_shifted else 0
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q6_K"])
def test_slices_of_each_form(tmp_path, kind):
    form = package.GGMLQuantizationType[kind]
    rng = np.random.default_rng(3)
    block, size = package.GGML_QUANT_SIZES[form]
    if kind.endswith("_K"):  # the package reads these and does not write them
        data = rng.integers(0, 256, (12, 512 // block, size), dtype=np.uint8)
        places = (208, 210) if kind == "Q6_K" else (0, 2), (2, 4)  # of the scales
        for start, stop in places if kind == "Q4_K" else places[:1]:
            scale = rng.random((12, 2)).astype(np.float16)
            data[:, :, start:stop] = scale[..., None].view(np.uint8)
        data = data.reshape(12, -1)
    else:
        data = package.quants.quantize(rng.standard_normal((12, 512)).astype(np.float32), form)
    path = tmp_path / "m.gguf"
    tiny_gguf.write(path, "llama", {}, {"x": (data, kind)})
    info = read_header(path).tensors["x"]
    whole = package.quants.dequantize(data, form)
    assert whole.std() > 0.1
    part = (slice(3, 9), slice(5, 300))
    stored = gguf_tensors.stored_tensor(info, "x")
    assert stored.dtype == kind and stored.shape == (12, 512)
    np.testing.assert_array_equal(stored.read(part).astype(np.float32), whole[part])
    np.testing.assert_array_equal(stored.read_whole().astype(np.float32), whole)
    flipped = gguf_tensors.stored_tensor(info, "x", transposed=True)
    np.testing.assert_array_equal(flipped.read(part[::-1]).astype(np.float32), whole[part].T)
    paired = gguf_tensors.stored_tensor(info, "x", heads=2)  # heads of 6: 0 2 4 1 3 5
    order = [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    np.testing.assert_array_equal(paired.read(part).astype(np.float32), whole[order][part])


def test_a_quantised_model_is_the_dequantised_one(tmp_path):
    path = tmp_path / "m.gguf"
    tiny_gguf.write_model(path, "llama", "llama", "Q8_0")
    table = tiny_gguf.tensors_of("llama", "llama")["token_embd.weight"]
    form = package.GGMLQuantizationType.Q8_0
    expected = package.quants.dequantize(package.quants.quantize(table, form), form)
    source = huggingface.open_source(path)
    assert source.stored_dtype == "Q8_0"
    found = params_of(source)["embedder"]
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - table).max() > 1e-4


def test_a_file_opens_as_a_directory_does(tmp_path):
    path = str(tmp_path / "m.gguf")
    tiny_gguf.write_model(tmp_path / "m.gguf", "llama3", "llama")
    assert read_model_config(path, "float32") == open_base(path, "float32").model
    trained = load_trained(path)
    assert trained.tokenizer.encode("abc") == [4, 5]
    assert trained.family is families.find_family(trained.base_config, "")
    target = tmp_path / "converted"
    result = convert(path, str(target), "float32")
    assert (result["source"], result["family"]) == (path, "Llama")
    again = flatten(load_trained(target).params)
    for name, leaf in flatten(trained.params).items():
        np.testing.assert_array_equal(again[name], leaf)


def test_a_run_knows_its_file_again(tmp_path):
    """By the digest of the dequantised weights, wherever the file lies now."""
    path, moved = tmp_path / "m.gguf", tmp_path / "moved.gguf"
    tiny_gguf.write_model(path, "llama", "llama", "Q8_0")
    config = untouched_config(open_base(path, "float32").model, load_trained(path).tokenizer)
    first, _ = read_base(tmp_path, config)
    path.rename(moved)
    again, _ = read_base(tmp_path, config, moved)
    np.testing.assert_array_equal(first["embedder"], again["embedder"])
    with pytest.raises(UserError, match="does not exist"):
        read_base(tmp_path, config)
    tiny_gguf.write_model(moved, "llama", "llama", "F32")
    with pytest.raises(UserError, match="not the ones that the run was trained on"):
        read_base(tmp_path, config, moved)


def test_blocks_that_predict_further_are_left_out(tmp_path):
    tiny_gguf.write_model(
        tmp_path / "m.gguf", "qwen3", "qwen3", qwen3__block_count=4, qwen3__nextn_predict_layers=1
    )
    source = huggingface.open_source(tmp_path / "m.gguf")
    assert source.model_config("float32").num_layers == 3
    assert params_of(source)["trunk/layers/attention/q_proj/weight"].shape[0] == 1


def split(tmp_path, count_of_tensors=None):
    """A model in two files."""
    metadata = {f"llama.{k}": v for k, v in tiny_gguf.metadata_of("llama", "llama").items()}
    tensors = tiny_gguf.tensors_of("llama", "llama")
    names = list(tensors)
    for number, own in enumerate((names[:9], names[9:])):
        told = {"split.no": number, "split.count": 2}
        told["split.tensors.count"] = count_of_tensors or len(names)
        told |= metadata if number == 0 else {}
        path = tmp_path / f"m-0000{number + 1}-of-00002.gguf"
        tiny_gguf.write(path, "llama", told, {name: tensors[name] for name in own})
    return tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"


def test_any_part_of_a_split_file(tmp_path):
    expected = params_of(huggingface.open_source(family_cases.GOLDEN / "llama"))
    for part in split(tmp_path):
        found = params_of(huggingface.open_source(part))
        for name, leaf in found.items():
            np.testing.assert_array_equal(leaf, expected[name])


def fails(path, *words):
    with pytest.raises(UserError) as error:
        params_of(huggingface.open_source(path))
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message, message


def test_parts_that_do_not_belong_together(tmp_path):
    first, second = split(tmp_path, count_of_tensors=99)
    fails(first, "99 tensors")
    second.write_bytes(first.read_bytes())
    fails(first, "not part 2")
    second.unlink()
    fails(first, str(second), "missing")


def test_cut_off_anywhere(tmp_path):
    path, cut = tmp_path / "m.gguf", tmp_path / "cut.gguf"
    tiny_gguf.write_model(path, "llama", "llama")
    content = path.read_bytes()
    for size in (0, 3, 20, 300, 2500, len(content) // 2, len(content) - 40):
        cut.write_bytes(content[:size])
        fails(cut, str(cut))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"general__architecture": "mamba"}, ["mamba", "known"]),
        ({"llama__expert_count": 8}, ["expert_count", "8"]),
        ({"llama__rope__scaling__type": "yarn"}, ["yarn"]),
        ({"llama__rope__dimension_count": 4}, ["dimension_count"]),
        ({"llama__attention__head_count_kv": [2, 1, 2, 2]}, ["head_count_kv", "all layers"]),
        ({"llama__block_count": 3}, ["layers.3", "no place"]),
        ({"llama__block_count": 5}, ["layers.4", "missing"]),
        ({"llama__embedding_length": None}, ["hidden_size"]),
    ],
    ids=str,
)
def test_what_is_not_computed(tmp_path, changes, words):
    path = tmp_path / "m.gguf"
    architecture = changes.pop("general__architecture", "llama")
    tiny_gguf.write_model(path, "llama", "llama", **changes)
    if architecture != "llama":
        tiny_gguf.write(path, architecture, {}, {})
    fails(path, *words)


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("phi3", {"attention__sliding_window": None}, ["phi3.attention.sliding_window", "null"]),
        ("phi3", {"rope__scaling__type": "yarn"}, ["rope.scaling.type", "yarn"]),
        ("phi3", {"rope__dimension_count": 3}, ["partial_rotary_factor"]),
        ("phi3", {"logit_scale": 0.5}, ["logit_scale", "0.5"]),
        ("phi3_long", {"rope__scaling__attn_factor": None}, ["attn_factor", "null"]),
        ("phi3_long", {"rope__scaling__original_context_length": None}, ["original", "null"]),
        ("phi3_long", {"rope__dimension_count": 8}, ["long_factor", "a list of 4 numbers"]),
        ("olmo2", {"attention__sliding_window": 7}, ["olmo2.attention.sliding_window", "7"]),
        ("smollm3", {"residual_scale": 0.5}, ["residual_scale", "0.5"]),
        ("granite", {"expert_count": 4}, ["expert_count", "4"]),
    ],
    ids=str,
)
def test_what_is_not_computed_of_others(tmp_path, name, changes, words):
    architecture = name.partition("_")[0]
    changes = {f"{architecture}__{key}": value for key, value in changes.items()}
    tiny_gguf.write_model(tmp_path / "m.gguf", name, architecture, **changes)
    fails(tmp_path / "m.gguf", *words)


def test_a_window_of_none_and_scales_of_others(tmp_path):
    """What a missing or an empty key means."""
    path = tmp_path / "m.gguf"
    tiny_gguf.write_model(path, "phi3", "phi3", phi3__attention__sliding_window=0)
    assert huggingface.open_source(path).model_config("float32").local_layers == ()
    changes = {f"granite.{key}": None for key in ("attention.scale", "embedding_scale")}
    tiny_gguf.write_model(path, "granite", "granite", **changes)
    config = huggingface.open_source(path).model_config("float32")
    assert (config.query_scale, config.embedding_multiplier) == (8**-0.5, 1.0)
    assert (config.residual_multiplier, config.logit_divisor) == (0.7, 1.25)


def test_unknown_forms_and_other_files(tmp_path):
    path = tmp_path / "m.gguf"
    fails(path, "does not exist")
    path.write_text("{}     not a model")
    fails(path, "not a GGUF file")
    tiny_gguf.write_model(path, "llama", "llama")
    content = path.read_bytes()
    place = content.index(b"token_embd.weight") + 17 + 4 + 16
    path.write_bytes(content[:place] + (99).to_bytes(4, "little") + content[place + 4 :])
    fails(path, "token_embd.weight", "99")
