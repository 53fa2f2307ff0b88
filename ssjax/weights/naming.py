"""What the tensors of each family are called.

A table from our parameter names to theirs. Which parameters a model has follows from its
`ModelConfig`; a table may name more. Ours are those of `parameters.flatten`, with "layer" in place
of the stack:

    layer/attention/q_proj/weight  ->  model.layers.{}.self_attn.q_proj.weight
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a parameter lies in a file; {} in the name stands for the layer."""

    name: str
    parts: tuple[str, ...] = ()  # ours that lie in it one after another; empty: this one alone
    transposed: bool = False  # stored [in, out]


def _linear(ours: str, theirs: str, **options) -> dict[str, Tensor]:
    """Weight and bias of a projection or a norm."""
    return {f"{ours}/{leaf}": Tensor(f"{theirs}.{leaf}", **options) for leaf in ("weight", "bias")}


def _fused(ours: tuple[str, ...], theirs: str, **options) -> dict[str, Tensor]:
    """Weights and biases of projections that a file holds as one, in this order."""
    return {
        f"{one}/{leaf}": Tensor(
            f"{theirs}.{leaf}", tuple(f"{part}/{leaf}" for part in ours), **options
        )
        for one in ours
        for leaf in ("weight", "bias")
    }


_QKV = tuple(f"layer/attention/{name}_proj" for name in "qkv")


LLAMA = {
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

GEMMA2 = {
    **LLAMA,
    **_linear("layer/attention_post_norm", "layers.{}.post_attention_layernorm"),
    **_linear("layer/mlp_norm", "layers.{}.pre_feedforward_layernorm"),
    **_linear("layer/mlp_post_norm", "layers.{}.post_feedforward_layernorm"),
}

OPT = {
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

PHI = {
    **LLAMA,
    "lm_head_bias": Tensor("lm_head.bias"),
    **_linear("final_norm", "final_layernorm"),
    **_linear("layer/attention/o_proj", "layers.{}.self_attn.dense"),
    **_linear("layer/mlp/up_proj", "layers.{}.mlp.fc1"),
    **_linear("layer/mlp/down_proj", "layers.{}.mlp.fc2"),
}

PHI3 = {
    **LLAMA,
    **_fused(_QKV, "layers.{}.self_attn.qkv_proj"),
    **_fused(("layer/mlp/gate_proj", "layer/mlp/up_proj"), "layers.{}.mlp.gate_up_proj"),
}

GPT2 = {
    "embedder": Tensor("wte.weight"),
    "lm_head": Tensor("lm_head.weight"),
    "position_table": Tensor("wpe.weight"),
    **_linear("final_norm", "ln_f"),
    **_linear("layer/attention_norm", "h.{}.ln_1"),
    **_linear("layer/mlp_norm", "h.{}.ln_2"),
    **_fused(_QKV, "h.{}.attn.c_attn", transposed=True),
    **_linear("layer/attention/o_proj", "h.{}.attn.c_proj", transposed=True),
    **_linear("layer/mlp/up_proj", "h.{}.mlp.c_fc", transposed=True),
    **_linear("layer/mlp/down_proj", "h.{}.mlp.c_proj", transposed=True),
}
