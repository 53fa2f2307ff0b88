"""The parts of one decoder layer, and layers one after another: norms, MLP, attention, blocks.

Everything but attention is row-wise; only LoRA and `Attention` tell main rows from stream rows, by
the `Layout`.

Blocks, f attention or MLP (times `residual_multiplier`), n a norm:

    pre_norm    x + f(n(x))          one after the other (Llama, GPT-2, most OPT)
    post_norm   n(x + f(x))          one after the other (OPT-350m)
    output_norm x + n'(f(x))         one after the other (OLMo 2)
    sandwich    x + n'(f(n(x)))      one after the other (Gemma 2 and 3)
    parallel    x + attention(n(x)) + mlp(n(x))          one norm (Phi)
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssjax.config import ModelConfig
from ssjax.models.attention import (
    KV,
    LocalSegment,
    SharedSegment,
    apply_rotary,
    attend,
    rotate_stream_values,
)
from ssjax.models.execution import Execution
from ssjax.models.fused_attention import fused_causal_attention
from ssjax.models.layout import Layout, choose
from ssjax.models.lora import LoRA
from ssjax.models.projection import Projection, is_joined
from ssjax.parallel.partitioning import constrain

_ACTIVATIONS = {
    "silu": nn.silu,
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
}


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


def multiplied(x: jax.Array, factor: float) -> jax.Array:
    """x times a number of the config, in float32 and back; for 1 the same array."""
    return x if factor == 1 else (x.astype(jnp.float32) * factor).astype(x.dtype)


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
        if config.gated_mlp and is_joined("gate_up_proj", self.lora, self.execution):
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

        def linear(features, bias, name):
            dtype = jnp.dtype(config.dtype)
            return Projection(features, dtype, bias, self.lora, self.execution, name=name)

        def heads(num_heads, name):
            y = linear(num_heads * width, config.qkv_bias, name)(x, layout)
            return y.reshape(*x.shape[:2], num_heads, width)

        if is_joined("qkv_proj", self.lora, self.execution):
            qkv = heads(config.num_heads + 2 * num_kv, "qkv_proj")
            q, k, v = jnp.split(qkv, [config.num_heads, config.num_heads + num_kv], axis=2)
        else:
            q = heads(config.num_heads, "q_proj")
            k, v = (heads(num_kv, name) for name in ("k_proj", "v_proj"))
        q = constrain(q, "batch", "length", "heads", "head_dim")
        k, v = (constrain(x, "batch", "length", "kv_heads", "head_dim") for x in (k, v))
        if config.query_key_norm:
            q, k = self._normed(q, "q_norm"), self._normed(k, "k_norm")
        if layout.cos is not None:
            q = apply_rotary(q, layout.cos, layout.sin)
            k = apply_rotary(k, layout.cos, layout.sin)

        split = layout.num_main
        if split:
            block = KV(jnp.swapaxes(k[:, :split], 1, 2), jnp.swapaxes(v[:, :split], 1, 2))
        seen = _Seen(prefix, block)
        rows = [self._attend_main(q[:, :split], seen, layout)] if split else []
        if layout.num_streams:
            own = _own_streams(k[:, split:], v[:, split:], layout)
            streams, at_anchors = self._attend_streams(q, own, seen, layout)
            if at_anchors is not None:
                row = jnp.arange(x.shape[0])[:, None]
                rows[0] = rows[0].at[row, layout.anchors].set(at_anchors)
            rows.append(streams)
        joined = rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)
        output = linear(config.embed_dim, config.output_bias, "o_proj")
        return output(joined, layout), block

    def _normed(self, x_BXNH, name):
        """Queries or keys after their norm, over each head or over all heads together."""
        norm = Norm(self.config, name=name)
        if self.config.query_key_norm_over == "head":
            return norm(x_BXNH)
        return norm(x_BXNH.reshape(*x_BXNH.shape[:2], -1)).reshape(x_BXNH.shape)

    def _attend_main(self, q_BTNH, seen, layout):
        """The main rows, [B, T, N*H]."""
        queries = self._grouped(q_BTNH, 1)
        if layout.fused:
            main = fused_causal_attention(
                queries[:, :, 0], seen.block, layout.segments, self.config, self.execution.platform
            )
        else:
            main = self._attend(queries, seen.segments(layout.main_prefix, layout.main_mask))
        return main.reshape(*q_BTNH.shape[:2], -1)

    def _attend_streams(self, q_BXNH, own, seen, layout):
        """The stream rows, [B, A*J, N*H], and what they change in the main rows.

        Where main rows read their streams: the main rows of the anchors, [B, A, N*H]; else None.
        """
        batch, num_streams = q_BXNH.shape[0], layout.num_streams
        queries = self._grouped(q_BXNH[:, layout.num_main :], num_streams)
        if layout.anchors is not None:
            # The main row of each anchor goes first and reads all of its streams.
            at_anchors = jnp.take_along_axis(q_BXNH, layout.anchors[:, :, None, None], axis=1)
            queries = jnp.concatenate([self._grouped(at_anchors, 1), queries], axis=2)
            mask = jnp.concatenate([jnp.ones_like(own.mask[:1]), own.mask])
            own = own.replace(mask=mask)
        if self.lora is not None and self.lora.detached:
            seen = seen.detached()
        shared = seen.segments(layout.stream_prefix, layout.stream_mask)
        attended = self._attend(queries, [*shared, own])
        at_anchors = None
        if layout.anchors is not None:
            at_anchors = attended[:, :, 0].reshape(*layout.anchors.shape, -1)
            attended = attended[:, :, 1:]
        return attended.reshape(batch, q_BXNH.shape[1] - layout.num_main, -1), at_anchors

    def _grouped(self, q_BXNH, num_rows):
        """Queries of X / I positions with I rows each, by key/value head: [B, X/I, I, K, G, H]."""
        num_kv, width = self.config.num_kv_heads, self.config.head_dim
        return q_BXNH.reshape(
            q_BXNH.shape[0], -1, num_rows, num_kv, self.config.num_heads // num_kv, width
        )

    def _attend(self, queries, segments):
        config = self.config
        return attend(queries, segments, config.query_scale or None, config.attention_softcap)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """Keys and values that main rows and stream rows see: of the cache, and of the main block."""

    prefix: KV | None
    block: KV

    def segments(self, prefix_mask, block_mask) -> list[SharedSegment]:
        cached = [] if self.prefix is None else [SharedSegment(self.prefix, prefix_mask)]
        return [*cached, SharedSegment(self.block, block_mask)]

    def detached(self) -> "_Seen":
        """The same, and no gradient flows into it."""
        return _Seen(*jax.lax.stop_gradient((self.prefix, self.block)))


def _own_streams(k_BXKH, v_BXKH, layout) -> LocalSegment:
    """What a stream sees beside its anchor: itself and the streams before it."""
    num_streams = layout.num_streams

    def by_anchor(x_BXKH):
        return x_BXKH.reshape(x_BXKH.shape[0], -1, num_streams, *x_BXKH.shape[2:])

    mask = jnp.tril(jnp.ones((num_streams,) * 2, bool))
    values = by_anchor(v_BXKH)
    if layout.value_angle:
        values = rotate_stream_values(values, layout.value_angle)
    return LocalSegment(by_anchor(k_BXKH), values, mask)


class Block(nn.Module):
    """One decoder layer, in the carry form that `nn.scan` wants."""

    config: ModelConfig
    lora: LoRA | None
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        per_layer: tuple[KV | None, KV | None, jax.Array | int],
        layouts: tuple[Layout, ...],
    ):
        """Returns the rows after this layer, [B, X, D], and its main `KV`.

        Args:
          x: [B, X, D] rows.
          per_layer: (cached prefix, main block of an earlier call, number of its layout), see
            `Attention`; the number is an array where layers are scanned.
          layouts: positions and masks of each kind of layers.
        """
        prefix, block, number = per_layer
        layout = choose(layouts, number)
        config = self.config

        def norm(name):
            return Norm(config, name=name)

        def attention(x):
            with jax.named_scope("attention"):
                module = Attention(config, self.lora, self.execution, name="attention")
                attended, computed = module(x, prefix, block, layout)
                return multiplied(attended, config.residual_multiplier), computed

        def mlp(x):
            with jax.named_scope("mlp"):
                output = MLP(config, self.lora, self.execution, name="mlp")(x, layout)
                return multiplied(output, config.residual_multiplier)

        if config.block == "pre_norm":
            attended, computed = attention(norm("attention_norm")(x))
            x = x + attended
            x = x + mlp(norm("mlp_norm")(x))
        elif config.block == "post_norm":
            attended, computed = attention(x)
            x = norm("attention_norm")(x + attended)
            x = norm("mlp_norm")(x + mlp(x))
        elif config.block == "output_norm":
            attended, computed = attention(x)
            x = x + norm("attention_post_norm")(attended)
            x = x + norm("mlp_post_norm")(mlp(x))
        elif config.block == "sandwich":
            attended, computed = attention(norm("attention_norm")(x))
            x = x + norm("attention_post_norm")(attended)
            x = x + norm("mlp_post_norm")(mlp(norm("mlp_norm")(x)))
        else:
            normed = norm("attention_norm")(x)
            attended, computed = attention(normed)
            x = x + attended + mlp(normed)
        return constrain(x, "batch", "length", "features"), computed


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
    kinds: tuple[int, ...]  # one a layer: the number of its layout
    lora: LoRA | None
    scan: bool
    execution: Execution

    @nn.compact
    def __call__(self, x, prefix, block, layouts):
        """Returns the rows after the last layer and the main `KV` of every layer.

        Args:
          x: [B, X, D] rows.
          prefix, block: per layer, in the form of `KVCache` for this stack, or None.
          layouts: positions and masks of each kind of layers.
        """
        num_layers = len(self.kinds)
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
            per_layer = (prefix, block, jnp.array(self.kinds))
            if len(set(self.kinds)) == 1:  # no choice to make at run time
                layouts = (choose(layouts, self.kinds[0]),)
            return scanned(self.config, self.lora, self.execution, name="layers")(
                x, per_layer, layouts
            )
        blocks = []
        for i, number in enumerate(self.kinds):
            kv = (None if prefix is None else prefix[i], None if block is None else block[i])
            own = (self.config, self.lora, self.execution)
            if self.is_initializing():
                x, computed = Block(*own, name=f"layers_{i}")(x, (*kv, number), layouts)
            else:
                params = self.get_variable("params", f"layers_{i}")
                layer = Block(*own, parent=None)
                x, computed = _apply(layer, number, params, x, kv, layouts)
            blocks.append(computed)
        return x, tuple(blocks)


# A `jit` of its own, which is traced once for all layers that are alike: of SmolLM2's 30 layers a
# decode loop of three widths is traced in 0.8 s, and in 2.3 s without. XLA puts the calls in line.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(layer, number, params, x, kv, layouts):
    """A layer of an unrolled stack, outside of its module."""
    return layer.apply({"params": params}, x, (*kv, number), layouts)
