"""The text model of Gemma 3 files that hold an image model too, against that of transformers."""

import copy
import dataclasses
import json

import numpy as np
import oracles
import pytest
import safetensors.numpy
import tiny_models
import torch_models

from ssjax.config import StreamsConfig
from ssjax.errors import UserError
from ssjax.models.transformer import Transformer
from ssjax.weights import huggingface

TINY = tiny_models.find("gemma3")
TEXT = {
    key: value
    for key, value in TINY.config_json.items()
    if key not in ("architectures", "torch_dtype", "vocab_size", "num_attention_heads")
}
VALUES = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "eos_token_id": [1, 5],
    "image_token_index": 60,
    "mm_tokens_per_image": 1,
    "text_config": TEXT | {"vocab_size": 61, "num_attention_heads": 4},
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 8,
        "image_size": 28,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 14,
    },
}


def build(values):
    """The whole model with random weights."""
    import torch
    import transformers

    with torch_models.quiet():
        config = transformers.AutoConfig.for_model(**copy.deepcopy(values))
        config._attn_implementation = config.text_config._attn_implementation = "eager"
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    rng = np.random.default_rng(3)
    for name, parameter in sorted(model.named_parameters()):
        of_text = name.replace("language_model.", "")
        noise = torch_models._noise(rng, of_text, tuple(parameter.shape), 0.0, False)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(noise.astype(np.float32)))
    return model.eval()


def renamed(directory, pairs):
    """The same tensors by other names."""
    path = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    for before, after in pairs:
        tensors = {
            after + name.removeprefix(before) if name.startswith(before) else name: tensor
            for name, tensor in tensors.items()
        }
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    return set(tensors)


def logits_of(directory, row):
    source = huggingface.open_source(directory)
    config = source.model_config("float32")
    params = huggingface.read_params(source, config, 2)
    model = Transformer(config, StreamsConfig(0, 2), scan=True)
    hidden = oracles.run_model(model, params, [row]).hidden
    return source, config, params, oracles.logits_of(model, params, hidden)[0]


def test_the_text_model_is_read_and_written(tmp_path, transformers, capsys):
    """From files of both kinds of names; the export is a text model, which transformers loads."""
    model = build(VALUES)
    torch_models.save(model, tmp_path / "in")
    (tmp_path / "in" / "config.json").write_text(json.dumps(VALUES))
    (row,) = tiny_models.random_ids(TINY, 3, (45,))
    expected = torch_models.run(model, row)
    assert expected.std() > 1

    source, config, params, logits = logits_of(tmp_path / "in", row)
    np.testing.assert_allclose(logits, expected, atol=oracles.LOGIT_TOLERANCE, rtol=0)
    assert "its text part is read" in capsys.readouterr().err
    huggingface.write_params(tmp_path / "out", config, params, source.values)
    loaded, info = torch_models.load(tmp_path / "out")
    assert not any(info.values()) and type(loaded).__name__ == "Gemma3ForCausalLM", info
    assert loaded.config.eos_token_id == [1, 5]
    np.testing.assert_allclose(torch_models.run(loaded, row), expected, atol=1e-5, rtol=0)

    new = ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector.")
    old = ("language_model.model.", "vision_tower.", "multi_modal_projector.")
    for names in (zip(old, new, strict=True), zip(new, old, strict=True)):
        written = renamed(tmp_path / "in", names)
        assert any("vision_tower" in name for name in written)
        np.testing.assert_array_equal(logits_of(tmp_path / "in", row)[3], logits)


def test_what_else_the_whole_config_says(tmp_path):
    """Quantised weights and a head of its own are said outside of the text model."""
    path = tmp_path / "config.json"

    def read(**changes):
        path.write_text(json.dumps(VALUES | changes))
        return huggingface.read_model_config(str(tmp_path), "float32")

    assert read().tie_embeddings and not read(tie_word_embeddings=False).tie_embeddings
    for changes, message in (
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"text_config": 3}, '"text_config" is 3, but must be an object'),
        ({"text_config": TEXT | {"hidden_size": "8"}}, '"hidden_size" is'),
    ):
        with pytest.raises(UserError, match=message) as raised:
            read(**changes)
        assert str(path) in str(raised.value)
    left_out = read(text_config={"hidden_size": 2560, "sliding_window": 1024})
    assert (left_out.vocab_size, left_out.num_heads, left_out.num_kv_heads) == (262_208, 8, 4)
    assert dataclasses.replace(left_out, num_layers=26).max_positions == 131_072
