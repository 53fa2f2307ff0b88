"""What GGUF files of each `general.architecture` mean, in config.json and names of Hugging Face.

An architecture is one entry of `ARCHITECTURES`: the keys of config.json that its metadata give, and
how its tensors are called. Metadata that ask for other mathematics end in one line.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ssjax.errors import UserError
from ssjax.files.gguf import GgufHeader, TensorInfo
from ssjax.files.objects import show
from ssjax.weights.gguf_tensors import stored_tensor

# One for each pair of channels, and frequencies are over them: for all lengths, and of Phi-3.
_ROPE_FACTORS = "rope_freqs.weight"
_SHORT_FACTORS, _LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
FACTORS = (_ROPE_FACTORS, _SHORT_FACTORS, _LONG_FACTORS)  # tensors that config.json has

# Names of Llama's form; {} stands for the layer. Weights and biases have the same.
_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
_GEMMA2_NAMES = _LLAMA_NAMES | {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_PHI3_NAMES = _LLAMA_NAMES | {
    "blk.{}.attn_qkv": "model.layers.{}.self_attn.qkv_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.gate_up_proj",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output": "lm_head",
    "output_norm": "transformer.ln_f",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}

# Keys of config.json and the metadata that give them, with the architecture in front.
_LLAMA_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "max_position_embeddings": "context_length",
}
_GEMMA2_KEYS = _LLAMA_KEYS | {
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_GRANITE_KEYS = _LLAMA_KEYS | {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_GPT2_KEYS = {
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_positions": "context_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What files of one `general.architecture` mean.

    Attributes:
      values: keys of config.json that all of them have.
      keys: key of config.json -> metadata.
      names: name of a tensor -> Hugging Face's, without ".weight" and ".bias".
      more: what else the metadata say: (metadata, tensors) -> keys of config.json.
      pairs_rows: whether queries and keys have their rows in pairs.
      norm_added: what stands in the file beyond the weight of a norm.
      flips: tensors whose matrices Hugging Face has the other way round.
    """

    values: Mapping[str, Any]
    keys: Mapping[str, str]
    names: Mapping[str, str]
    more: Callable[["Metadata", Mapping[str, TensorInfo]], dict[str, Any]]
    pairs_rows: bool = False
    norm_added: float = 0.0
    flips: tuple[str, ...] = ()


class Metadata:
    """The metadata of one architecture: keys are taken without its name."""

    def __init__(self, header: GgufHeader, architecture: str):
        self.path, self._name, self._values = header.path, architecture, header.metadata

    def get(self, key: str, default: Any = None) -> Any:
        """A text, a flag or a number. Raises: UserError: it is a list."""
        value = self._values.get(f"{self._name}.{key}", default)
        if isinstance(value, list | np.ndarray):
            if len(value) and all(entry == value[0] for entry in value):  # one for each layer
                return value[0].item() if isinstance(value, np.ndarray) else value[0]
            raise self.wrong(key, "the same in all layers")
        return value

    def need(self, key: str) -> Any:
        """The same of a key that converters once left out. Raises: UserError: it is not there."""
        value = self.get(key)
        if value is None:
            raise self.wrong(key, "in the file, which newer converters see to")
        return value

    def wrong(self, key: str, wanted: str) -> UserError:
        found = self._values.get(f"{self._name}.{key}")
        if isinstance(found, np.ndarray):
            found = found.tolist()
        return UserError(
            f"{self.path}: metadata {self._name}.{key} is {show(found)}, but must be {wanted}; "
            "nothing else is computed"
        )

    def refuse(self, **values: Any) -> None:
        """Checks keys (dots written as __) that would change the mathematics."""
        for key, only in values.items():
            key = key.replace("__", ".")
            if self.get(key, only) != only:
                raise self.wrong(key, f"{only} or left out")


def _no_experts(metadata: Metadata) -> None:
    metadata.refuse(expert_count=0, attention__causal=True)


def _no_scales(metadata: Metadata) -> None:
    metadata.refuse(logit_scale=1.0, residual_scale=1.0, embedding_scale=1.0)


def _head_dim(metadata: Metadata) -> int:
    heads, width = metadata.get("attention.head_count", 1), metadata.get("embedding_length", 1)
    return metadata.get("attention.key_length", width // max(1, heads))


def _rotary(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """What nearly all architectures with rotary positions have in common."""
    _no_scales(metadata)
    return _rotary_of_any_scale(metadata)


def _rotary_of_any_scale(metadata: Metadata) -> dict[str, Any]:
    _no_experts(metadata)
    head_dim = _head_dim(metadata)
    metadata.refuse(attention__value_length=head_dim, rope__dimension_count=head_dim)
    kind = metadata.get("rope.scaling.type", "none")
    old = metadata.get("rope.scale_linear", 1.0)
    if kind == "none":
        return {} if old == 1 else {"rope_scaling": {"rope_type": "linear", "factor": old}}
    return {"rope_scaling": {"rope_type": kind, "factor": metadata.get("rope.scaling.factor")}}


def _llama(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    _no_scales(metadata)
    return _llama_of_any_scale(metadata, tensors)


def _llama_of_any_scale(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    values = _rotary_of_any_scale(metadata) | {
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
    }
    if _ROPE_FACTORS in tensors:
        values |= _llama3_scaling(metadata, tensors[_ROPE_FACTORS])
    return values


def _biased(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Qwen3: with biases of the attention or without."""
    return _rotary(metadata, tensors) | {"attention_bias": "blk.0.attn_q.bias" in tensors}


def _olmo2(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Windows are OLMo 3's, whose files are of the same architecture."""
    metadata.refuse(attention__sliding_window=0)
    return _biased(metadata, tensors)


def _smollm3(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Which layers have no rotary positions is not in the file; all models have this rule."""
    return _llama(metadata, tensors) | {"no_rope_layer_interval": 4}


def _granite(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """A scale that the file does not have is that of other models."""
    scale = metadata.get("attention.scale") or _head_dim(metadata) ** -0.5
    return _llama_of_any_scale(metadata, tensors) | {"attention_multiplier": scale}


def _phi3(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Factors of longrope are tensors; a window of 0 is none."""
    _no_experts(metadata)
    _no_scales(metadata)
    metadata.refuse(rope__scaling__type="none", rope__scale_linear=1.0)
    head_dim = _head_dim(metadata)
    values = {
        "sliding_window": metadata.need("attention.sliding_window") or None,
        "partial_rotary_factor": metadata.get("rope.dimension_count", head_dim) / head_dim,
    }
    if _SHORT_FACTORS not in tensors or _LONG_FACTORS not in tensors:
        return values
    return values | {
        "original_max_position_embeddings": metadata.need("rope.scaling.original_context_length"),
        "rope_scaling": {
            "type": "longrope",
            "short_factor": _factors(tensors, _SHORT_FACTORS),
            "long_factor": _factors(tensors, _LONG_FACTORS),
            "attention_factor": metadata.need("rope.scaling.attn_factor"),
        },
    }


def _factors(tensors: Mapping[str, TensorInfo], name: str) -> list[float]:
    """As they were written in config.json, before they became float32."""
    return [float(str(factor)) for factor in stored_tensor(tensors[name], name).read_whole()]


def _llama3_scaling(metadata: Metadata, info: TensorInfo) -> dict[str, Any]:
    """The rule of Llama 3 that gives these factors; the file has no other trace of it.

    Frequencies of short waves stay (1), of long ones are over `factor`, with a slope between. All
    models have 1 and 4 for its ends, and one factor on the slope tells the original length.
    """
    factors = stored_tensor(info, _ROPE_FACTORS).read_whole().astype(np.float64)
    if np.all(factors == 1):
        return {}
    theta, factor = metadata.get("rope.freq_base", 10_000.0), float(factors.max())
    waves = 2 * np.pi * theta ** (np.arange(len(factors)) / len(factors))
    slope = (1 / factors - 1 / factor) / (1 - 1 / factor)
    between = (slope > 0.01) & (slope < 0.99)
    told = metadata.get("rope.scaling.original_context_length", 8192)
    original = round(float(np.median((waves * (1 + 3 * slope))[between]))) if any(between) else told
    smooth = np.clip((original / waves - 1) / 3, 0, 1)
    if not np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-4):
        raise UserError(
            f"{info.path}: the factors of tensor {_ROPE_FACTORS} follow another rule than that of "
            "Llama 3 with the ends 1 and 4, and no other is computed"
        )
    scaling = {
        "rope_type": "llama3",
        "factor": float(str(np.float32(factor))),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }
    return {"rope_scaling": scaling}


def _gemma(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    return _rotary(metadata, tensors)


def _gemma2(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    return _rotary(metadata, tensors) | {"query_pre_attn_scalar": _query_scalar(metadata, 46)}


def _gemma3(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Base and pattern of the local layers are in new files alone; all models have these."""
    return _rotary(metadata, tensors) | {
        "query_pre_attn_scalar": _query_scalar(metadata, 62),
        "rope_local_base_freq": metadata.get("rope.freq_base_swa", 10_000.0),
        "sliding_window_pattern": metadata.get("attention.sliding_window_pattern", 6),
    }


def _query_scalar(metadata: Metadata, largest: int) -> float:
    """Queries are over its root: the width of a head, but in the largest model (by its layers)."""
    scale = metadata.get("attention.scale")
    if scale:
        return scale**-2
    if metadata.get("block_count") == largest:
        return metadata.get("embedding_length", 0) / max(1, metadata.get("attention.head_count", 1))
    return metadata.get("attention.key_length", 256)


def _gpt2(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    _no_experts(metadata)
    _no_scales(metadata)
    return {}


def _named(architecture: str, kind: str, **values: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": kind, **values}


_GEMMA_ACT = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
_SILU = {"hidden_act": "silu"}
_FULL = {"use_sliding_window": False}

ARCHITECTURES = {
    "llama": Architecture(
        _named("LlamaForCausalLM", "llama", **_SILU), _LLAMA_KEYS, _LLAMA_NAMES, _llama, True
    ),
    "qwen2": Architecture(
        _named("Qwen2ForCausalLM", "qwen2", **_SILU, **_FULL), _LLAMA_KEYS, _LLAMA_NAMES, _rotary
    ),
    "qwen3": Architecture(
        _named("Qwen3ForCausalLM", "qwen3", **_SILU, **_FULL), _LLAMA_KEYS, _LLAMA_NAMES, _biased
    ),
    "phi3": Architecture(
        _named("Phi3ForCausalLM", "phi3", **_SILU), _LLAMA_KEYS, _PHI3_NAMES, _phi3
    ),
    "granite": Architecture(
        _named("GraniteForCausalLM", "granite", **_SILU),
        _GRANITE_KEYS,
        _LLAMA_NAMES,
        _granite,
        pairs_rows=True,
    ),
    "olmo2": Architecture(
        _named("Olmo2ForCausalLM", "olmo2", **_SILU), _LLAMA_KEYS, _GEMMA2_NAMES, _olmo2
    ),
    "smollm3": Architecture(
        _named("SmolLM3ForCausalLM", "smollm3", **_SILU, **_FULL),
        _LLAMA_KEYS,
        _LLAMA_NAMES,
        _smollm3,
        pairs_rows=True,
    ),
    "gemma": Architecture(
        _named("GemmaForCausalLM", "gemma", **_GEMMA_ACT),
        _LLAMA_KEYS,
        _LLAMA_NAMES,
        _gemma,
        norm_added=1.0,
    ),
    "gemma2": Architecture(
        _named("Gemma2ForCausalLM", "gemma2", **_GEMMA_ACT),
        _GEMMA2_KEYS,
        _GEMMA2_NAMES,
        _gemma2,
        norm_added=1.0,
    ),
    "gemma3": Architecture(
        _named("Gemma3ForCausalLM", "gemma3_text", **_GEMMA_ACT),
        _GEMMA2_KEYS,
        _GEMMA2_NAMES,
        _gemma3,
        norm_added=1.0,
    ),
    "gpt2": Architecture(
        _named("GPT2LMHeadModel", "gpt2", activation_function="gelu_new"),
        _GPT2_KEYS,
        _GPT2_NAMES,
        _gpt2,
        flips=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    ),
}
