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

from ssjax.config.ranges import INT32_MAX
from ssjax.errors import UserError
from ssjax.files.objects import ConfigJson, show

# Layers, and channels of a head: far beyond any model, and few enough to be gone through.
_MOST_LAYERS = 10_000
_WIDEST_HEAD = 2**16
DEQUANTISE = (
    "quantised weights are not read; dequantise them with transformers (model.dequantize(), then "
    "model.save_pretrained(NEW)) or take the model that they were made from"
)


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
    read_fields: Callable[[ConfigJson], dict[str, Any]]  # config.json -> fields of ModelConfig
    tensors: Mapping[str, Tensor]
    prefix: str  # of the tensor names, which some files leave out

    def model_fields(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `ModelConfig` that a config.json decides.

        Args:
          values: its content.

        Raises:
          UserError: a key is missing or has a value that we do not compute; names both.
        """
        config = ConfigJson(values)
        if config.has("quantization_config"):
            raise config.wrong("quantization_config", f"left out: {DEQUANTISE}")
        if config.has("per_layer_config"):
            raise config.wrong("per_layer_config", "left out: all layers have the same sizes here")
        config.refuse(is_encoder_decoder=False)
        return self.read_fields(config)


def find_family(values: Mapping[str, Any], where: str) -> Family:
    """The family of a config.json.

    Args:
      values: its content.
      where: its path, for messages.

    Raises:
      UserError: none of ours, or two of them.
    """
    config = ConfigJson(values)
    try:
        architectures, kind = config.texts("architectures"), config.text("model_type", "")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    of_kind = _OF_TYPE.get(kind, "")
    named = architectures[0] if architectures else of_kind
    family = next((family for family in FAMILIES if named in family.architectures), None)
    if not architectures and not kind:
        raise UserError(f'{where}: neither "architectures" nor "model_type" says what model it is')
    if family is None:
        known = ", ".join(family.architectures[0] for family in FAMILIES)
        raise UserError(
            f"{where}: architecture {show(named or kind)} is not known; these are: {known}"
        )
    if kind and of_kind not in family.architectures:
        raise UserError(
            f'{where}: "model_type" is {show(kind)}, which is not that of "architectures" '
            f"{show(named)}; correct one of them"
        )
    return family


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def _activation(values: ConfigJson, key: str, default: str) -> str:
    name = values.text(key, default)
    if name not in _ACTIVATIONS:
        raise values.wrong(key, f"an activation that is supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _rope_group(values: ConfigJson, now: ConfigJson) -> ConfigJson:
    """Rotary settings stand in one group since transformers 5, before that in "rope_scaling"."""
    before = values.group("rope_scaling")
    if not before.content or before.content == now.content:
        return now
    if now.content:
        raise values.wrong("rope_scaling", f'what "{now.prefix.removesuffix(".")}" says')
    return before


def _rope(values: ConfigJson, rope: ConfigJson, theta: float = 10_000.0) -> dict[str, Any]:
    """Fields of the rotary positions.

    Args:
      values: the whole config, where older files have the base.
      rope: the group of these settings.
      theta: the base where neither has it.
    """
    for layers in _LAYER_TYPES:
        if rope.has(layers):
            raise rope.wrong(layers, "left out: all layers have the same rotary positions here")
    theta = rope.number("rope_theta", values.number("rope_theta", theta))
    key = "rope_type" if rope.has("rope_type") else "type"
    kind = rope.text(key, "default")
    positions = values.whole("max_position_embeddings", 0)
    fields = {"rope_theta": theta, "max_positions": positions}
    if kind == "default":
        rope.refuse(factor=1)  # a factor that nothing says the meaning of
        return fields
    if kind not in ("linear", "llama3"):
        raise rope.wrong(key, "default, linear or llama3: no other scaling is supported")
    factor = rope.number("factor")
    fields |= {"rope_scaling": kind, "rope_factor": factor}
    if kind == "linear":  # the number is that before scaling; llama3 and Gemma 3 have scaled it
        fields["max_positions"] = int(min(positions * factor, INT32_MAX))
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if low >= high:
            raise rope.wrong("high_freq_factor", f'above "low_freq_factor" {low:g}')
        fields |= {"rope_low_freq_factor": low, "rope_high_freq_factor": high}
        fields["rope_original_positions"] = _original_positions(values, rope)
    return fields


def _original_positions(values: ConfigJson, rope: ConfigJson) -> int:
    """As in transformers, one beside the group goes first."""
    key = "original_max_position_embeddings"
    if values.has(key):
        return values.whole(key)
    return rope.whole(key) if rope.has(key) else values.whole("max_position_embeddings")


def _whole_rope(values: ConfigJson) -> dict[str, Any]:
    """Rotary positions of whole heads, the same in all layers."""
    rope = _rope_group(values, values.group("rope_parameters"))
    for group in (values, rope):
        group.refuse(partial_rotary_factor=1)
    return _rope(values, rope)


def _sizes(values: ConfigJson, head_dim: int | None = None) -> dict[str, Any]:
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


def _head_dim(values: ConfigJson, heads: str, width: str) -> int:
    """The width of the model over its heads."""
    head_dim = values.whole(width) // values.whole(heads)
    if head_dim % 2 or not 0 < head_dim <= _WIDEST_HEAD:
        wanted = f'such that "{width}" {values.whole(width)} over it is even'
        raise values.wrong(heads, f"{wanted}, and from 2 to {_WIDEST_HEAD}")
    return head_dim


def _epsilon(values: ConfigJson, key: str, default: float) -> float:
    return values.number(key, default, most=0.5)


def _rotary_sizes(values: ConfigJson, head_dim: int | None = None) -> dict[str, Any]:
    """Sizes of a decoder with rotary positions, RMS norms and a gated MLP."""
    return _sizes(values, head_dim) | {
        "mlp_dim": values.whole("intermediate_size"),
        "norm_epsilon": _epsilon(values, "rms_norm_eps", 1e-6),
    }


_LAYER_TYPES = ("full_attention", "sliding_attention")


def _local_layers(values: ConfigJson, is_local: Callable[[int], bool]) -> tuple[int, ...]:
    """Which layers see a window; `layer_types` of newer files goes before the family's rule."""
    layers = range(values.whole("num_hidden_layers", most=_MOST_LAYERS))
    if not values.has("layer_types"):
        return tuple(layer for layer in layers if is_local(layer))
    types = values.texts("layer_types")
    if len(types) != len(layers) or not set(types) <= set(_LAYER_TYPES):
        raise values.wrong(
            "layer_types", f"a list of {' or '.join(_LAYER_TYPES)} for each of {len(layers)} layers"
        )
    return tuple(layer for layer in layers if types[layer] == "sliding_attention")


def _windows(values: ConfigJson, is_local: Callable[[int], bool]) -> dict[str, Any]:
    """The window, and which layers have it."""
    local = _local_layers(values, is_local)
    return {"window": values.whole("sliding_window"), "local_layers": local} if local else {}


def _llama_like(values: ConfigJson, head_dim: int | None = None) -> dict[str, Any]:
    """What Llama, Mistral and Qwen have in common; no biases."""
    return {
        **_rotary_sizes(values, head_dim),
        **_whole_rope(values),
        "activation": _activation(values, "hidden_act", "silu"),
        "tie_embeddings": values.flag("tie_word_embeddings", False),
    }


def _attention_biases(values: ConfigJson) -> dict[str, Any]:
    bias = values.flag("attention_bias", False)
    return {"qkv_bias": bias, "output_bias": bias}


def _llama(values: ConfigJson) -> dict[str, Any]:
    mlp_bias = values.flag("mlp_bias", False)
    return _llama_like(values) | _attention_biases(values) | {"mlp_bias": mlp_bias}


def _mistral(values: ConfigJson) -> dict[str, Any]:
    values = values.with_defaults(sliding_window=4096, num_key_value_heads=8)
    every = values.has("sliding_window")
    fields = _llama_like(values) | _windows(values, lambda layer: every)
    if len(fields.get("local_layers", ())) != every * fields["num_layers"]:
        raise values.wrong("layer_types", 'the same in all layers, as "sliding_window" says')
    return fields


def _qwen(values: ConfigJson, head_dim: int | None = None) -> dict[str, Any]:
    values = values.with_defaults(sliding_window=4096, num_key_value_heads=32)
    first_local = values.whole("max_window_layers", 28, least=0)
    used = values.flag("use_sliding_window", False) and values.has("sliding_window")
    windows = _windows(values, lambda layer: used and layer >= first_local)
    if windows and not used:
        raise values.wrong("layer_types", 'full_attention: "use_sliding_window" is off')
    return _llama_like(values, head_dim) | windows


def _qwen2(values: ConfigJson) -> dict[str, Any]:
    return _qwen(values) | {"qkv_bias": True}


def _qwen3(values: ConfigJson) -> dict[str, Any]:
    return _qwen(values, 128) | _attention_biases(values) | {"query_key_norm": True}


def _gemma_like(values: ConfigJson) -> dict[str, Any]:
    """What all Gemmas have in common."""
    values.refuse(use_bidirectional_attention=False)
    return {
        **_rotary_sizes(values, 256),
        **_attention_biases(values),
        "tie_embeddings": values.flag("tie_word_embeddings", True),
        "norm_offset": 1.0,
        "scale_embeddings": True,
    }


def _gemma(values: ConfigJson) -> dict[str, Any]:
    # The first files say "gelu" and were trained with its tanh form; a later key says so.
    first = values.content.get("hidden_act") == "gelu"
    activation = "gelu_tanh" if first else _activation(values, "hidden_act", "gelu_pytorch_tanh")
    key = "hidden_activation"
    if values.has(key) and _activation(values, key, "") != activation:
        raise values.wrong(key, 'left out, or that of "hidden_act"')
    sizes = values.with_defaults(num_key_value_heads=16)
    return _gemma_like(sizes) | _whole_rope(values) | {"activation": activation}


def _gemma2_like(values: ConfigJson) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common."""
    return {
        **_gemma_like(values.with_defaults(num_key_value_heads=4)),
        "activation": _activation(values, "hidden_activation", "gelu_pytorch_tanh"),
        "block": "sandwich",
        "query_scale": values.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "logit_softcap": values.number("final_logit_softcapping", 0.0),
    }


def _gemma2(values: ConfigJson) -> dict[str, Any]:
    values = values.with_defaults(
        sliding_window=4096, attn_logit_softcapping=50.0, final_logit_softcapping=30.0
    )
    return {
        **_gemma2_like(values),
        **_whole_rope(values),
        **_windows(values, lambda layer: layer % 2 == 0),
        "attention_softcap": values.number("attn_logit_softcapping", 0.0),
    }


def _gemma3(values: ConfigJson) -> dict[str, Any]:
    values = values.with_defaults(sliding_window=4096)
    if values.has("attn_logit_softcapping"):
        raise values.wrong("attn_logit_softcapping", "null: Gemma 3 has no such cap")
    if values.group("rope_scaling").has("type"):
        raise values.group("rope_scaling").wrong("type", 'left out: "rope_type" says it')
    period = values.whole("sliding_window_pattern", 6)
    rope = values.group("rope_parameters")
    for key in rope.content:
        if key not in _LAYER_TYPES:
            raise rope.wrong(key, f"in a group {' or '.join(_LAYER_TYPES)}: each has its own")
    local = rope.group("sliding_attention")
    local.refuse(rope_type="default", type="default", factor=1)
    full = _rope_group(values, rope.group("full_attention"))
    for group in (values, local, full):
        group.refuse(partial_rotary_factor=1)
    return {
        **_gemma2_like(values),
        **_windows(values, lambda layer: (layer + 1) % period != 0),
        **_rope(values, full, 1_000_000.0),
        "max_positions": values.whole("max_position_embeddings", 0),
        "rope_local_theta": local.number(
            "rope_theta", values.number("rope_local_base_freq", 10_000.0)
        ),
        "query_key_norm": True,
    }


def _opt(values: ConfigJson) -> dict[str, Any]:
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


def _phi(values: ConfigJson) -> dict[str, Any]:
    values.refuse(qk_layernorm=False)
    rope = _rope_group(values, values.group("rope_parameters"))
    sizes = _sizes(values)
    owner = rope if rope.has("partial_rotary_factor") else values
    share = owner.number("partial_rotary_factor", 0.5, most=1.0)
    rotary_dim = int(sizes["head_dim"] * share)
    if rotary_dim < 2 or rotary_dim % 2:
        raise owner.wrong(
            "partial_rotary_factor", f"such that it gives an even part of {sizes['head_dim']}"
        )
    return {
        **sizes,
        **_rope(values, rope),
        "mlp_dim": values.whole("intermediate_size"),
        "rotary_dim": rotary_dim,
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


def _gpt2(values: ConfigJson) -> dict[str, Any]:
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
