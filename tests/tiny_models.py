"""Tiny random models of every Hugging Face family: what they are. `torch_models` makes them.

`config_json` is written as the published files of the family are.
"""

import dataclasses
from typing import Any

import numpy as np

# Tokens per row. Sequences are longer than the windows and than the length before rope scaling.
ROW_LENGTHS = (45, 28, 13, 6)
PROMPT_LENGTHS = (36, 19, 7, 1)
NEW_TOKENS = 64
MAX_LENGTH = max(PROMPT_LENGTHS) + NEW_TOKENS  # learned tables of positions end exactly here


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """A model and how its files look.

    Attributes:
      name: of the golden's directory.
      seeds: of the committed weights, and of those that the live test makes; chosen for wide
        margins, many different tokens and logits that float32 hardly moves.
      config_json: in the form of the published files.
      num_stream_layers: Ns; the border lies so that both stacks hold both kinds of layers, where
        a family has two kinds and the order of its layers allows it.
      strip: a prefix of the tensor names that the published files lack.
      extra: buffers in the published files, by name; they hold what every model computes.
      tied_head: whether the file repeats the tied table as lm_head.weight.
      num_files: the weights are split over so many.
    """

    name: str
    seeds: tuple[int, int]
    config_json: dict[str, Any]
    num_stream_layers: int = 2
    strip: str = ""
    extra: tuple[tuple[str, list], ...] = ()
    tied_head: bool = False
    num_files: int = 1

    @property
    def vocab_size(self) -> int:
        return self.config_json["vocab_size"]


def _llama(**changes):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    } | changes


def _without(values, *keys):
    return {key: value for key, value in values.items() if key not in keys}


_MISTRAL = _llama(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=7)
_QWEN2 = _llama(
    architectures=["Qwen2ForCausalLM"],
    model_type="qwen2",
    rms_norm_eps=1e-6,
    max_window_layers=2,
    use_sliding_window=False,
    sliding_window=7,
    tie_word_embeddings=True,
)
_GEMMA = _without(
    _llama(
        architectures=["GemmaForCausalLM"],
        model_type="gemma",
        rms_norm_eps=1e-6,
        attention_bias=False,
        head_dim=12,
    ),
    "tie_word_embeddings",
)
_GEMMA2 = _GEMMA | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 7,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 9.0,
    "sliding_window": 7,
}
_GEMMA3 = _GEMMA2 | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_local_base_freq": 30,
    "rope_scaling": {"factor": 4.0, "rope_type": "linear"},
    "sliding_window_pattern": 3,
}
_PHI3 = _llama(
    architectures=["Phi3ForCausalLM"],
    model_type="phi3",
    num_key_value_heads=1,
    original_max_position_embeddings=128,
    rope_scaling=None,
    attention_bias=False,
    sliding_window=7,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    embd_pdrop=0.0,
    resid_pdrop=0.0,
)
_OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": 61,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "max_position_embeddings": MAX_LENGTH,
    "word_embed_proj_dim": 32,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "dropout": 0.1,
    "torch_dtype": "float16",
}

TINY_MODELS = (
    TinyModel("opt", (15, 3), _OPT, tied_head=True),
    TinyModel(
        "opt_350m",
        (6, 1),
        _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 20},
        strip="model.",
    ),
    TinyModel(
        "phi",
        (6, 4),
        {
            "architectures": ["PhiForCausalLM"],
            "model_type": "phi",
            "vocab_size": 61,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": None,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 128,
            "partial_rotary_factor": 0.5,
            "qk_layernorm": False,
            "rope_scaling": None,
            "rope_theta": 100.0,
            "tie_word_embeddings": False,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.1,
            "torch_dtype": "float16",
        },
    ),
    TinyModel("phi3", (5, 9), _PHI3),
    TinyModel(
        "phi3_long",
        (2, 6),
        # As Phi-4-mini: a part of each head, with a factor for each pair, and a window that no
        # sequence outgrows.
        _PHI3
        | {
            "num_attention_heads": 2,
            "partial_rotary_factor": 0.75,
            "max_position_embeddings": 8 * MAX_LENGTH,
            "original_max_position_embeddings": MAX_LENGTH,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.1, 1.3, 1.8, 2.5, 3.0],
                "long_factor": [1.0, 1.5, 3.0, 6.0, 20.0, 40.0],
            },
            "sliding_window": 200,
            "tie_word_embeddings": True,
        },
    ),
    TinyModel("llama", (2, 7), _llama(), num_files=2),
    TinyModel(
        "llama3",
        (4, 21),
        # Wavelengths 6, 20, 63, 199: one kept, one between, two stretched.
        _llama(
            tie_word_embeddings=True,
            head_dim=8,
            rope_theta=100.0,
            rope_scaling={
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 40,
                "rope_type": "llama3",
            },
        ),
    ),
    TinyModel(
        "llama_linear",
        (5, 2),
        # As the first Llamas: no groups, no theta, buffers of the rotary positions in the file.
        _without(
            _llama(rope_scaling={"type": "linear", "factor": 3.0}),
            "num_key_value_heads",
            "rope_theta",
        ),
        extra=tuple(
            (f"model.layers.{i}.self_attn.rotary_emb.inv_freq", [1.0, 0.1, 0.01, 0.001])
            for i in range(4)
        ),
    ),
    TinyModel(
        "llama_bias", (9, 0), _llama(attention_bias=True, mlp_bias=True, num_key_value_heads=1)
    ),
    TinyModel("mistral", (9, 2), _MISTRAL),
    TinyModel(
        "granite",
        (8, 0),
        _llama(
            architectures=["GraniteForCausalLM"],
            model_type="granite",
            attention_bias=False,
            mlp_bias=False,
            embedding_multiplier=3.0,
            residual_multiplier=0.7,
            attention_multiplier=0.2,
            logits_scaling=1.25,
            rope_scaling=None,
            pad_token_id=0,
            tie_word_embeddings=True,
        ),
    ),
    TinyModel(
        "olmo2",
        (1, 7),
        _llama(
            architectures=["Olmo2ForCausalLM"],
            model_type="olmo2",
            attention_bias=False,
            rope_scaling=None,
            pad_token_id=1,
        ),
    ),
    TinyModel(
        "smollm3",
        (3, 6),
        _llama(
            architectures=["SmolLM3ForCausalLM"],
            model_type="smollm3",
            attention_bias=False,
            mlp_bias=False,
            no_rope_layers=[1, 0, 1, 0],
            no_rope_layer_interval=2,
            max_window_layers=2,
            use_sliding_window=False,
            sliding_window=None,
            rope_scaling=None,
            pad_token_id=0,
            tie_word_embeddings=True,
        ),
    ),
    TinyModel("qwen2", (7, 9), _QWEN2),
    TinyModel(
        "qwen2_window",
        (7, 6),
        _QWEN2 | {"use_sliding_window": True, "tie_word_embeddings": False},
        num_stream_layers=3,
    ),
    TinyModel(
        "qwen3",
        (14, 15),
        _llama(
            architectures=["Qwen3ForCausalLM"],
            model_type="qwen3",
            head_dim=12,
            attention_bias=True,
            max_window_layers=4,
            use_sliding_window=False,
            sliding_window=None,
            tie_word_embeddings=True,
        ),
    ),
    # "gelu" is what the first Gemma files say and not what they mean.
    TinyModel("gemma", (0, 4), _GEMMA | {"hidden_act": "gelu", "num_key_value_heads": 1}),
    TinyModel("gemma2", (4, 7), _GEMMA2),
    TinyModel("gemma3", (7, 9), _GEMMA3),
    TinyModel(
        "gpt2",
        (6, 9),
        {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": 61,
            "n_embd": 32,
            "n_layer": 4,
            "n_head": 4,
            "n_positions": MAX_LENGTH,
            "n_ctx": MAX_LENGTH,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "attn_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "resid_pdrop": 0.1,
        },
        strip="transformer.",
        extra=tuple((f"h.{i}.attn.bias", np.tri(4)[None, None].tolist()) for i in range(4)),
    ),
)


def find(name: str) -> TinyModel:
    """The description of this name."""
    return next(tiny for tiny in TINY_MODELS if tiny.name == name)


def random_ids(tiny: TinyModel, seed: int, lengths: tuple[int, ...]) -> list[list[int]]:
    """Random sequences of these lengths."""
    rng = np.random.default_rng([seed, *lengths])
    return [rng.integers(0, tiny.vocab_size, length).tolist() for length in lengths]
