"""The parts of one decoder layer: projection, norms, MLP, attention, block.

Rows. A call carries main rows and stream rows in one array [B, X, D] with
X = T + A*J: the T main rows first, then J stream rows at each of A anchors. Everything but
attention is row-wise; only LoRA of the lossless mode and `Attention` know the difference,
which they read from `Layout`.

Blocks, f attention or MLP, n a norm:

    pre_norm    x + f(n(x))          one after the other (Llama, GPT-2, most OPT)
    post_norm   n(x + f(x))          one after the other (OPT-350m)
    sandwich    x + n'(f(n(x)))      one after the other (Gemma 2 and 3)
    parallel    x + attention(n(x)) + mlp(n(x))          one norm (Phi)
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from ssjax.config import ModelConfig
from ssjax.models.attention import (
    KV,
    LocalSegment,
    SharedSegment,
    apply_rotary,
    attend,
    matmul_precision,
    rotate_stream_values,
)
from ssjax.models.axes import PROJECTIONS, gathered
from ssjax.models.execution import Execution
from ssjax.models.fused_attention import fused_causal_attention
from ssjax.models.lora import LoRA
from ssjax.models.parameters import JOINED
from ssjax.parallel.partitioning import constrain

_ACTIVATIONS = {
    "silu": nn.silu,
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
}


@struct.dataclass
class Layout:
    """Where the rows of a call stand and what they may see; the same for layers of one kind.

    Deferred streams are the call with num_main = 0: their main keys come from an earlier
    call as `block`.
    """

    cos: jax.Array | None  # [B, X, W/2] float32, rotary tables of all rows; None: not rotary
    sin: jax.Array | None  # [B, X, W/2] float32
    main_mask: jax.Array | None  # [B or 1, T, T] bool: main rows over the main block
    stream_mask: jax.Array | None  # [B, A, T] bool: stream rows over the main block
    main_prefix: jax.Array | None  # [B, 1 or T, S] bool: main rows over the cache
    stream_prefix: jax.Array | None  # [B, 1 or A, S] bool: stream rows over the cache
    anchors: jax.Array | None  # [B, A] int32, set where main rows read their streams
    segments: jax.Array | None  # [B, T] int32, of packed rows; set where `fused`
    num_main: int = struct.field(pytree_node=False)  # T, or 0
    num_streams: int = struct.field(pytree_node=False)  # J, or 0
    value_angle: float = struct.field(pytree_node=False)  # the values of stream j turn by j of it
    dropout: bool = struct.field(pytree_node=False)  # training: LoRA drops inputs
    fused: bool = struct.field(pytree_node=False)  # main rows by a kernel, main_mask unused


class Projection(nn.Module):
    """A linear map, its weight stored [out, in] as in Hugging Face files, with optional LoRA.

    No transpose on import or export, and on CPU eight rows through an MLP of 512 cost
    1.5 to 1.9 times less than with [in, out].
    """

    features: int
    dtype: jnp.dtype
    bias: bool
    lora: LoRA | None
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        """[B, X, in] -> [B, X, out]."""
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0
        )
        width = x.shape[-1]
        out_axis, in_axis = PROJECTIONS[self.name]

        def product(x, weight, *axes):
            weight = gathered(weight.astype(self.dtype), *axes)
            return project(x, weight, self.dtype, self.execution)

        weight = self.param("weight", init, (self.features, width), jnp.float32)
        y = product(x, weight, out_axis, in_axis)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        if self.lora is None or self.name not in self.lora.targets:
            return y
        rank = self.lora.rank
        lora_a = self.param("lora_a", init, (rank, width), jnp.float32)
        lora_b = self.param("lora_b", nn.initializers.zeros, (self.features, rank), jnp.float32)
        num_plain = layout.num_main if self.lora.stream_rows_only else 0
        if num_plain == x.shape[1]:
            return y
        low = nn.Dropout(self.lora.dropout, deterministic=not layout.dropout)(x[:, num_plain:])
        low = product(low, lora_a, "rank", in_axis) * jnp.asarray(self.lora.scale, self.dtype)
        update = product(low, lora_b, out_axis, "rank")
        if num_plain == 0:
            return y + update
        return jnp.concatenate([y[:, :num_plain], y[:, num_plain:] + update], axis=1)


# Above this many rows both ways of `project` take about the same time.
_FEW_ROWS = 64


def project(x: jax.Array, weight: jax.Array, dtype, execution: Execution, result=None) -> jax.Array:
    """x [..., in] times weight [out, in] -> [..., out].

    With execution.few_rows_as_columns, 2 to 64 rows are multiplied as weight @ rows.T, which XLA's
    CPU library does without packing the weight, for a power of two of them best. 24 pairs of
    512 x 1408 on two CPU cores, milliseconds:

        number of rows     1     2     4     8     9    16    32    64
        rows @ weight.T  6.4  11.1  13.9  19.5  17.1  19.4  24.0  33.8
        weight @ rows.T  6.5   7.9   8.8  12.5  11.8  12.3  16.7  27.7

    Args:
      x, weight: multiplied in `dtype`.
      dtype: of the product, float32 or bfloat16.
      execution: see above.
      result: dtype that is returned; None: `dtype`.
    """
    x, weight = x.astype(dtype), weight.astype(dtype)
    *shape, width = x.shape
    num_rows = math.prod(shape)
    product = functools.partial(
        jax.lax.dot_general, precision=matmul_precision(dtype), preferred_element_type=result
    )
    if not execution.few_rows_as_columns or not 1 < num_rows <= _FEW_ROWS:
        return product(x, weight, (((x.ndim - 1,), (1,)), ((), ())))
    padded = max(4, 1 << (num_rows - 1).bit_length())
    rows = jnp.pad(x.reshape(num_rows, width), [(0, padded - num_rows), (0, 0)])
    # The barrier keeps XLA from turning it into the other product.
    columns = jax.lax.optimization_barrier(product(weight, rows, (((1,), (1,)), ((), ()))))
    return columns[:, :num_rows].T.reshape(*shape, columns.shape[0])


class Norm(nn.Module):
    """The norm of a config over the last axis, root-mean-square or layer norm, in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        ones = nn.initializers.constant(1.0 - config.norm_offset)
        weight = self.param("weight", ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        if config.norm == "layer":
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_epsilon)
        if config.norm_offset:
            weight = weight + config.norm_offset
        normed = wide * scale * weight
        if config.norm == "layer":
            zeros = nn.initializers.zeros
            normed = normed + self.param("bias", zeros, (x.shape[-1],), jnp.float32)
        return normed.astype(x.dtype)


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), or without the gate down(act(up(x)))."""

    config: ModelConfig
    lora: LoRA | None
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        config = self.config

        def linear(features, name):
            dtype = jnp.dtype(config.dtype)
            return Projection(
                features, dtype, config.mlp_bias, self.lora, self.execution, name=name
            )

        act = _ACTIVATIONS[config.activation]
        if config.gated_mlp and _is_joined("gate_up_proj", self.lora, self.execution):
            gate, up = jnp.split(linear(2 * config.mlp_dim, "gate_up_proj")(x, layout), 2, axis=-1)
            inner = act(gate) * up
        elif config.gated_mlp:
            gate = linear(config.mlp_dim, "gate_proj")(x, layout)
            inner = act(gate) * linear(config.mlp_dim, "up_proj")(x, layout)
        else:
            inner = act(linear(config.mlp_dim, "up_proj")(x, layout))
        inner = constrain(inner, "batch", "length", "mlp")
        return linear(config.embed_dim, "down_proj")(inner, layout)


class Attention(nn.Module):
    """Grouped-query attention of main rows and stream rows (paper Eq. 1 of v1 and Eq. 2)."""

    config: ModelConfig
    lora: LoRA | None
    execution: Execution

    @nn.compact
    def __call__(self, x: jax.Array, prefix: KV | None, block: KV | None, layout: Layout):
        """Attends with all rows of a call.

        Args:
          x: [B, X, D] normed rows.
          prefix: cached keys and values, or None when there is no cache.
          block: main keys and values of an earlier call over the same T positions, given
            exactly when layout.num_main is 0.
          layout: positions and masks.

        Returns:
          [B, X, D] and the main `KV` of this call, [B, K, T, H] (the given block if there
          are no main rows).
        """
        config = self.config
        num_kv, width = config.num_kv_heads, config.head_dim
        per_kv = config.num_heads // num_kv

        def linear(features, bias, name):
            dtype = jnp.dtype(config.dtype)
            return Projection(features, dtype, bias, self.lora, self.execution, name=name)

        def heads(num_heads, name):
            y = linear(num_heads * width, config.qkv_bias, name)(x, layout)
            return y.reshape(*x.shape[:2], num_heads, width)

        if _is_joined("qkv_proj", self.lora, self.execution):
            qkv = heads(config.num_heads + 2 * num_kv, "qkv_proj")
            q, k, v = jnp.split(qkv, [config.num_heads, config.num_heads + num_kv], axis=2)
        else:
            q = heads(config.num_heads, "q_proj")
            k, v = (heads(num_kv, name) for name in ("k_proj", "v_proj"))
        q = constrain(q, "batch", "length", "heads", "head_dim")
        k, v = (constrain(x, "batch", "length", "kv_heads", "head_dim") for x in (k, v))
        if config.query_key_norm:
            q, k = Norm(config, name="q_norm")(q), Norm(config, name="k_norm")(k)
        if layout.cos is not None:
            q = apply_rotary(q, layout.cos, layout.sin)
            k = apply_rotary(k, layout.cos, layout.sin)

        split = layout.num_main
        if split:
            block = KV(jnp.swapaxes(k[:, :split], 1, 2), jnp.swapaxes(v[:, :split], 1, 2))
        joined = self._attend_all(q, k, v, prefix, block, layout, (num_kv, per_kv, width))
        output = linear(config.embed_dim, config.output_bias, "o_proj")
        return output(joined, layout), block

    def _attend_all(self, q, k, v, prefix, block, layout, heads):
        """The attended rows before the output projection, [B, X, N*H]."""
        batch, split = q.shape[0], layout.num_main
        outputs = []
        if split:
            cached = [] if prefix is None else [SharedSegment(prefix, layout.main_prefix)]
            queries = q[:, :split].reshape(batch, split, 1, *heads)
            if layout.fused:
                main = fused_causal_attention(
                    queries[:, :, 0], block, layout.segments, self.config, self.execution.platform
                )
            else:
                main = self._attend(queries, [*cached, SharedSegment(block, layout.main_mask)])
            outputs.append(main.reshape(batch, split, -1))
        if layout.num_streams:
            rows = (batch, -1, layout.num_streams)  # [B, A, J, ...]
            queries = q[:, split:].reshape(*rows, *heads)
            own_mask = jnp.tril(jnp.ones((layout.num_streams,) * 2, bool))
            if layout.anchors is not None:
                # The main row of each anchor goes first and reads all of its streams.
                at_anchor = jnp.take_along_axis(q, layout.anchors[:, :, None, None], axis=1)
                at_anchor = at_anchor.reshape(batch, -1, 1, *heads)
                queries = jnp.concatenate([at_anchor, queries], axis=2)
                own_mask = jnp.concatenate([jnp.ones_like(own_mask[:1]), own_mask])
            values = v[:, split:].reshape(*rows, *v.shape[2:])
            if layout.value_angle:
                values = rotate_stream_values(values, layout.value_angle)
            own = LocalSegment(k[:, split:].reshape(*rows, *k.shape[2:]), values, own_mask)
            cached = [] if prefix is None else [SharedSegment(prefix, layout.stream_prefix)]
            block_seen = SharedSegment(block, layout.stream_mask)
            streams = self._attend(queries, [*cached, block_seen, own])
            if layout.anchors is not None:
                main = streams[:, :, 0].reshape(*layout.anchors.shape, -1)
                row = jnp.arange(batch)[:, None]
                outputs[0] = outputs[0].at[row, layout.anchors].set(main)
                streams = streams[:, :, 1:]
            outputs.append(streams.reshape(batch, q.shape[1] - split, -1))
        return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)

    def _attend(self, queries, segments):
        config = self.config
        return attend(queries, segments, config.query_scale or None, config.attention_softcap)


class Block(nn.Module):
    """One decoder layer, in the carry form that `nn.scan` wants."""

    config: ModelConfig
    lora: LoRA | None
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        per_layer: tuple[KV | None, KV | None, jax.Array | bool],
        layouts: tuple[Layout, Layout | None],
    ):
        """Returns the rows after this layer, [B, X, D], and its main `KV`.

        Args:
          x: [B, X, D] rows.
          per_layer: (cached prefix, main block of an earlier call, whether the layer is
            local), see `Attention`; local is an array where layers of both kinds are scanned.
          layouts: positions and masks of global and of local layers.
        """
        prefix, block, local = per_layer
        layout = _choose(layouts, local)
        config = self.config

        def norm(name):
            return Norm(config, name=name)

        def attention(x):
            with jax.named_scope("attention"):
                module = Attention(config, self.lora, self.execution, name="attention")
                return module(x, prefix, block, layout)

        def mlp(x):
            with jax.named_scope("mlp"):
                return MLP(config, self.lora, self.execution, name="mlp")(x, layout)

        if config.block == "pre_norm":
            attended, computed = attention(norm("attention_norm")(x))
            x = x + attended
            x = x + mlp(norm("mlp_norm")(x))
        elif config.block == "post_norm":
            attended, computed = attention(x)
            x = norm("attention_norm")(x + attended)
            x = norm("mlp_norm")(x + mlp(x))
        elif config.block == "sandwich":
            attended, computed = attention(norm("attention_norm")(x))
            x = x + norm("attention_post_norm")(attended)
            x = x + norm("mlp_post_norm")(mlp(norm("mlp_norm")(x)))
        else:
            normed = norm("attention_norm")(x)
            attended, computed = attention(normed)
            x = x + attended + mlp(normed)
        return constrain(x, "batch", "length", "features"), computed


def _is_joined(name: str, lora: LoRA | None, execution: Execution) -> bool:
    """Whether `parameters.join_projections` made one weight of these projections."""
    return execution.joined_projections and not (lora and set(JOINED[name]) & set(lora.targets))


def _choose(layouts, local):
    global_layout, local_layout = layouts
    if local_layout is None:
        return global_layout
    if isinstance(local, bool):
        return local_layout if local else global_layout
    return jax.tree.map(lambda g, w: jnp.where(local, w, g), global_layout, local_layout)


def _with_remat(block, remat):
    """The block, parts of it computed again in the backward pass; see `TrainConfig.remat`."""
    if remat == "none":
        return block
    policies = jax.checkpoint_policies
    policy = {"full": None, "products": policies.dots_with_no_batch_dims_saveable}[remat]
    return nn.remat(block, prevent_cse=False, policy=policy)


class Stack(nn.Module):
    """Layers one after another, scanned over stacked weights or unrolled over their own.

    Scanned for training and accelerators: compiles in constant time. Unrolled for CPU
    decoding: slicing stacked weights inside `jit` copies them on every call.
    """

    config: ModelConfig
    local: tuple[bool, ...]  # one a layer: whether it sees a window only
    lora: LoRA | None
    scan: bool
    execution: Execution

    @nn.compact
    def __call__(self, x, prefix, block, layouts):
        """Returns the rows after the last layer and the main `KV` of every layer.

        Args:
          x: [B, X, D] rows.
          prefix, block: per layer, in the form of `KVCache` for this stack, or None.
          layouts: positions and masks of global layers, and of local ones or None.
        """
        num_layers = len(self.local)
        if self.scan:
            scanned = nn.scan(
                _with_remat(Block, self.execution.remat),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),
                out_axes=0,
                length=num_layers,
                # On CPU a rolled loop copies every saved activation: 1,030 ms against 760 ms
                # for a training step of 4 layers of width 192.
                unroll=num_layers if self.execution.platform == "cpu" else 1,
            )
            per_layer = (prefix, block, jnp.array(self.local))
            if len(set(self.local)) == 1:  # no choice to make at run time
                layouts = (_choose(layouts, self.local[0]), None)
            return scanned(self.config, self.lora, self.execution, name="layers")(
                x, per_layer, layouts
            )
        blocks = []
        for i, local in enumerate(self.local):
            kv = (None if prefix is None else prefix[i], None if block is None else block[i])
            layer = Block(self.config, self.lora, self.execution, name=f"layers_{i}")
            x, computed = layer(x, (*kv, local), layouts)
            blocks.append(computed)
        return x, tuple(blocks)
