"""Model directories: what is read and written, slices, and every way they can be wrong.

What the numbers in them mean is checked against transformers in tests/families.
"""

import dataclasses
import json
import shutil

import family_cases
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracles
import pytest
import tiny_models
from safetensors.numpy import load_file, save_file

from ssjax.config import AdaptationConfig, Config, MeshConfig, ModelConfig, StreamsConfig, to_dict
from ssjax.errors import UserError
from ssjax.models.lora import split_trainable
from ssjax.models.parameters import flatten, merge, resplit_layers, unflatten
from ssjax.parallel import partitioning
from ssjax.weights import adapter, checkpoint, huggingface, slices, tensor_files
from ssjax.weights.base import open_base

CONFIG = dataclasses.replace(oracles.MODEL, tie_embeddings=False)


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
    places = huggingface._places(source, CONFIG, name, {name: shape}, 2)
    asked = []
    original = slices._read_part

    def recording(place, shape, bounds):
        part = original(place, shape, bounds)
        asked.append((place.stored.name, part.shape))
        return part

    monkeypatch.setattr(slices, "_read_part", recording)
    callback = slices.reader(places, shape, np.float32)
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


DOWN, EMBED = "model.layers.2.mlp.down_proj.weight", "model.embed_tokens.weight"
HEAD, INVERSE = "lm_head.weight", "model.layers.1.self_attn.rotary_emb.inv_freq"
WRONG = {
    "no directory": (lambda d: shutil.rmtree(d), "neither a directory nor a hub id"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json: No such file"),
    "architecture": (
        change_config(architectures=["MambaForCausalLM"]),
        "'MambaForCausalLM' is not known; these are: LlamaForCausalLM",
    ),
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
    "no tensors": (change_tensors(lambda t: t.clear()), "embed_tokens.weight is missing"),
    "8 bits": (
        change_tensors(lambda t: t.update({DOWN: t[DOWN].astype(np.int8)})),
        f"tensor {DOWN} is stored as I8, and only F64, F32, F16, BF16 are read; .*dequantise them",
    ),
    "8 bits of a kind of float": (
        change_tensors(lambda t: t.update({DOWN: t[DOWN].astype(ml_dtypes.float8_e4m3fn)})),
        f"tensor {DOWN} is stored as F8_E4M3, and only F64",
    ),
    "bits": (
        change_tensors(lambda t: t.update({DOWN: t[DOWN] > 0})),
        f"tensor {DOWN} is stored as BOOL, and only F64",
    ),
    "not a number": (
        change_tensors(lambda t: t[DOWN].__setitem__((3, 5), np.nan)),
        f"tensor {DOWN} holds nan, which is not a finite number; the file is damaged or",
    ),
    "infinite": (
        change_tensors(lambda t: t[EMBED].__setitem__((12, 0), -np.inf)),
        f"tensor {EMBED} holds -inf, which is not a finite number",
    ),
    "too large": (
        change_tensors(lambda t: t.update({EMBED: t[EMBED] * np.float64(1e39)})),
        f"tensor {EMBED} holds .*e\\+3[89], which float32 cannot hold",
    ),
    "rotary buffer": (
        change_tensors(lambda t: t.update({INVERSE: np.float32([1, 0.1, 0.01, 0.0011])})),
        f"tensor {INVERSE} is not what config.json says, and nothing else is computed",
    ),
    "rotary buffer of another width": (
        change_tensors(lambda t: t.update({INVERSE: np.float32([1, 0.01])})),
        f"tensor {INVERSE} is not what config.json says",
    ),
    "bias that is no buffer": (
        change_tensors(lambda t: t.update({"model.layers.0.self_attn.bias": np.ones(4)})),
        "tensor model.layers.0.self_attn.bias has no place",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_one_line(directory, change, message):
    change(directory)
    with pytest.raises(UserError, match=message) as caught:
        read(directory)
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_buffers_of_old_files_that_say_the_same_are_passed_over(directory, params, dtype):
    frequencies = (1e4 ** -np.linspace(0, 0.75, 4)).astype(dtype)
    added = {INVERSE: frequencies, "model.rotary_emb.inv_freq": frequencies}
    change_tensors(lambda t: t.update(added))(directory)
    assert_equal(read(directory), params)


MASKS = [  # the buffer, its values, whether that is what is computed
    ("attn.bias", np.tri(6, dtype=np.uint8)[None, None], True),
    ("attn.bias", np.tri(7, dtype=bool)[None, None], True),
    ("attn.masked_bias", np.array(-1e4, np.float32), True),
    ("attn.bias", np.tri(6, k=1, dtype=np.float32)[None, None], False),
    ("attn.bias", np.ones(96, np.float32), False),
    ("attn.masked_bias", np.array(0, np.float32), False),
]


def test_masks_in_old_files_are_those_that_are_computed(tmp_path):
    """All of the right ones are passed over, each of the wrong ones is named."""
    case = family_cases.golden_case(tiny_models.find("gpt2"))
    huggingface.write_params(tmp_path, case.config, case.base_params, dict(case.source.values))
    right = {f"h.{i}.{name}": value for i, (name, value, passes) in enumerate(MASKS) if passes}
    change_tensors(lambda t: t.update(right))(tmp_path)
    source = huggingface.open_source(tmp_path)
    assert_equal(huggingface.read_params(source, case.config, 2), case.base_params)
    for name, value in [mask[:2] for mask in MASKS if not mask[2]]:
        change_tensors(lambda t, n=name, v=value: t.update({f"h.3.{n}": v}))(tmp_path)
        with pytest.raises(UserError, match=f"h.3.{name} is not what config.json says"):
            huggingface.read_params(huggingface.open_source(tmp_path), case.config, 2)
        change_tensors(lambda t, n=name: t.pop(f"h.3.{n}"))(tmp_path)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("value, fits", [(3.3e38, True), (3.4e38, False), (3.5e38, False)])
def test_what_a_dtype_cannot_hold_is_named(directory, dtype, value, fits):
    """bfloat16 rounds 3.4e38 to infinity, float32 holds it."""
    change_tensors(lambda t: t.update({DOWN: np.full((24, 40), value)}))(directory)
    if fits or (dtype == jnp.float32 and value < 3.41e38):
        assert (
            flatten(read(directory, dtype=dtype))["stream_layers/layers/mlp/down_proj/weight"].max()
            > 3e38
        )
        return
    with pytest.raises(UserError, match=f"{DOWN} holds 3.*e.38, which {jnp.dtype(dtype)} cannot"):
        read(directory, dtype=dtype)


def test_a_device_checks_what_it_reads(directory, monkeypatch):
    """On a mesh no device sees the whole tensor; that of the wrong value names it."""
    monkeypatch.setattr(slices, "_CHUNK", 7)
    change_tensors(lambda t: t[EMBED].__setitem__((11, 23), np.nan))(directory)
    source = huggingface.open_source(directory)
    mesh = partitioning.make_mesh(MeshConfig(1, 2, 4), jax.devices()[:8])
    with pytest.raises(UserError, match=f"{EMBED} holds nan"):
        huggingface.read_params(source, source.model_config("float32"), 1, mesh=mesh)


@pytest.fixture
def tied(tmp_path):
    """A whole model whose head is its embedding; it stands in the file once."""
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    params = oracles.random_params(oracles.make_model(num_streams=0, num_stream_layers=1), seed=3)
    huggingface.write_params(tmp_path, config, params, huggingface.llama_config_json(config))
    return tmp_path, params


def test_a_head_that_is_the_embedding_is_passed_over(tied, capsys, monkeypatch):
    """In whatever dtype, and whichever of the two is there; compared a few rows at a time."""
    monkeypatch.setattr(tensor_files, "_CHUNK", 5 * 24)
    directory, params = tied

    def add(dtype):
        return change_tensors(lambda t: t.update({HEAD: t[EMBED].astype(dtype)}))

    add(np.float64)(directory)
    assert_equal(read(directory), params)
    change_tensors(lambda t: t.update({HEAD: t.pop(EMBED)}))(directory)
    assert_equal(read(directory), params)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("row", [0, 7, 12])
def test_a_head_that_is_not_the_embedding_is_kept(tied, row, capsys, monkeypatch):
    """One value of it differs. What the config then says is what an export says."""
    monkeypatch.setattr(tensor_files, "_CHUNK", 5 * 24)
    directory, params = tied
    head = np.array(params["embedder"])
    head[row, 3] += 0.5
    change_tensors(lambda t: t.update({HEAD: head}))(directory)
    base = open_base(directory, "float32")
    assert not base.model.tie_embeddings and base.config_json["tie_word_embeddings"] is False
    assert_equal(base.read_params(1, jnp.float32), params | {"lm_head": head})
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{HEAD} differs from {EMBED}, so they are not tied" in said


@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring")
@pytest.mark.parametrize(
    "value, tied, message",
    [
        (1.0, False, None),
        (np.nan, False, "parameter stream_layers/layers/mlp/down_proj/weight holds a value"),
        (1.0, True, "parameter lm_head has no place in the model that .*config.json describes"),
    ],
)
def test_a_model_directory_of_ours_is_checked_too(tmp_path, params, value, tied, message):
    """As `convert` writes it; the weights of the top layer are read as trunk or as stream layer."""
    leaves = flatten(params)
    name = "stream_layers/layers/mlp/down_proj/weight"
    leaves[name] = leaves[name].at[0, 3, 4].set(value)
    checkpoint.save_model(tmp_path / "params", unflatten(leaves))
    streams = StreamsConfig(num_streams=0, num_stream_layers=1)
    model = dataclasses.replace(CONFIG, tie_embeddings=tied)
    config = dataclasses.replace(Config(), model=model, streams=streams)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    base = open_base(tmp_path, "float32")
    if message is None:
        assert_equal(base.read_params(1, jnp.float32), unflatten(leaves))
        return
    with pytest.raises(UserError, match=f"{tmp_path}/params: {message}"):
        base.read_params(2, jnp.float32)


def test_a_head_of_another_size_is_one_line(tied):
    directory, _ = tied
    change_tensors(lambda t: t.update({HEAD: t[EMBED][:9]}))(directory)
    with pytest.raises(UserError, match=rf"{HEAD} has shape \[9, 24\], but config.json asks for"):
        read(directory)


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
    addition = adapter.Addition(config, additions, "digest")
    adapter.write_addition(tmp_path, addition, None)
    names = load_file(tmp_path / "streams.safetensors").keys()
    assert {"stream_init_down", "stream_init_up"} <= names
    assert ("stream_embedding" in names) == (changes["variation"] == "embedding")
    again = adapter.read_addition(tmp_path, None)
    assert (again.config, again.base_fingerprint) == (config, addition.base_fingerprint)
    assert_equal(merge(again.leaves, base), merge(additions, base))
