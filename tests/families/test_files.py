"""Model directories: what config.json means, and that exports are what was imported."""

import dataclasses
import json
import shutil

import family_cases
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_models
import torch_models
from family_cases import GOLDEN, read_tensors
from tiny_models import TINY_MODELS

from ssjax.errors import UserError
from ssjax.models.parameters import flatten
from ssjax.weights import huggingface


def config_of(source):
    """Without the path."""
    return dataclasses.replace(source.model_config("float32"), pretrained="")


def canonical_tensors(case):
    """By name what an export must hold: all parameters once, with the whole prefix."""
    ignored = [name for name, _ in case.tiny.extra] + ["lm_head.weight"] * case.tiny.tied_head
    return {
        name if name.startswith((case.tiny.strip, "lm_head")) else case.tiny.strip + name: tensor
        for name, tensor in read_tensors(case.source.directory).items()
        if name not in ignored
    }


@pytest.fixture
def exported(case, tmp_path):
    """The directory of an export of the case."""
    values = dict(case.source.values)
    huggingface.write_params(tmp_path / "out", case.config, case.base_params, values)
    return tmp_path / "out"


def test_export_holds_what_was_imported(case, exported):
    """The same names and the same bits."""
    written, wanted = read_tensors(exported), canonical_tensors(case)
    assert sorted(written) == sorted(wanted)
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    assert json.loads((exported / "config.json").read_text()) == case.source.values


def test_export_imports_equal(case, exported):
    source = huggingface.open_source(exported)
    assert config_of(source) == case.config
    again = flatten(huggingface.read_params(source, case.config, case.tiny.num_stream_layers))
    before = flatten(case.base_params)
    assert again.keys() == before.keys()
    for name, leaf in before.items():
        np.testing.assert_array_equal(again[name], leaf, err_msg=name)


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_transformers_loads_the_export(tiny, tmp_path, transformers):
    """Bit for bit the parameters and the logits of the model that it came from."""
    case = family_cases.live_case(tiny, tmp_path / "in")
    out = tmp_path / "out"
    huggingface.write_params(out, case.config, case.base_params, dict(case.source.values))
    loaded, info = torch_models.load(out)
    assert not any(info.values()), info
    parameters = torch_models.tensors(loaded)
    assert parameters.keys() == torch_models.tensors(case.torch_model).keys()
    for name, tensor in torch_models.tensors(case.torch_model).items():
        np.testing.assert_array_equal(parameters[name], tensor, err_msg=name)
    logits = torch_models.run(loaded, case.rows[0])
    np.testing.assert_array_equal(logits, case.logits[0])


def test_export_in_several_files(monkeypatch, tmp_path, transformers):
    """With an index; we and transformers read it."""
    monkeypatch.setattr(huggingface, "_SHARD_BYTES", 30_000)
    case = family_cases.live_case(tiny_models.find("gpt2"), tmp_path / "in")
    out = tmp_path / "out"
    huggingface.write_params(out, case.config, case.base_params, dict(case.source.values))
    assert len(list(out.glob("*.safetensors"))) > 2
    written, wanted = read_tensors(out), canonical_tensors(case)
    assert sorted(written) == sorted(wanted)
    again = huggingface.read_params(huggingface.open_source(out), case.config, 2)
    for name, leaf in flatten(case.base_params).items():
        np.testing.assert_array_equal(flatten(again)[name], leaf, err_msg=name)
    loaded, info = torch_models.load(out)
    assert not any(info.values()), info
    logits = torch_models.run(loaded, case.rows[0])
    np.testing.assert_array_equal(logits, case.logits[0])


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_bfloat16_stays_bfloat16(tiny, tmp_path):
    """Goldens are stored in it, so neither reading nor writing may touch a bit."""
    case = family_cases.golden_case(tiny)
    assert case.source.stored_dtype == "BF16"
    params = huggingface.read_params(case.source, case.config, 2, jnp.bfloat16)
    huggingface.write_params(tmp_path, case.config, params, dict(case.source.values))
    written = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {np.dtype(jnp.bfloat16)}
    for name, tensor in canonical_tensors(case).items():
        np.testing.assert_array_equal(written[name].astype(np.float32), tensor, err_msg=name)


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_both_forms_of_config_json_mean_the_same(tiny):
    """That of published files, and that of transformers 5."""
    source = family_cases.golden_case(tiny).source
    values = json.loads((GOLDEN / tiny.name / "config_v5.json").read_text())
    assert values.keys() != source.values.keys()
    assert config_of(dataclasses.replace(source, values=values)) == config_of(source)


def test_live_config_is_that_of_the_golden(case):
    """transformers writes the same model that the published form describes."""
    assert config_of(family_cases.golden_case(case.tiny).source) == case.config


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("llama", {"intermediate_size": 41}, "mlp"),
        ("llama", {"attention_bias": True}, "_proj.bias is missing"),
        ("llama", {"tie_word_embeddings": True, "vocab_size": 60}, "embed_tokens"),
        ("llama_bias", {"attention_bias": False}, "_proj.bias has no place"),
        ("llama", {"num_hidden_layers": 3}, "layers.3"),
        ("llama", {"num_hidden_layers": 5}, "layers.4"),
    ],
)
def test_a_config_of_another_model_is_refused(name, changes, message, tmp_path):
    """It is sound, but not that of the weights: one line that names the file and the tensor."""
    shutil.copytree(GOLDEN / name, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message) as raised:
        source = huggingface.open_source(tmp_path)
        huggingface.read_params(source, source.model_config("float32"), 2)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
