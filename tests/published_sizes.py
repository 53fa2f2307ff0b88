"""What config.json of published models says of sizes and mathematics, by name.

Sizes that differ in what they ask for (groups of heads, tied tables, widths of heads, rotary
positions, layers of a kind), beside the whole files that lie with the data.
"""

from typing import Any


def _model(architecture: str, kind: str, sizes: str, **values) -> dict[str, Any]:
    """sizes: width, MLP width, layers, heads, key and value heads, vocabulary."""
    keys = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "vocab_size"
    )
    numbers = map(int, sizes.split())
    found = {"architectures": [architecture], "model_type": kind, "rope_scaling": None}
    return found | dict(zip(keys.split(), numbers, strict=True)) | values


def _phi3(sizes, **values):
    shared = {
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    return _model("Phi3ForCausalLM", "phi3", sizes, **(shared | values))


def _qwen3(sizes, **values):
    shared = {
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "max_window_layers": int(sizes.split()[2]),
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    }
    return _model("Qwen3ForCausalLM", "qwen3", sizes, **(shared | values))


def _olmo2(sizes, **values):
    shared = {
        "attention_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000,
        "tie_word_embeddings": False,
    }
    return _model("Olmo2ForCausalLM", "olmo2", sizes, **(shared | values))


def _granite(sizes, **values):
    shared = {
        "attention_bias": False,
        "embedding_multiplier": 12.0,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "residual_multiplier": 0.22,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    return _model("GraniteForCausalLM", "granite", sizes, **(shared | values))


def _gemma3(**text):
    """Only what differs from the defaults of transformers, and a part for images."""
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text",
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        }
        | text,
        "vision_config": {"model_type": "siglip_vision_model"},
    }


_LONG_FACTORS_OF_PHI4_MINI = (
    "1 1.118320672 1.250641126 1.398617824 1.564103225 1.74916897 1.956131817 2.187582649 "
    "2.446418898 2.735880826 3.059592084 3.421605075 3.826451687 4.279200023 4.785517845 "
    "5.351743533 5.984965424 6.693110555 7.485043894 8.370679318 9.36110372 10.4687158 "
    "11.70738129 13.09260651 14.64173252 16.37415215 18.31155283 20.47818807 22.90118105 "
    "25.61086418 28.64115884 32.03 32.1 32.13 32.23 32.6 32.61 32.64 32.66 32.7 32.71 32.93 "
    "32.97 33.28 33.49 33.5 44.16 47.77"
)

SIZES = {
    "Phi-3-mini-4k-instruct": _phi3("3072 8192 32 32 32 32064", sliding_window=2047),
    "Phi-3-medium-4k-instruct": _phi3("5120 17920 40 40 10 32064", sliding_window=2047),
    "phi-4": _phi3(
        "5120 17920 40 40 10 100352",
        max_position_embeddings=16384,
        original_max_position_embeddings=16384,
        pad_token_id=100349,
        rope_theta=250000,
    ),
    "Phi-4-mini-instruct": _phi3(
        "3072 8192 32 24 8 200064",
        max_position_embeddings=131072,
        pad_token_id=199999,
        partial_rotary_factor=0.75,
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0] * 48,
            "long_factor": [float(factor) for factor in _LONG_FACTORS_OF_PHI4_MINI.split()],
        },
        sliding_window=262144,
        tie_word_embeddings=True,
    ),
    "granite-3.1-2b-instruct": _granite(
        "2048 8192 40 32 8 49155",
        attention_multiplier=0.015625,
        logits_scaling=8.0,
        rope_theta=5000000.0,
    ),
    "granite-3.1-8b-instruct": _granite(
        "4096 12800 40 32 8 49155",
        attention_multiplier=0.0078125,
        logits_scaling=16.0,
        rope_theta=10000000.0,
    ),
    "OLMo-2-0425-1B": _olmo2("2048 8192 16 16 16 100352"),
    "OLMo-2-1124-7B": _olmo2("4096 11008 32 32 32 100352"),
    "OLMo-2-0325-32B": _olmo2("5120 27648 64 40 8 100352"),
    "SmolLM3-3B": _model(
        "SmolLM3ForCausalLM",
        "smollm3",
        "2048 11008 36 16 4 128256",
        attention_bias=False,
        hidden_act="silu",
        max_position_embeddings=65536,
        mlp_bias=False,
        no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0] * 9,
        pad_token_id=128004,
        rms_norm_eps=1e-6,
        rope_theta=5000000.0,
        sliding_window=None,
        use_sliding_window=False,
    ),
    "Qwen3-4B": _qwen3("2560 9728 36 32 8 151936", tie_word_embeddings=True),
    "Qwen3-14B": _qwen3("5120 17408 40 40 8 151936"),
    "Qwen3-32B": _qwen3("5120 25600 64 64 8 151936"),
    "gemma-3-270m": _model(
        "Gemma3ForCausalLM",
        "gemma3_text",
        "640 2048 18 4 1 262144",
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
        max_position_embeddings=32768,
        query_pre_attn_scalar=256,
        rms_norm_eps=1e-6,
        rope_local_base_freq=10000.0,
        rope_theta=1000000.0,
        sliding_window=512,
    ),
    "gemma-3-4b-it": _gemma3(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34),
    "gemma-3-12b-it": _gemma3(
        hidden_size=3840,
        intermediate_size=15360,
        num_attention_heads=16,
        num_hidden_layers=48,
        num_key_value_heads=8,
    ),
    "gemma-3-27b-it": _gemma3(
        head_dim=128,
        hidden_size=5376,
        intermediate_size=21504,
        num_attention_heads=32,
        num_hidden_layers=62,
        num_key_value_heads=16,
        query_pre_attn_scalar=168,
    ),
}
