"""GGUF files as Hugging Face models: the config.json they amount to, and their tensors' names.

An architecture is one entry of `_ARCHITECTURES`: the keys of config.json that its metadata give,
and how its tensors are called. What follows is the path of every other model (`huggingface`), so
that mathematics that is not known stays refused there.

What llama.cpp does to weights when it writes a file is undone in `gguf_tensors`: it stores the rows
of queries and keys of "llama" in pairs, one more than the norm weights of Gemma, and the matrices
of GPT-2 the other way round.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ssjax.errors import UserError
from ssjax.files.gguf import GgufHeader, TensorInfo
from ssjax.files.objects import show
from ssjax.messages import say_once
from ssjax.weights import tensor_files
from ssjax.weights.gguf_tensors import GgufTensor, stored_tensor

_ROPE_FACTORS = "rope_freqs.weight"  # one for each pair of channels; frequencies are over them

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
_GPT2_KEYS = {
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_positions": "context_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}


@dataclasses.dataclass(frozen=True)
class _Architecture:
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
    more: Callable[["_Metadata", Mapping[str, TensorInfo]], dict[str, Any]]
    pairs_rows: bool = False
    norm_added: float = 0.0
    flips: tuple[str, ...] = ()


class _Metadata:
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


def _no_experts(metadata: _Metadata) -> None:
    metadata.refuse(expert_count=0, attention__causal=True, logit_scale=1.0)


def _rotary(metadata: _Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """What all architectures with rotary positions have in common."""
    _no_experts(metadata)
    metadata.refuse(residual_scale=1.0, embedding_scale=1.0)
    heads, width = metadata.get("attention.head_count", 1), metadata.get("embedding_length", 1)
    key_length = metadata.get("attention.key_length", width // max(1, heads))
    metadata.refuse(attention__value_length=key_length, rope__dimension_count=key_length)
    kind = metadata.get("rope.scaling.type", "none")
    old = metadata.get("rope.scale_linear", 1.0)
    if kind == "none":
        return {} if old == 1 else {"rope_scaling": {"rope_type": "linear", "factor": old}}
    return {"rope_scaling": {"rope_type": kind, "factor": metadata.get("rope.scaling.factor")}}


def _llama(metadata: _Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    values = _rotary(metadata, tensors) | {
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
    }
    if _ROPE_FACTORS in tensors:
        values |= _llama3_scaling(metadata, tensors[_ROPE_FACTORS])
    return values


def _qwen3(metadata: _Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    return _rotary(metadata, tensors) | {"attention_bias": "blk.0.attn_q.bias" in tensors}


def _llama3_scaling(metadata: _Metadata, info: TensorInfo) -> dict[str, Any]:
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


def _gemma(metadata: _Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    return _rotary(metadata, tensors)


def _gemma2(metadata: _Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    return _rotary(metadata, tensors) | {"query_pre_attn_scalar": _query_scalar(metadata, 46)}


def _gemma3(metadata: _Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Base and pattern of the local layers are in new files alone; all models have these."""
    return _rotary(metadata, tensors) | {
        "query_pre_attn_scalar": _query_scalar(metadata, 62),
        "rope_local_base_freq": metadata.get("rope.freq_base_swa", 10_000.0),
        "sliding_window_pattern": metadata.get("attention.sliding_window_pattern", 6),
    }


def _query_scalar(metadata: _Metadata, largest: int) -> float:
    """Queries are over its root: the width of a head, but in the largest model (by its layers)."""
    scale = metadata.get("attention.scale")
    if scale:
        return scale**-2
    if metadata.get("block_count") == largest:
        return metadata.get("embedding_length", 0) / max(1, metadata.get("attention.head_count", 1))
    return metadata.get("attention.key_length", 256)


def _gpt2(metadata: _Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    _no_experts(metadata)
    return {}


def _named(architecture: str, kind: str, **values: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": kind, **values}


_GEMMA_ACT = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
_SILU = {"hidden_act": "silu"}
_FULL = {"use_sliding_window": False}

_ARCHITECTURES = {
    "llama": _Architecture(
        _named("LlamaForCausalLM", "llama", **_SILU), _LLAMA_KEYS, _LLAMA_NAMES, _llama, True
    ),
    "qwen2": _Architecture(
        _named("Qwen2ForCausalLM", "qwen2", **_SILU, **_FULL), _LLAMA_KEYS, _LLAMA_NAMES, _rotary
    ),
    "qwen3": _Architecture(
        _named("Qwen3ForCausalLM", "qwen3", **_SILU, **_FULL), _LLAMA_KEYS, _LLAMA_NAMES, _qwen3
    ),
    "gemma": _Architecture(
        _named("GemmaForCausalLM", "gemma", **_GEMMA_ACT),
        _LLAMA_KEYS,
        _LLAMA_NAMES,
        _gemma,
        norm_added=1.0,
    ),
    "gemma2": _Architecture(
        _named("Gemma2ForCausalLM", "gemma2", **_GEMMA_ACT),
        _GEMMA2_KEYS,
        _GEMMA2_NAMES,
        _gemma2,
        norm_added=1.0,
    ),
    "gemma3": _Architecture(
        _named("Gemma3ForCausalLM", "gemma3_text", **_GEMMA_ACT),
        _GEMMA2_KEYS,
        _GEMMA2_NAMES,
        _gemma3,
        norm_added=1.0,
    ),
    "gpt2": _Architecture(
        _named("GPT2LMHeadModel", "gpt2", activation_function="gelu_new"),
        _GPT2_KEYS,
        _GPT2_NAMES,
        _gpt2,
        flips=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    ),
}


def _architecture(header: GgufHeader) -> tuple[_Architecture, _Metadata]:
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise UserError(
            f"{header.path}: GGUF architecture {show(name)} is not known; these are: "
            f"{', '.join(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[name], _Metadata(header, name)


def config_values(header: GgufHeader) -> dict[str, Any]:
    """The config.json that the Hugging Face model of a file would have.

    Raises:
      UserError: the architecture is not known, or metadata ask for other mathematics.
    """
    architecture, metadata = _architecture(header)
    found = {key: metadata.get(theirs) for key, theirs in architecture.keys.items()}
    values = {**architecture.values, **{k: v for k, v in found.items() if v is not None}}
    values |= architecture.more(metadata, header.tensors)
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise UserError(f"{header.path}: tensor token_embd.weight is missing; fetch it again")
    values |= {"vocab_size": table.shape[0], "tie_word_embeddings": _is_tied(header)}
    layers = next(key for key, theirs in architecture.keys.items() if theirs == "block_count")
    if extra := metadata.get("nextn_predict_layers", 0):
        values[layers] = values.get(layers, 0) - extra
        say_once(f"{header.path}: its last {extra} blocks predict further tokens and are not read")
    return values


def _is_tied(header: GgufHeader) -> bool:
    """Whether the head is the embedding: it is left out, or stands there a second time."""
    head, table = header.tensors.get("output.weight"), header.tensors["token_embd.weight"]
    return head is None or (
        head.kind == table.kind
        and tensor_files.equal(stored_tensor(head, "output"), stored_tensor(table, "token_embd"))
    )


def find_tensors(header: GgufHeader) -> dict[str, GgufTensor]:
    """All tensors of a model by their names in Hugging Face's files; those not known keep theirs.

    Raises:
      UserError: one is stored in a form that is not read, or lies beyond the end of its file.
    """
    architecture, metadata = _architecture(header)
    extra = metadata.get("nextn_predict_layers", 0)
    last = metadata.get("block_count", 0) - extra
    found = {}
    for info in header.tensors.values():
        block = info.name.split(".")[1] if info.name.startswith("blk.") else ""
        if info.name == _ROPE_FACTORS or (extra and block.isdigit() and int(block) >= last):
            continue
        name = _their_name(info.name, block, architecture.names)
        changes = _changes(info, architecture, metadata) if name != info.name else {}
        found[name] = stored_tensor(info, name, **changes)
    return found


def _their_name(name: str, block: str, names: Mapping[str, str]) -> str:
    stem, _, leaf = name.rpartition(".")
    pattern = stem.replace(f"blk.{block}.", "blk.{}.", 1) if block else stem
    if leaf not in ("weight", "bias") or pattern not in names:
        return name
    return f"{names[pattern].format(block)}.{leaf}"


def _changes(info: TensorInfo, architecture: _Architecture, metadata: _Metadata) -> dict[str, Any]:
    """How the stored values differ from Hugging Face's."""
    stem, _, leaf = info.name.rpartition(".")
    kind = stem.rpartition(".")[2]
    changes: dict[str, Any] = {}
    if architecture.pairs_rows and kind in ("attn_q", "attn_k"):
        heads = metadata.get("attention.head_count", 0)
        if kind == "attn_k":
            heads = metadata.get("attention.head_count_kv", heads)
        rows = info.shape[0]
        if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
            raise UserError(
                f"{info.path}: tensor {info.name} has {rows} rows, which are not those of {heads} "
                "heads; fetch the file again"
            )
        changes["heads"] = heads
    if architecture.norm_added and kind.endswith("norm") and leaf == "weight":
        changes["added"] = architecture.norm_added
    if kind in architecture.flips and leaf == "weight":
        changes["transposed"] = True
    return changes
