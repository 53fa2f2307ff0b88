"""Model directories: what is read and written, slices, and every way they can be wrong.

What the numbers in them mean is checked against transformers in tests/families.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from safetensors.numpy import load_file, save_file

from ssjax import huggingface, portable
from ssjax.config import AdaptationConfig, Config, ModelConfig
from ssjax.errors import UserError
from ssjax.models.lora import split_trainable
from ssjax.models.parameters import flatten, merge, resplit_layers

CONFIG = ModelConfig(
    vocab_size=13, embed_dim=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=40,
    tie_embeddings=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    model = oracles.make_model(num_streams=0, tie_embeddings=False, num_stream_layers=1)
    return oracles.random_params(model, seed=2)


@pytest.fixture
def directory(tmp_path, params):
    """A whole model in one file."""
    huggingface.write_params(tmp_path, CONFIG, params, huggingface.llama_config_json(CONFIG))
    return tmp_path


def assert_equal(ours, expected):
    ours, expected = flatten(ours), flatten(expected)
    assert ours.keys() == expected.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def read(directory, num_stream_layers=1, dtype=jnp.float32):
    source = huggingface.open_source(directory)
    config = source.model_config("float32")
    return huggingface.read_params(source, config, num_stream_layers, dtype)


@pytest.mark.parametrize("shard_bytes", [10**9, 6000])
def test_what_is_written_is_read(tmp_path, params, shard_bytes, monkeypatch):
    monkeypatch.setattr(huggingface, "_SHARD_BYTES", shard_bytes)
    huggingface.write_params(tmp_path, CONFIG, params, huggingface.llama_config_json(CONFIG))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 3) == (shard_bytes == 6000)
    assert not list(tmp_path.glob(".*"))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        sizes = [array.nbytes for file in files for array in load_file(file).values()]
        assert index["metadata"]["total_size"] == sum(sizes)
        assert {n: f.name for f in files for n in load_file(f)} == index["weight_map"]
    assert_equal(read(tmp_path), params)
    config = huggingface.open_source(tmp_path).model_config("float32")
    assert config == ModelConfig(**{**vars(CONFIG), "pretrained": str(tmp_path)})


@pytest.mark.parametrize("num_stream_layers", [1, 2, 3])
def test_layers_are_split_where_the_streams_enter(directory, params, num_stream_layers):
    assert_equal(read(directory, num_stream_layers), resplit_layers(params, num_stream_layers))


@pytest.mark.parametrize("stored", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
def test_half_precision_files(tmp_path, params, stored, wanted):
    narrow = jax.tree.map(lambda x: x.astype(stored), params)
    huggingface.write_params(tmp_path, CONFIG, narrow, huggingface.llama_config_json(CONFIG))
    source = huggingface.open_source(tmp_path)
    assert source.stored_dtype == {"bfloat16": "BF16", "float16": "F16"}[jnp.dtype(stored).name]
    assert_equal(read(tmp_path, dtype=wanted), jax.tree.map(lambda x: x.astype(wanted), narrow))


def test_a_device_reads_its_own_slices(directory, params, monkeypatch):
    """Rows of a part of the layers: just those are asked from the file."""
    source = huggingface.open_source(directory)
    name, shape = "trunk/layers/mlp/up_proj/weight", (2, 40, 24)
    places = huggingface._places(source, name, shape, 2)
    asked = []
    original = huggingface._read_part

    def recording(place, shape, bounds):
        part = original(place, shape, bounds)
        asked.append((place.name, part.shape))
        return part

    monkeypatch.setattr(huggingface, "_read_part", recording)
    callback = huggingface._reader(places, shape, np.float32)
    index = (slice(1, 2), slice(10, 20), slice(None))
    np.testing.assert_array_equal(callback(index), np.asarray(flatten(params)[name])[index])
    assert asked == [("model.layers.1.mlp.up_proj.weight", (10, 24))]


def change_config(**values):
    def change(directory):
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def change_tensors(change):
    def changed(directory):
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return changed


def with_index(content):
    def change(directory):
        (directory / "model.safetensors.index.json").write_text(content)

    return change


DOWN = "model.layers.2.mlp.down_proj.weight"
WRONG = {
    "no directory": (lambda d: shutil.rmtree(d), "neither a directory nor a hub id"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json: No such file"),
    "not JSON": (lambda d: (d / "config.json").write_text("{"), "config.json: not JSON"),
    "a list": (lambda d: (d / "config.json").write_text("[]"), "not a JSON object"),
    "architecture": (
        change_config(architectures=["MambaForCausalLM"]),
        "'MambaForCausalLM' is not known; these are: LlamaForCausalLM",
    ),
    "missing key": (change_config(hidden_size=None), 'config.json: "hidden_size" is missing'),
    "rope": (
        change_config(rope_scaling={"rope_type": "yarn", "factor": 2.0}),
        "rope scaling 'yarn' is not supported, only linear and llama3",
    ),
    "rope without factor": (
        change_config(rope_scaling={"rope_type": "linear"}),
        "config.json: 'factor' is missing",
    ),
    "activation": (change_config(hidden_act="mish"), "activation 'mish' is not supported"),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        "holds no model.safetensors; convert other weights with transformers",
    ),
    "not weights": (
        lambda d: (d / "model.safetensors").write_bytes(b"\x01" * 100),
        "model.safetensors: not a safetensors file",
    ),
    "cut short": (
        lambda d: (d / "model.safetensors").write_bytes(
            (d / "model.safetensors").read_bytes()[:-9]
        ),
        "model.safetensors: not a safetensors file",
    ),
    "missing tensor": (change_tensors(lambda t: t.pop(DOWN)), f"tensor {DOWN} is missing"),
    "shape": (
        change_tensors(lambda t: t.update({DOWN: t[DOWN].T.copy()})),
        rf"tensor {DOWN} has shape \[40, 24\], but config.json asks for \[24, 40\]",
    ),
    "unknown tensor": (
        change_tensors(lambda t: t.update({DOWN.replace("weight", "bias"): np.ones(24)})),
        "down_proj.bias has no place in a Llama model",
    ),
    "index": (with_index("[]"), "not an index of tensors"),
    "missing shard": (
        with_index('{"weight_map": {"a": "model-7.safetensors"}}'),
        "model-7.safetensors is missing; fetch the model again",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_one_line(directory, change, message):
    change(directory)
    with pytest.raises(UserError, match=message) as caught:
        read(directory)
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


def test_buffers_of_old_files_are_passed_over(directory, params):
    change_tensors(
        lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4)})
    )(directory)
    assert_equal(read(directory), params)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match="cannot fetch 'a/b' .* no route to host; check the id"):
        huggingface.open_source("a/b")


def test_only_models_of_llamas_form_get_a_config_of_their_own():
    with pytest.raises(UserError, match="not of Llama's form .* export it with --format orbax"):
        huggingface.llama_config_json(ModelConfig(**{**vars(CONFIG), "block": "parallel"}))


@pytest.mark.parametrize("changes", [{"variation": "rotation"}, {"variation": "embedding"}])
def test_streams_beside_a_base_are_read_as_they_were_written(tmp_path, changes):
    """The leaves of every kind of stream, their config, and none of the base's."""
    adaptation = AdaptationConfig("lossless", rank=2)
    model = oracles.make_model(adaptation=adaptation, init_rank=2, exit_rank=2, **changes)
    additions, base = split_trainable(oracles.random_params(model, seed=1), adaptation)
    config = dataclasses.replace(
        Config(), model=model.config, streams=model.streams, adaptation=adaptation
    )
    addition = portable.Addition(config, additions, "digest")
    portable.write_addition(tmp_path, addition, None)
    names = load_file(tmp_path / "streams.safetensors").keys()
    assert {"stream_init_down", "stream_init_up"} <= names
    assert ("stream_embedding" in names) == (changes["variation"] == "embedding")
    again = portable.read_addition(tmp_path, None)
    assert (again.config, again.base_fingerprint) == (config, addition.base_fingerprint)
    assert_equal(merge(again.leaves, base), merge(additions, base))
