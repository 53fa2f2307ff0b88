"""What the config.json of each family means: the fields of `ModelConfig` that it decides.

A function a family. Each raises UserError where a key is missing or has a value that we do not
compute, naming both; so does a setting that we would have to pass over.
"""

from collections.abc import Callable
from typing import Any

from ssjax.config.ranges import INT32_MAX
from ssjax.files.objects import Fields
from ssjax.weights import rotary
from ssjax.weights.rotary import LAYER_TYPES

# Layers, and channels of a head: far beyond any model, and few enough to be gone through.
_MOST_LAYERS = 10_000
_WIDEST_HEAD = 2**16

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def _activation(values: Fields, key: str, default: str) -> str:
    name = values.text(key, default)
    if name not in _ACTIVATIONS:
        raise values.wrong(key, f"an activation that is supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _sizes(values: Fields, head_dim: int | None = None) -> dict[str, Any]:
    """The keys that nearly all families share.

    Args:
      values: the config.
      head_dim: where it does not say; None: the width of the model over its heads.
    """
    heads, width = values.whole("num_attention_heads"), values.whole("hidden_size")
    kv_heads = values.whole("num_key_value_heads", heads)
    if heads % kv_heads:
        raise values.wrong("num_key_value_heads", f'a divisor of "num_attention_heads" {heads}')
    if head_dim is None and not values.has("head_dim"):
        head_dim = _head_dim(values, "num_attention_heads", "hidden_size")
    head_dim = values.whole("head_dim", head_dim, most=_WIDEST_HEAD)
    if head_dim % 2:
        raise values.wrong("head_dim", "even: channels of a head are paired")
    return {
        "vocab_size": values.whole("vocab_size"),
        "embed_dim": width,
        "num_layers": values.whole("num_hidden_layers", most=_MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
    }


def _head_dim(values: Fields, heads: str, width: str) -> int:
    """The width of the model over its heads."""
    head_dim = values.whole(width) // values.whole(heads)
    if head_dim % 2 or not 0 < head_dim <= _WIDEST_HEAD:
        wanted = f'such that "{width}" {values.whole(width)} over it is even'
        raise values.wrong(heads, f"{wanted}, and from 2 to {_WIDEST_HEAD}")
    return head_dim


def _epsilon(values: Fields, key: str, default: float) -> float:
    return values.number(key, default, most=0.5)


def _rotary_sizes(values: Fields, head_dim: int | None = None) -> dict[str, Any]:
    """Sizes of a decoder with rotary positions, RMS norms and a gated MLP."""
    return _sizes(values, head_dim) | {
        "mlp_dim": values.whole("intermediate_size"),
        "norm_epsilon": _epsilon(values, "rms_norm_eps", 1e-6),
    }


def _local_layers(values: Fields, is_local: Callable[[int], bool]) -> tuple[int, ...]:
    """Which layers see a window; `layer_types` of newer files goes before the family's rule."""
    layers = range(values.whole("num_hidden_layers", most=_MOST_LAYERS))
    if not values.has("layer_types"):
        return tuple(layer for layer in layers if is_local(layer))
    types = values.texts("layer_types")
    if len(types) != len(layers) or not set(types) <= set(LAYER_TYPES):
        raise values.wrong(
            "layer_types", f"a list of {' or '.join(LAYER_TYPES)} for each of {len(layers)} layers"
        )
    return tuple(layer for layer in layers if types[layer] == "sliding_attention")


def _windows(values: Fields, is_local: Callable[[int], bool]) -> dict[str, Any]:
    """The window, and which layers have it."""
    local = _local_layers(values, is_local)
    return {"window": values.whole("sliding_window"), "local_layers": local} if local else {}


def _llama_like(values: Fields, head_dim: int | None = None) -> dict[str, Any]:
    """What Llama, Mistral and Qwen have in common; no biases."""
    return {
        **_rotary_sizes(values, head_dim),
        **rotary.whole_head_fields(values),
        "activation": _activation(values, "hidden_act", "silu"),
        "tie_embeddings": values.flag("tie_word_embeddings", False),
    }


def _attention_biases(values: Fields) -> dict[str, Any]:
    bias = values.flag("attention_bias", False)
    return {"qkv_bias": bias, "output_bias": bias}


def llama(values: Fields) -> dict[str, Any]:
    """Llama, and what has its form."""
    mlp_bias = values.flag("mlp_bias", False)
    return _llama_like(values) | _attention_biases(values) | {"mlp_bias": mlp_bias}


def granite(values: Fields) -> dict[str, Any]:
    """Granite 3, dense: Llama with a number at every place where scales can drift."""
    return llama(values) | {
        "embedding_multiplier": values.number("embedding_multiplier", 1.0),
        "residual_multiplier": values.number("residual_multiplier", 1.0),
        "query_scale": values.number("attention_multiplier", 1.0),
        "logit_divisor": values.number("logits_scaling", 1.0),
    }


def olmo2(values: Fields) -> dict[str, Any]:
    """OLMo 2."""
    bias = _attention_biases(values)
    return (
        _llama_like(values)
        | bias
        | {
            "norm_epsilon": _epsilon(values, "rms_norm_eps", 1e-5),
            "block": "output_norm",
            "query_key_norm": True,
            "query_key_norm_over": "projection",
        }
    )


def smollm3(values: Fields) -> dict[str, Any]:
    """SmolLM3."""
    values = values.with_defaults(num_key_value_heads=4)
    rotated = _rotated_layers(values)
    used = values.flag("use_sliding_window", False) and values.has("sliding_window")
    windows = _windows(values, lambda layer: used and not rotated[layer])
    if windows and not used:
        raise values.wrong("layer_types", 'full_attention: "use_sliding_window" is off')
    return {
        **llama(values),
        **rotary.whole_head_fields(values, 2_000_000.0),
        **windows,
        "no_rope_layers": tuple(layer for layer, turned in enumerate(rotated) if not turned),
        "tie_embeddings": values.flag("tie_word_embeddings", True),
    }


def _rotated_layers(values: Fields) -> tuple[int, ...]:
    """1 for each layer with rotary positions, 0 for the others: what `no_rope_layers` holds."""
    num_layers = values.whole("num_hidden_layers", most=_MOST_LAYERS)
    if not values.has("no_rope_layers"):
        interval = values.whole("no_rope_layer_interval", 4)
        return tuple(int((layer + 1) % interval != 0) for layer in range(num_layers))
    rotated = values.ids("no_rope_layers")
    if len(rotated) < num_layers or not set(rotated) <= {0, 1}:
        raise values.wrong("no_rope_layers", f"a list of 0 or 1 for each of {num_layers} layers")
    return rotated[:num_layers]


def mistral(values: Fields) -> dict[str, Any]:
    """Mistral."""
    values = values.with_defaults(sliding_window=4096, num_key_value_heads=8)
    every = values.has("sliding_window")
    fields = _llama_like(values) | _windows(values, lambda layer: every)
    if len(fields.get("local_layers", ())) != every * fields["num_layers"]:
        raise values.wrong("layer_types", 'the same in all layers, as "sliding_window" says')
    return fields


def _qwen(values: Fields, head_dim: int | None = None) -> dict[str, Any]:
    values = values.with_defaults(sliding_window=4096, num_key_value_heads=32)
    first_local = values.whole("max_window_layers", 28, least=0)
    used = values.flag("use_sliding_window", False) and values.has("sliding_window")
    windows = _windows(values, lambda layer: used and layer >= first_local)
    if windows and not used:
        raise values.wrong("layer_types", 'full_attention: "use_sliding_window" is off')
    return _llama_like(values, head_dim) | windows


def qwen2(values: Fields) -> dict[str, Any]:
    """Qwen2 and 2.5."""
    return _qwen(values) | {"qkv_bias": True}


def qwen3(values: Fields) -> dict[str, Any]:
    """Qwen3."""
    return _qwen(values, 128) | _attention_biases(values) | {"query_key_norm": True}


def _gemma_like(values: Fields) -> dict[str, Any]:
    """What all Gemmas have in common."""
    values.refuse(use_bidirectional_attention=False)
    return {
        **_rotary_sizes(values, 256),
        **_attention_biases(values),
        "tie_embeddings": values.flag("tie_word_embeddings", True),
        "norm_offset": 1.0,
        "scale_embeddings": True,
    }


def gemma(values: Fields) -> dict[str, Any]:
    """Gemma."""
    # The first files say "gelu" and were trained with its tanh form; a later key says so.
    first = values.values.get("hidden_act") == "gelu"
    activation = "gelu_tanh" if first else _activation(values, "hidden_act", "gelu_pytorch_tanh")
    key = "hidden_activation"
    if values.has(key) and _activation(values, key, "") != activation:
        raise values.wrong(key, 'left out, or that of "hidden_act"')
    sizes = values.with_defaults(num_key_value_heads=16)
    return _gemma_like(sizes) | rotary.whole_head_fields(values) | {"activation": activation}


def _gemma2_like(values: Fields) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common."""
    return {
        **_gemma_like(values.with_defaults(num_key_value_heads=4)),
        "activation": _activation(values, "hidden_activation", "gelu_pytorch_tanh"),
        "block": "sandwich",
        "query_scale": values.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "logit_softcap": values.number("final_logit_softcapping", 0.0),
    }


def gemma2(values: Fields) -> dict[str, Any]:
    """Gemma 2."""
    values = values.with_defaults(
        sliding_window=4096, attn_logit_softcapping=50.0, final_logit_softcapping=30.0
    )
    return {
        **_gemma2_like(values),
        **rotary.whole_head_fields(values),
        **_windows(values, lambda layer: layer % 2 == 0),
        "attention_softcap": values.number("attn_logit_softcapping", 0.0),
    }


def gemma3(values: Fields) -> dict[str, Any]:
    """The text model of Gemma 3."""
    values = values.with_defaults(sliding_window=4096)
    if values.has("attn_logit_softcapping"):
        raise values.wrong("attn_logit_softcapping", "null: Gemma 3 has no such cap")
    if values.group("rope_scaling").has("type"):
        raise values.group("rope_scaling").wrong("type", 'left out: "rope_type" says it')
    period = values.whole("sliding_window_pattern", 6)
    rope = values.group("rope_parameters")
    for key in rope.values:
        if key not in LAYER_TYPES:
            raise rope.wrong(key, f"in a group {' or '.join(LAYER_TYPES)}: each has its own")
    local = rope.group("sliding_attention")
    local.refuse(rope_type="default", type="default", factor=1)
    full = rotary.settings(values, rope.group("full_attention"))
    for group in (values, local, full):
        group.refuse(partial_rotary_factor=1)
    return {
        **_gemma2_like(values),
        **_windows(values, lambda layer: (layer + 1) % period != 0),
        **rotary.scaled_fields(values, full, 1_000_000.0),
        "max_positions": values.whole("max_position_embeddings", 0),
        "rope_local_theta": local.number(
            "rope_theta", values.number("rope_local_base_freq", 10_000.0)
        ),
        "query_key_norm": True,
    }


def opt(values: Fields) -> dict[str, Any]:
    """OPT."""
    values.refuse(layer_norm_elementwise_affine=True)
    before = values.flag("do_layer_norm_before", True)
    bias = values.flag("enable_bias", True)
    width, heads = values.whole("hidden_size"), values.whole("num_attention_heads")
    table_dim = values.whole("word_embed_proj_dim", width)
    return {
        "vocab_size": values.whole("vocab_size"),
        "embed_dim": width,
        "num_layers": values.whole("num_hidden_layers", most=_MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": _head_dim(values, "num_attention_heads", "hidden_size"),
        "mlp_dim": values.whole("ffn_dim"),
        "positions": "learned",
        "max_positions": values.whole("max_position_embeddings"),
        "position_offset": 2,
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "block": "pre_norm" if before else "post_norm",
        "final_norm": before and not values.flag("_remove_final_layer_norm", False),
        "activation": _activation(values, "activation_function", "relu"),
        "gated_mlp": False,
        "tie_embeddings": values.flag("tie_word_embeddings", True),
        "table_dim": 0 if table_dim == width else table_dim,
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": bias,
    }


def phi(values: Fields) -> dict[str, Any]:
    """Phi 1, 1.5 and 2."""
    values.refuse(qk_layernorm=False)
    rope = rotary.settings(values, values.group("rope_parameters"))
    sizes = _sizes(values)
    return {
        **sizes,
        **rotary.scaled_fields(values, rope),
        "mlp_dim": values.whole("intermediate_size"),
        "rotary_dim": rotary.width_of(values, rope, sizes["head_dim"], 0.5),
        "norm": "layer",
        "norm_epsilon": _epsilon(values, "layer_norm_eps", 1e-5),
        "block": "parallel",
        "activation": _activation(values, "hidden_act", "gelu_new"),
        "gated_mlp": False,
        "tie_embeddings": values.flag("tie_word_embeddings", False),
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "head_bias": True,
    }


def phi3(values: Fields) -> dict[str, Any]:
    """Phi-3, 3.5, 4 and 4-mini."""
    sizes = _rotary_sizes(values)
    rope = rotary.settings(values, values.group("rope_parameters"))
    rotary_dim = rotary.width_of(values, rope, sizes["head_dim"], 1.0)
    fields = {
        **sizes,
        **rotary.long_fields(values, rope, rotary_dim),
        "rotary_dim": 0 if rotary_dim == sizes["head_dim"] else rotary_dim,
        "norm_epsilon": _epsilon(values, "rms_norm_eps", 1e-5),
        "activation": _activation(values, "hidden_act", "silu"),
        "tie_embeddings": values.flag("tie_word_embeddings", False),
    }
    window = values.whole("sliding_window", INT32_MAX)
    # One that no sequence outgrows changes nothing.
    if window < fields.get("rope_original_positions", INT32_MAX):
        fields |= {"window": window, "local_layers": tuple(range(fields["num_layers"]))}
    return fields


def gpt2(values: Fields) -> dict[str, Any]:
    """GPT-2."""
    values.refuse(
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    width, heads = values.whole("n_embd"), values.whole("n_head")
    return {
        "vocab_size": values.whole("vocab_size"),
        "embed_dim": width,
        "num_layers": values.whole("n_layer", most=_MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": _head_dim(values, "n_head", "n_embd"),
        "mlp_dim": values.whole("n_inner", 4 * width),
        "positions": "learned",
        "max_positions": values.whole("n_positions"),
        "norm": "layer",
        "norm_epsilon": _epsilon(values, "layer_norm_epsilon", 1e-5),
        "activation": _activation(values, "activation_function", "gelu_new"),
        "gated_mlp": False,
        "tie_embeddings": values.flag("tie_word_embeddings", True),
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    }
