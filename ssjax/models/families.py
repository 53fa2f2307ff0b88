"""The Hugging Face families: what their config.json means, and what their tensors are called.

A family is one `Family`: the architectures it serves, a function from config.json to the fields
of `ModelConfig`, and a table from our parameter names to theirs. Which parameters a model has
follows from its `ModelConfig`; a table may name more. Adding a family with known mathematics
adds an entry to `FAMILIES` and touches nothing else.

Parameter names are those of `parameters.flatten`, with "layer" in place of the stack:

    layer/attention/q_proj/weight  ->  model.layers.{}.self_attn.q_proj.weight
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ssjax.errors import UserError

Values = Mapping[str, Any]  # a config.json


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a parameter lies in a file; {} in the name stands for the layer."""

    name: str
    part: int = 0  # of a tensor that holds several parameters of equal shape, one behind another
    num_parts: int = 1
    transposed: bool = False  # stored [in, out]


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of published model."""

    name: str
    architectures: tuple[str, ...]  # as config.json names them
    model_fields: Callable[[Values], dict[str, Any]]  # config.json -> fields of ModelConfig
    tensors: Mapping[str, Tensor]
    prefix: str  # of the tensor names, which some files leave out


def find_family(values: Values, where: str) -> Family:
    """The family of a config.json.

    Args:
      values: its content.
      where: its path, for messages.

    Raises:
      UserError: none of ours.
    """
    named = values.get("architectures") or [_OF_TYPE.get(values.get("model_type"), "")]
    for family in FAMILIES:
        if named[0] in family.architectures:
            return family
    known = ", ".join(family.architectures[0] for family in FAMILIES)
    raise UserError(
        f"{where}: architecture {named[0] or values.get('model_type')!r} is not known; "
        f"these are: {known}"
    )


def _get(values: Values, key: str):
    if values.get(key) is None:
        raise UserError(f'"{key}" is missing')
    return values[key]


def _refuse(values: Values, **wanted) -> None:
    """Raises UserError where a key has another value than the only one we compute."""
    for key, value in wanted.items():
        if values.get(key, value) not in (value, None):
            raise UserError(f'"{key}": {values[key]!r} is not supported, only {value!r}')


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise UserError(f"activation {name!r} is not supported, only {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _rope(values: Values, layer_type: str = "full_attention") -> dict[str, Any]:
    """Rotary settings; transformers 5 keeps them in one group, before they were single keys."""
    rope = values.get("rope_parameters") or {}
    rope = rope.get(layer_type, rope)
    scaling = values.get("rope_scaling") or {}
    kind = rope.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    merged = {**scaling, **rope}
    fields = {"rope_theta": float(merged.get("rope_theta", values.get("rope_theta", 10000.0)))}
    if kind == "default":
        return fields
    if kind not in ("linear", "llama3"):
        raise UserError(f"rope scaling {kind!r} is not supported, only linear and llama3")
    fields |= {"rope_scaling": kind, "rope_factor": float(merged["factor"])}
    if kind == "llama3":
        fields |= {
            "rope_low_freq_factor": float(merged["low_freq_factor"]),
            "rope_high_freq_factor": float(merged["high_freq_factor"]),
            "rope_original_positions": int(merged["original_max_position_embeddings"]),
        }
    return fields


def _sizes(values: Values) -> dict[str, Any]:
    """The keys that nearly all families share."""
    heads, width = _get(values, "num_attention_heads"), _get(values, "hidden_size")
    return {
        "vocab_size": _get(values, "vocab_size"),
        "embed_dim": width,
        "num_layers": _get(values, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": values.get("num_key_value_heads") or heads,
        "head_dim": values.get("head_dim") or width // heads,
    }


def _rotary_sizes(values: Values) -> dict[str, Any]:
    """Sizes of a decoder with rotary positions, RMS norms and a gated MLP."""
    return _sizes(values) | {
        "mlp_dim": _get(values, "intermediate_size"),
        "norm_epsilon": float(values.get("rms_norm_eps", 1e-6)),
    }


def _windows(values: Values, is_local: Callable[[int], bool]) -> dict[str, Any]:
    """Which layers see a window; `layer_types` of newer files goes before the family's rule."""
    window = values.get("sliding_window")
    if not window:
        return {}
    types = values.get("layer_types")
    layers = range(values["num_hidden_layers"])
    local = tuple(
        layer
        for layer in layers
        if (types[layer] == "sliding_attention" if types else is_local(layer))
    )
    return {"window": int(window), "local_layers": local} if local else {}


def _llama(values: Values) -> dict[str, Any]:
    return {
        **_rotary_sizes(values),
        **_rope(values),
        "activation": _activation(values.get("hidden_act", "silu")),
        "tie_embeddings": values.get("tie_word_embeddings", False),
        "qkv_bias": values.get("attention_bias", False),
        "output_bias": values.get("attention_bias", False),
        "mlp_bias": values.get("mlp_bias", False),
    }


def _mistral(values: Values) -> dict[str, Any]:
    window = {"sliding_window": 4096} | dict(values)
    return _llama(values) | _windows(window, lambda layer: True)


def _qwen(values: Values) -> dict[str, Any]:
    first_local = values.get("max_window_layers", 28)
    used = values.get("use_sliding_window", False)
    return _llama(values) | (_windows(values, lambda layer: layer >= first_local) if used else {})


def _qwen2(values: Values) -> dict[str, Any]:
    return _qwen(values) | {"qkv_bias": True}


def _qwen3(values: Values) -> dict[str, Any]:
    return _qwen({"head_dim": 128} | dict(values)) | {"query_key_norm": True}


def _gemma(values: Values) -> dict[str, Any]:
    _refuse(values, use_bidirectional_attention=False)
    # The first files say "gelu" and were trained with its tanh form.
    act = values.get("hidden_activation") or values.get("hidden_act") or "gelu_pytorch_tanh"
    return {
        **_rotary_sizes({"head_dim": 256} | dict(values)),
        **_rope(values),
        "activation": "gelu_tanh" if act == "gelu" else _activation(act),
        "tie_embeddings": values.get("tie_word_embeddings", True),
        "qkv_bias": values.get("attention_bias", False),
        "output_bias": values.get("attention_bias", False),
        "norm_offset": 1.0,
        "scale_embeddings": True,
    }


def _gemma2(values: Values) -> dict[str, Any]:
    values = {"sliding_window": 4096} | dict(values)
    return {
        **_gemma(values),
        **_windows(values, lambda layer: layer % 2 == 0),
        "block": "sandwich",
        "query_scale": float(values.get("query_pre_attn_scalar", 256)) ** -0.5,
        "attention_softcap": float(values.get("attn_logit_softcapping", 50.0) or 0.0),
        "logit_softcap": float(values.get("final_logit_softcapping", 30.0) or 0.0),
    }


def _gemma3(values: Values) -> dict[str, Any]:
    values = {"attn_logit_softcapping": None, "final_logit_softcapping": None} | dict(values)
    period = values.get("sliding_window_pattern", 6)
    rope = values.get("rope_parameters") or {}
    local_theta = rope.get("sliding_attention", {}).get("rope_theta")
    full = {"rope_theta": 1_000_000.0} | dict(values)
    return {
        **_gemma2(values),
        **_windows(values, lambda layer: (layer + 1) % period != 0),
        **_rope(full),
        "rope_local_theta": float(local_theta or values.get("rope_local_base_freq", 10000.0)),
        "query_key_norm": True,
    }


def _opt(values: Values) -> dict[str, Any]:
    _refuse(values, layer_norm_elementwise_affine=True)
    before = values.get("do_layer_norm_before", True)
    bias = values.get("enable_bias", True)
    table_dim = values.get("word_embed_proj_dim") or values["hidden_size"]
    return {
        **_sizes(values),
        "mlp_dim": _get(values, "ffn_dim"),
        "positions": "learned",
        "max_positions": _get(values, "max_position_embeddings"),
        "position_offset": 2,
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "block": "pre_norm" if before else "post_norm",
        "final_norm": before and not values.get("_remove_final_layer_norm", False),
        "activation": _activation(values.get("activation_function", "relu")),
        "gated_mlp": False,
        "tie_embeddings": values.get("tie_word_embeddings", True),
        "table_dim": 0 if table_dim == values["hidden_size"] else table_dim,
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": bias,
    }


def _phi(values: Values) -> dict[str, Any]:
    _refuse(values, qk_layernorm=False)
    rope = values.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 0.5))
    sizes = _sizes(values)
    return {
        **sizes,
        **_rope(values),
        "mlp_dim": _get(values, "intermediate_size"),
        "rotary_dim": int(sizes["head_dim"] * share),
        "norm": "layer",
        "norm_epsilon": float(values.get("layer_norm_eps", 1e-5)),
        "block": "parallel",
        "activation": _activation(values.get("hidden_act", "gelu_new")),
        "gated_mlp": False,
        "tie_embeddings": values.get("tie_word_embeddings", False),
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "head_bias": True,
    }


def _gpt2(values: Values) -> dict[str, Any]:
    _refuse(
        values, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )  # fmt: skip
    width, heads = _get(values, "n_embd"), _get(values, "n_head")
    return {
        "vocab_size": _get(values, "vocab_size"),
        "embed_dim": width,
        "num_layers": _get(values, "n_layer"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "mlp_dim": values.get("n_inner") or 4 * width,
        "positions": "learned",
        "max_positions": _get(values, "n_positions"),
        "norm": "layer",
        "norm_epsilon": float(values.get("layer_norm_epsilon", 1e-5)),
        "activation": _activation(values.get("activation_function", "gelu_new")),
        "gated_mlp": False,
        "tie_embeddings": values.get("tie_word_embeddings", True),
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    }


def _linear(ours: str, theirs: str, **options) -> dict[str, Tensor]:
    """Weight and bias of a projection or a norm."""
    return {f"{ours}/{leaf}": Tensor(f"{theirs}.{leaf}", **options) for leaf in ("weight", "bias")}


_LLAMA_TENSORS = {
    "embedder": Tensor("embed_tokens.weight"),
    "lm_head": Tensor("lm_head.weight"),
    **_linear("final_norm", "norm"),
    **_linear("layer/attention_norm", "layers.{}.input_layernorm"),
    **_linear("layer/mlp_norm", "layers.{}.post_attention_layernorm"),
    **_linear("layer/attention/q_proj", "layers.{}.self_attn.q_proj"),
    **_linear("layer/attention/k_proj", "layers.{}.self_attn.k_proj"),
    **_linear("layer/attention/v_proj", "layers.{}.self_attn.v_proj"),
    **_linear("layer/attention/o_proj", "layers.{}.self_attn.o_proj"),
    **_linear("layer/attention/q_norm", "layers.{}.self_attn.q_norm"),
    **_linear("layer/attention/k_norm", "layers.{}.self_attn.k_norm"),
    **_linear("layer/mlp/gate_proj", "layers.{}.mlp.gate_proj"),
    **_linear("layer/mlp/up_proj", "layers.{}.mlp.up_proj"),
    **_linear("layer/mlp/down_proj", "layers.{}.mlp.down_proj"),
}

_GEMMA2_TENSORS = {
    **_LLAMA_TENSORS,
    **_linear("layer/attention_post_norm", "layers.{}.post_attention_layernorm"),
    **_linear("layer/mlp_norm", "layers.{}.pre_feedforward_layernorm"),
    **_linear("layer/mlp_post_norm", "layers.{}.post_feedforward_layernorm"),
}

_OPT_TENSORS = {
    "embedder": Tensor("decoder.embed_tokens.weight"),
    "lm_head": Tensor("lm_head.weight"),
    "position_table": Tensor("decoder.embed_positions.weight"),
    "table_in": Tensor("decoder.project_in.weight"),
    "table_out": Tensor("decoder.project_out.weight"),
    **_linear("final_norm", "decoder.final_layer_norm"),
    **_linear("layer/attention_norm", "decoder.layers.{}.self_attn_layer_norm"),
    **_linear("layer/mlp_norm", "decoder.layers.{}.final_layer_norm"),
    **_linear("layer/attention/q_proj", "decoder.layers.{}.self_attn.q_proj"),
    **_linear("layer/attention/k_proj", "decoder.layers.{}.self_attn.k_proj"),
    **_linear("layer/attention/v_proj", "decoder.layers.{}.self_attn.v_proj"),
    **_linear("layer/attention/o_proj", "decoder.layers.{}.self_attn.out_proj"),
    **_linear("layer/mlp/up_proj", "decoder.layers.{}.fc1"),
    **_linear("layer/mlp/down_proj", "decoder.layers.{}.fc2"),
}

_PHI_TENSORS = {
    **_LLAMA_TENSORS,
    "lm_head_bias": Tensor("lm_head.bias"),
    **_linear("final_norm", "final_layernorm"),
    **_linear("layer/attention/o_proj", "layers.{}.self_attn.dense"),
    **_linear("layer/mlp/up_proj", "layers.{}.mlp.fc1"),
    **_linear("layer/mlp/down_proj", "layers.{}.mlp.fc2"),
}

_GPT2_TENSORS = {
    "embedder": Tensor("wte.weight"),
    "lm_head": Tensor("lm_head.weight"),
    "position_table": Tensor("wpe.weight"),
    **_linear("final_norm", "ln_f"),
    **_linear("layer/attention_norm", "h.{}.ln_1"),
    **_linear("layer/mlp_norm", "h.{}.ln_2"),
    **_linear("layer/attention/q_proj", "h.{}.attn.c_attn", num_parts=3, transposed=True),
    **_linear("layer/attention/k_proj", "h.{}.attn.c_attn", part=1, num_parts=3, transposed=True),
    **_linear("layer/attention/v_proj", "h.{}.attn.c_attn", part=2, num_parts=3, transposed=True),
    **_linear("layer/attention/o_proj", "h.{}.attn.c_proj", transposed=True),
    **_linear("layer/mlp/up_proj", "h.{}.mlp.c_fc", transposed=True),
    **_linear("layer/mlp/down_proj", "h.{}.mlp.c_proj", transposed=True),
}

FAMILIES = (
    Family("Llama", ("LlamaForCausalLM",), _llama, _LLAMA_TENSORS, "model."),
    Family("Mistral", ("MistralForCausalLM",), _mistral, _LLAMA_TENSORS, "model."),
    Family("Qwen2", ("Qwen2ForCausalLM",), _qwen2, _LLAMA_TENSORS, "model."),
    Family("Qwen3", ("Qwen3ForCausalLM",), _qwen3, _LLAMA_TENSORS, "model."),
    Family("Gemma", ("GemmaForCausalLM",), _gemma, _LLAMA_TENSORS, "model."),
    Family("Gemma 2", ("Gemma2ForCausalLM",), _gemma2, _GEMMA2_TENSORS, "model."),
    Family("Gemma 3", ("Gemma3ForCausalLM",), _gemma3, _GEMMA2_TENSORS, "model."),
    Family("OPT", ("OPTForCausalLM",), _opt, _OPT_TENSORS, "model."),
    Family("Phi", ("PhiForCausalLM",), _phi, _PHI_TENSORS, "model."),
    Family("GPT-2", ("GPT2LMHeadModel",), _gpt2, _GPT2_TENSORS, "transformer."),
)

# For a config.json without "architectures".
_OF_TYPE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "opt": "OPTForCausalLM",
    "phi": "PhiForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
