"""GGUF files of the tiny models, written as llama.cpp's converter writes them."""

import json
import math
from pathlib import Path

import family_cases
import numpy as np

# Hugging Face's name -> GGUF's, the layer left out.
NAMES = {
    "embed_tokens": "token_embd",
    "wte": "token_embd",
    "wpe": "position_embd",
    "lm_head": "output",
    "norm": "output_norm",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
PAIRED = ("llama", "granite", "smollm3")  # architectures that store rows in pairs
TOKENS = ["<s>", "</s>", "a", "b", "ab", "c"]


def values_of(name: str) -> dict:
    return json.loads((family_cases.GOLDEN / name / "config.json").read_text())


def tensors_of(name: str, architecture: str) -> dict[str, np.ndarray]:
    """The tensors as llama.cpp stores them."""
    values, found = values_of(name), {}
    for full, tensor in family_cases.read_tensors(family_cases.GOLDEN / name).items():
        if full.endswith((".attn.bias", "inv_freq")):
            continue
        stem, leaf = full.removeprefix("model.").removeprefix("transformer.").rsplit(".", 1)
        parts = stem.split(".")
        block = f"blk.{parts[1]}." if parts[0] in ("layers", "h") else ""
        kind = ".".join(parts[2:]) if block else stem
        target = NAMES[kind]
        if architecture in ("gemma2", "gemma3", "olmo2") and kind == "post_attention_layernorm":
            target = "post_attention_norm"
        if architecture in PAIRED and target in ("attn_q", "attn_k"):
            key = "num_attention_heads" if target == "attn_q" else "num_key_value_heads"
            heads = values.get(key, values["num_attention_heads"])
            shape = tensor.shape
            tensor = tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
            tensor = tensor.swapaxes(1, 2).reshape(shape)
        if architecture.startswith("gemma") and target.endswith("norm"):
            tensor = tensor + np.float32(1)
        if architecture == "gpt2" and block and tensor.ndim == 2:
            tensor = tensor.T
        found[f"{block}{target}.{leaf}"] = np.ascontiguousarray(tensor)
    rope = values.get("rope_scaling") or {}
    if rope.get("rope_type") == "llama3":
        found["rope_freqs.weight"] = llama3_factors(values)
    for length in ("short", "long"):
        if f"{length}_factor" in rope:
            factors = np.array(rope[f"{length}_factor"], np.float32)
            found[f"rope_factors_{length}.weight"] = factors
    return found


def llama3_factors(values: dict) -> np.ndarray:
    """As the converter computes them, one frequency after another."""
    rope, factors = values["rope_scaling"], []
    for i in range(0, values["head_dim"], 2):
        wave = 2 * np.pi * values["rope_theta"] ** (i / values["head_dim"])
        low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
        high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
        if wave < high:
            factors.append(1.0)
        elif wave > low:
            factors.append(rope["factor"])
        else:
            smooth = (low / wave - 1) / (low / high - 1)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def metadata_of(name: str, architecture: str) -> dict:
    """Keys without the architecture; numbers are written as uint32 or float32."""
    values = values_of(name)
    if architecture == "gpt2":
        return {
            "embedding_length": values["n_embd"],
            "block_count": values["n_layer"],
            "feed_forward_length": 4 * values["n_embd"],
            "context_length": values["n_positions"],
            "attention.head_count": values["n_head"],
            "attention.layer_norm_epsilon": values["layer_norm_epsilon"],
        }
    heads = values["num_attention_heads"]
    head_dim = values.get("head_dim", values["hidden_size"] // heads)
    found = {
        "embedding_length": values["hidden_size"],
        "block_count": values["num_hidden_layers"],
        "feed_forward_length": values["intermediate_size"],
        "context_length": values["max_position_embeddings"],
        "attention.head_count": heads,
        "attention.head_count_kv": values.get("num_key_value_heads", heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": values["rms_norm_eps"],
    }
    if "rope_theta" in values:
        found["rope.freq_base"] = float(values["rope_theta"])
    if architecture == "phi3":
        del found["attention.key_length"], found["attention.value_length"]
        longest, original = (
            values[key] for key in ("max_position_embeddings", "original_max_position_embeddings")
        )
        found["rope.scaling.original_context_length"] = original
        found["rope.scaling.attn_factor"] = math.sqrt(
            1 + math.log(longest / original) / math.log(original)
        )
        found["rope.dimension_count"] = int(values.get("partial_rotary_factor", 1.0) * head_dim)
    if architecture == "granite":
        found["attention.scale"] = values["attention_multiplier"]
        found["embedding_scale"] = values["embedding_multiplier"]
        found["residual_scale"] = values["residual_multiplier"]
        found["logit_scale"] = values["logits_scaling"]
    if architecture in ("gemma2", "gemma3", "phi3"):
        found["attention.sliding_window"] = values["sliding_window"]
    if architecture == "gemma2":
        found["attn_logit_softcapping"] = values["attn_logit_softcapping"]
        found["final_logit_softcapping"] = values["final_logit_softcapping"]
    if architecture == "gemma3":
        found["rope.freq_base_swa"] = float(values["rope_local_base_freq"])
        found["attention.sliding_window_pattern"] = values["sliding_window_pattern"]
    rope = values.get("rope_scaling") or {}
    if "linear" in rope.values():
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    return found


def tokenizer_metadata() -> dict:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def write(path: Path, architecture: str, metadata: dict, tensors: dict, kind: str = "F32") -> None:
    """Writes a file.

    Args:
      path: of the file.
      architecture: general.architecture.
      metadata: full keys.
      tensors: float32, or (bytes of rows, name of their form).
      kind: of float32 matrices whose rows it can hold.
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    form = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=gguf.GGMLQuantizationType[tensor[1]])
        elif tensor.ndim == 2 and tensor.shape[1] % gguf.GGML_QUANT_SIZES[form][0] == 0:
            writer.add_tensor(name, gguf.quants.quantize(tensor, form), raw_dtype=form)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path: Path, name: str, architecture: str, kind: str = "F32", **changes) -> None:
    """A tiny model with a small tokenizer; changes: of the metadata, dots written as __."""
    metadata = {f"{architecture}.{k}": v for k, v in metadata_of(name, architecture).items()}
    metadata |= tokenizer_metadata()
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    write(path, architecture, metadata, tensors_of(name, architecture), kind)
