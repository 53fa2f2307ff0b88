"""Configs that are legal and odd: next-token log-probabilities against those of transformers.

Sizes that do not follow from each other, rotary settings old and new, windows by layer, biases
that a family has or has not, keys left out. The model is made by transformers on the spot.
"""

import dataclasses
import json

import numpy as np
import oracles
import pytest
import tiny_models
import torch_models
from oracles import LOGIT_TOLERANCE

from ssjax.config import StreamsConfig
from ssjax.models.transformer import Transformer
from ssjax.weights import huggingface

LINEAR = {"rope_type": "linear", "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
LONG = {
    "short_factor": [1.0, 1.1, 1.3, 1.8, 2.5, 3.0],
    "long_factor": [1.0, 1.5, 3.0, 6.0, 20.0, 40.0],
}
SLIDING, FULL = "sliding_attention", "full_attention"
LEFT_OUT = object()
NO_ROPE = {"rope_theta": LEFT_OUT, "rope_scaling": LEFT_OUT, "partial_rotary_factor": LEFT_OUT}
ODD = {
    "phi, heads of their own": (
        "phi",
        NO_ROPE
        | {
            "hidden_size": 34,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "rope_parameters": LLAMA3 | {"rope_theta": 200.0, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": True,
            "eos_token_id": [3, 4, 5],
        },
    ),
    "phi, old scaling": (
        "phi",
        {
            "hidden_size": 34,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "partial_rotary_factor": LEFT_OUT,
            "rope_scaling": {"type": "linear", "factor": 3.0},
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-3,
        },
    ),
    "phi, whole heads": (
        "phi",
        {
            "partial_rotary_factor": 1.0,
            "rope_theta": LEFT_OUT,
            "hidden_act": "relu",
            "rope_parameters": {"rope_theta": 50.0},
            "attention_bias": False,
        },
    ),
    "phi, a part that is rounded": (
        "phi",
        {
            "head_dim": 20,
            "partial_rotary_factor": 0.43,
            "rope_parameters": {"rope_type": "default", "rope_theta": 30.0},
        },
    ),
    "phi3, no longer than before": (
        "phi3_long",
        {
            "rope_scaling": LONG | {"type": "longrope"},
            "rope_theta": LEFT_OUT,
            "original_max_position_embeddings": 50,
            "max_position_embeddings": 50,
            "num_key_value_heads": None,
        },
    ),
    "phi3, how much and how far is said": (
        "phi3_long",
        {
            "rope_scaling": LEFT_OUT,
            "partial_rotary_factor": LEFT_OUT,
            "rope_parameters": LONG
            | {
                "rope_type": "longrope",
                "rope_theta": 30.0,
                "partial_rotary_factor": 0.75,
                "factor": 9.0,
            },
            "original_max_position_embeddings": LEFT_OUT,
            "sliding_window": 5,
            "tie_word_embeddings": False,
        },
    ),
    "phi3, attention factor": (
        "phi3_long",
        {"rope_scaling": LONG | {"rope_type": "longrope", "attention_factor": 0.8}},
    ),
    "phi3, a part without scaling": (
        "phi3",
        {
            "partial_rotary_factor": 0.5,
            "rope_scaling": LEFT_OUT,
            "sliding_window": LEFT_OUT,
            "hidden_act": "gelu",
            "rms_norm_eps": 0.01,
        },
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": LEFT_OUT,
            "residual_multiplier": 1,
            "attention_multiplier": 0.5,
            "logits_scaling": LEFT_OUT,
            "head_dim": 12,
            "attention_bias": True,
            "mlp_bias": True,
            "num_key_value_heads": None,
            "rope_scaling": LINEAR,
            "tie_word_embeddings": False,
        },
    ),
    "olmo2": (
        "olmo2",
        {
            "head_dim": 12,
            "num_key_value_heads": None,
            "attention_bias": True,
            "rms_norm_eps": LEFT_OUT,
            "rope_scaling": LLAMA3,
            "tie_word_embeddings": True,
        },
    ),
    "smollm3": (
        "smollm3",
        {
            "no_rope_layers": LEFT_OUT,
            "no_rope_layer_interval": 3,
            "rope_theta": LEFT_OUT,
            "num_key_value_heads": LEFT_OUT,
            "tie_word_embeddings": LEFT_OUT,
            "attention_bias": True,
            "mlp_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
    "smollm3, every kind of layer": (
        "smollm3",
        {
            "no_rope_layers": [1, 0, 1, 0, 0],
            "layer_types": [FULL, FULL, SLIDING, SLIDING],
            "use_sliding_window": True,
            "sliding_window": 5,
            "tie_word_embeddings": False,
            "head_dim": 12,
        },
    ),
    "qwen2, heads of their own": (
        "qwen2",
        {
            "hidden_size": 30,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 20,
            "rope_theta": LEFT_OUT,
            "rope_parameters": LLAMA3 | {"rope_theta": 77.0},
            "tie_word_embeddings": False,
            "attention_bias": False,
            "eos_token_id": [7, 8],
        },
    ),
    "qwen2, windows by layer": (
        "qwen2",
        {
            "use_sliding_window": True,
            "layer_types": [SLIDING, FULL, FULL, SLIDING],
            "sliding_window": 5,
            "max_window_layers": 0,
            "attention_bias": True,
            "rope_scaling": LINEAR,
        },
    ),
    "qwen2, the usual window": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": LEFT_OUT,
            "num_key_value_heads": None,
            "rope_theta": 5.0,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "default"},
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 0.01,
        },
    ),
    "qwen2, a window of one": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 1,
            "max_window_layers": 3,
        },
    ),
    "qwen3, heads of their own": (
        "qwen3",
        {
            "head_dim": 20,
            "attention_bias": False,
            "tie_word_embeddings": False,
            "use_sliding_window": True,
            "sliding_window": 5,
            "rope_theta": LEFT_OUT,
            "layer_types": [FULL, SLIDING, SLIDING, FULL],
            "rope_parameters": LINEAR | {"rope_theta": 90.0},
        },
    ),
    "qwen3, no width of heads": (
        "qwen3",
        {
            "head_dim": LEFT_OUT,
            "hidden_size": 30,
            "eos_token_id": [1, 2, 3],
            "mlp_bias": True,
            "max_position_embeddings": 48,
            "rope_scaling": {k: v for k, v in LLAMA3.items() if not k.startswith("original")},
        },
    ),
    "qwen3, heads of one pair": (
        "qwen3",
        {
            "head_dim": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "rope_scaling": LLAMA3,
            "original_max_position_embeddings": 20,
        },
    ),
    "mistral": (
        "mistral",
        {
            "num_attention_heads": 8,
            "num_key_value_heads": LEFT_OUT,
            "head_dim": 6,
            "attention_bias": True,
            "mlp_bias": True,
            "layer_types": [SLIDING] * 4,
        },
    ),
    "gemma2": (
        "gemma2",
        {
            "hidden_act": "relu",
            "hidden_activation": "gelu",
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": [FULL, SLIDING, SLIDING, FULL],
            "attention_bias": True,
            "num_attention_heads": 4,
            "num_key_value_heads": LEFT_OUT,
        },
    ),
    "gemma3": (
        "gemma3",
        {
            "rope_scaling": LEFT_OUT,
            "rope_local_base_freq": LEFT_OUT,
            "rope_theta": 900.0,
            "layer_types": [FULL, SLIDING, SLIDING, FULL],
            "final_logit_softcapping": 5.0,
            "rope_parameters": {
                FULL: LINEAR,
                SLIDING: {"rope_type": "default", "rope_theta": 40.0},
            },
        },
    ),
    "opt": (
        "opt",
        {
            "tie_word_embeddings": False,
            "_remove_final_layer_norm": True,
            "enable_bias": False,
            "head_dim": 12,
            "num_key_value_heads": 2,
            "word_embed_proj_dim": None,
        },
    ),
    "gpt2": (
        "gpt2",
        {
            "tie_word_embeddings": False,
            "n_inner": 40,
            "layer_norm_epsilon": 0.01,
            "activation_function": "relu",
            "head_dim": 12,
        },
    ),
}


# Compiled for 2 s each, so those that show the least are left to the stress tests.
SLOW = (
    "phi, whole heads",
    "phi, a part that is rounded",
    "phi3, no longer than before",
    "phi3, attention factor",
    "phi3, a part without scaling",
    "granite",
    "olmo2",
    "smollm3",
    "smollm3, every kind of layer",
    "qwen2, a window of one",
    "qwen3, heads of one pair",
    "mistral",
    "gemma2",
    "gemma3",
    "opt",
    "gpt2",
)


@pytest.mark.parametrize(
    "name, changes",
    [
        pytest.param(*odd, id=title, marks=[pytest.mark.stress] if title in SLOW else [])
        for title, odd in ODD.items()
    ],
)
def test_log_probabilities_equal_transformers(name, changes, tmp_path, transformers):
    """Its own form of the config, which it writes beside the weights, means the same."""
    tiny = tiny_models.find(name)
    values = {k: v for k, v in (tiny.config_json | changes).items() if v is not LEFT_OUT}
    tiny = dataclasses.replace(tiny, config_json=values)
    model = torch_models.build(tiny, seed=4)
    torch_models.save(model, tmp_path)
    written = huggingface.open_source(tmp_path).model_config("float32")
    (tmp_path / "config.json").write_text(json.dumps(values))
    source = huggingface.open_source(tmp_path)
    config = source.model_config("float32")
    assert config == written

    params = huggingface.read_params(source, config, tiny.num_stream_layers)
    ours = Transformer(config, StreamsConfig(0, tiny.num_stream_layers), scan=True)
    (row,) = tiny_models.random_ids(tiny, 4, (45,))
    logits = oracles.logits_of(ours, params, oracles.run_model(ours, params, [row]).hidden)[0]
    expected = oracles.log_softmax(torch_models.run(model, row))
    assert expected.std() > 1
    np.testing.assert_allclose(oracles.log_softmax(logits), expected, atol=LOGIT_TOLERANCE, rtol=0)
