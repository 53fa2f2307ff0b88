"""Causal attention of main rows by the kernel of an accelerator, for training and prefill.

TPU    splash attention (Pallas), under `shard_map` where a mesh divides batch and heads
GPU    cuDNN, through `jax.nn.dot_product_attention`

Both compute in bfloat16 products, so models that compute in float32 keep the reference
attention of `attention.py`, as do layers whose window is chosen at run time.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ssjax.config import ModelConfig
from ssjax.models.attention import KV
from ssjax.models.execution import Execution
from ssjax.parallel import partitioning

# Splash wants blocks of a multiple of the first. The second is what published training code for TPU
# takes; its own default of 128 leaves more to do around the products than in them. Not measured.
_BLOCK, _LARGEST_BLOCK = 128, 512
_CUDNN_MAX_HEAD_DIM = 128


def is_fused(config: ModelConfig, execution: Execution, packed: bool) -> bool:
    """Whether main rows of a whole causal block are computed by a kernel.

    Args:
      config: of the model.
      execution: of the model.
      packed: rows hold several sequences.
    """
    one_kind = len(config.local_layers) in (0, config.num_layers)
    if not execution.fused_attention or config.dtype != "bfloat16" or not one_kind:
        return False
    if execution.platform == "tpu":
        return True
    return (
        execution.platform == "gpu"
        and not packed
        and not config.attention_softcap
        and config.head_dim <= _CUDNN_MAX_HEAD_DIM
        and config.head_dim % 8 == 0
    )


def fused_causal_attention(
    q_BTKGH: jax.Array,
    kv: KV,
    segments: jax.Array | None,
    config: ModelConfig,
    platform: str,
    interpret: bool = False,
) -> jax.Array:
    """Attention of every position over the positions up to itself.

    Args:
      q_BTKGH: queries, rotary positions applied.
      kv: [B, K, T, H] keys and values of the same T positions.
      segments: [B, T] int32, positions see their own segment only; None: one segment.
      config: of the model: window (of all layers or none), scale and softcap.
      platform: "tpu" or "gpu".
      interpret: run the TPU kernel in Python, for tests.

    Returns:
      [B, T, K, G, H] in the dtype of the queries.
    """
    window = config.window if config.local_layers else 0
    scale = config.query_scale or config.head_dim**-0.5
    if platform == "gpu":
        return _cudnn(q_BTKGH, kv, window, scale)
    return _splash(q_BTKGH, kv, segments, window, scale, config.attention_softcap, interpret)


def _cudnn(q, kv, window, scale):
    batch, length, num_kv, per_kv, width = q.shape
    out = jax.nn.dot_product_attention(
        q.reshape(batch, length, num_kv * per_kv, width),
        jnp.swapaxes(kv.keys, 1, 2),
        jnp.swapaxes(kv.values, 1, 2),
        scale=scale,
        is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn",
    )
    return out.reshape(q.shape)


def _splash(q, kv, segments, window, scale, softcap, interpret):
    from jax.experimental.pallas.ops.tpu.splash_attention import (  # 0.4 s, on TPU alone
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, per_kv = q.shape[1], q.shape[3]
    block, padded = _blocks(length)

    def pad(x, axis):  # keys after the end: no query before it sees them
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, padded - length)
        return jnp.pad(x, widths)

    mask = masks.CausalMask((padded, padded))
    if window:
        mask = mask & masks.LocalMask((padded, padded), (window - 1, 0), 0)

    def attend(q_bkgth, keys, values, segments):
        kernel = kernels.make_splash_mqa_single_device(
            masks.MultiHeadMask([mask] * per_kv),
            block_sizes=kernels.BlockSizes(
                **dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), block),
                **dict.fromkeys(("block_kv", "block_kv_dkv", "block_kv_dq"), block),
            ),
            attn_logits_soft_cap=softcap or None,
            interpret=interpret,
        )
        ids = None if segments is None else kernels.SegmentIds(q=segments, kv=segments)
        row = jax.vmap(kernel, in_axes=(0, 0, 0, None))  # over kv heads
        return jax.vmap(row)(q_bkgth, keys, values, ids)

    queries = pad(jnp.transpose(q * jnp.asarray(scale, q.dtype), (0, 2, 3, 1, 4)), 3)
    arguments = (queries, pad(kv.keys, 2), pad(kv.values, 2))
    if segments is not None:
        segments = pad(segments, 1)
    out = _per_shard(attend, q.shape[0], q.shape[2])(*arguments, segments)
    return jnp.transpose(out[:, :, :, :length], (0, 3, 1, 2, 4))


def _blocks(length):
    """Of so many positions: the size of a block, and what they are padded to."""
    number = -(-length // _LARGEST_BLOCK)
    block = -(-length // (number * _BLOCK)) * _BLOCK
    return block, number * block


def _per_shard(attend, batch_size, num_kv_heads):
    """The kernel on each device's rows and heads: the compiler cannot divide it by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return attend
    rows, heads = partitioning.spec(["batch", "kv_heads"], [batch_size, num_kv_heads], mesh.shape)
    spec = PartitionSpec(rows, heads)
    return functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(spec, spec, spec, PartitionSpec(rows)),
        out_specs=spec,
        check_vma=False,
    )(attend)
