"""The decoder: trunk, stream layers, LM head; main rows and stream rows in one pass.

    tokens -> embedding -> trunk (L - Ns layers, main rows only)
           -> insert streams: hidden at anchor t plus stream embedding j   (paper Eq. 3)
           -> stream layers (Ns layers, main and stream rows)
           -> final norm -> LM head, shared

Main at t predicts token t + 1, stream j (1..J) at t predicts token t + 1 + j and has
rotary position t + j. Main rows never read a stream, so no stream parameter can change a
main logit, streams may be cut from the end (num_streams < J), and they may run in a later
call (`speculate`) with equal results.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from ssjax.config import ModelConfig, StreamsConfig
from ssjax.models.attention import matmul_precision, rotary_tables
from ssjax.models.cache import KVCache
from ssjax.models.layers import Layout, RMSNorm, Stack


@struct.dataclass
class ModelOutput:
    """What one pass computed. Hidden states are after the final norm, ready for `logits`."""

    hidden: jax.Array  # [B, T, D] main rows
    stream_hidden: jax.Array | None  # [B, A, J, D], None without streams
    trunk_hidden: jax.Array  # [B, T, D] main rows where streams would start
    block: KVCache  # main keys and values of the T positions


class Transformer(nn.Module):
    """A Llama-type decoder with speculative streams.

    Attributes:
      config: sizes and compute dtype; vocab_size must be set.
      streams: number of streams and of the layers that run them.
      scan: scanned (stacked weights) or unrolled (one set of weights a layer) form;
        `parameters.stack_layers` and `unstack_layers` convert between them.
    """

    config: ModelConfig
    streams: StreamsConfig
    scan: bool

    def setup(self):
        config, streams = self.config, self.streams
        table = (config.vocab_size, config.embed_dim)
        self.embedder = self.param("embedder", nn.initializers.normal(0.02), table, jnp.float32)
        if not config.tie_embeddings:
            self.lm_head = self.param("lm_head", nn.initializers.normal(0.02), table, jnp.float32)
        if streams.num_streams:
            self.stream_embedding = self.param(
                "stream_embedding",
                nn.initializers.normal(0.02),
                (streams.num_streams, config.embed_dim),
                jnp.float32,
            )
        num_trunk = config.num_layers - streams.num_stream_layers
        self.trunk = Stack(config, num_trunk, self.scan) if num_trunk else None
        self.stream_layers = Stack(config, streams.num_stream_layers, self.scan)
        self.final_norm = RMSNorm(config.norm_epsilon)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: KVCache | None = None,
        length: jax.Array | None = None,
        anchors: jax.Array | None = None,
        num_streams: int = 0,
    ) -> ModelOutput:
        """Runs main rows, and stream rows beside the anchors.

        Args:
          tokens: [B, T] int32.
          positions: [B, T] int32, rotary positions.
          mask: [B or 1, T, T] bool, which of the T tokens each token sees: causal for a
            sequence, the ancestor mask for a draft tree.
          cache: tokens before this call, all seen by every row; or None.
          length: [B] int32, valid slots of the cache.
          anchors: [B, A] int32, which of the T tokens carry streams; needed if num_streams.
          num_streams: how many streams run, at most the model's J; 0 for none.
        """
        dtype = jnp.dtype(self.config.dtype)
        x = jnp.take(self.embedder, tokens, axis=0).astype(dtype)
        prefix_mask = _prefix_mask(cache, length)
        trunk_block = ()
        if self.trunk is not None:
            layout = self._layout(positions, None, mask, None, prefix_mask)
            with jax.named_scope("trunk"):
                prefix = None if cache is None else cache.trunk
                x, trunk_block = self.trunk(x, prefix, None, layout)
        trunk_hidden = x

        stream_positions = stream_mask = None
        if num_streams:
            rows, stream_positions = self._insert_streams(
                jnp.take_along_axis(x, anchors[:, :, None], axis=1),
                jnp.take_along_axis(positions, anchors, axis=1),
                num_streams,
            )
            stream_mask = _rows_of_mask(mask, anchors)
            x = jnp.concatenate([x, rows], axis=1)
        layout = self._layout(positions, stream_positions, mask, stream_mask, prefix_mask)
        with jax.named_scope("stream_layers"):
            prefix = None if cache is None else cache.stream_layers
            x, block = self.stream_layers(x, prefix, None, layout)
        x = self.final_norm(x)
        num_main = tokens.shape[1]
        stream_hidden = None
        if num_streams:
            stream_hidden = x[:, num_main:].reshape(*anchors.shape, num_streams, x.shape[-1])
        return ModelOutput(
            hidden=x[:, :num_main],
            stream_hidden=stream_hidden,
            trunk_hidden=trunk_hidden,
            block=KVCache(trunk_block, block),
        )

    def speculate(
        self,
        trunk_hidden: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        block: KVCache,
        cache: KVCache | None,
        length: jax.Array | None,
        num_streams: int,
    ) -> jax.Array:
        """Runs only stream rows, beside main rows of an earlier call (deferred streams).

        Args:
          trunk_hidden: [B, A, D], `ModelOutput.trunk_hidden` at the anchors.
          positions: [B, A] int32, positions of the anchors.
          mask: [B, A, T] bool, which of the T tokens of that call each anchor sees.
          block: `ModelOutput.block` of that call.
          cache, length: as given to that call.
          num_streams: how many streams run, 1 to the model's J.

        Returns:
          [B, A, J, D], equal to `ModelOutput.stream_hidden` of a call with these anchors.
        """
        rows, stream_positions = self._insert_streams(trunk_hidden, positions, num_streams)
        layout = self._layout(None, stream_positions, None, mask, _prefix_mask(cache, length))
        with jax.named_scope("stream_layers"):
            prefix = None if cache is None else cache.stream_layers
            x, _ = self.stream_layers(rows, prefix, block.stream_layers, layout)
        return self.final_norm(x).reshape(*positions.shape, num_streams, x.shape[-1])

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Projects hidden states [..., D] onto the vocabulary, [..., V] float32."""
        table = self.embedder if self.config.tie_embeddings else self.lm_head
        return vocabulary_logits(hidden, table)

    def _insert_streams(self, hidden_BAD, positions_BA, num_streams):
        """Returns stream rows [B, A*J, D] and their positions [B, A*J]."""
        embedding_JD = self.stream_embedding[:num_streams].astype(hidden_BAD.dtype)
        rows = hidden_BAD[:, :, None] + embedding_JD
        positions = positions_BA[:, :, None] + jnp.arange(1, num_streams + 1)
        batch = hidden_BAD.shape[0]
        return rows.reshape(batch, -1, rows.shape[-1]), positions.reshape(batch, -1)

    def _layout(self, main_positions, stream_positions, main_mask, stream_mask, prefix_mask):
        given = [p for p in (main_positions, stream_positions) if p is not None]
        cos, sin = rotary_tables(
            jnp.concatenate(given, axis=1), self.config.head_dim, self.config.rope_theta
        )
        num_anchors = 0 if stream_mask is None else stream_mask.shape[1]
        return Layout(
            cos=cos,
            sin=sin,
            main_mask=main_mask,
            stream_mask=stream_mask,
            prefix_mask=prefix_mask,
            num_main=0 if main_positions is None else main_positions.shape[1],
            num_streams=stream_positions.shape[1] // num_anchors if num_anchors else 0,
        )


def vocabulary_logits(hidden: jax.Array, table_VD: jax.Array) -> jax.Array:
    """hidden [..., D] times table [V, D] -> [..., V] float32, multiplied in hidden's dtype."""
    return jax.lax.dot_general(
        hidden, table_VD.astype(hidden.dtype), (((hidden.ndim - 1,), (1,)), ((), ())),
        precision=matmul_precision(hidden.dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip


def vocabulary_table(params: dict) -> jax.Array:
    """The [V, D] table of the LM head among the parameters: its own, or the tied embedding."""
    return params["lm_head"] if "lm_head" in params else params["embedder"]


def causal_mask(num_tokens: int) -> jax.Array:
    """[1, T, T] bool: token t sees tokens 0..t. Enough for rows padded on the right."""
    return jnp.tril(jnp.ones((1, num_tokens, num_tokens), bool))


def _prefix_mask(cache, length):
    if cache is None:
        return None
    num_slots = jax.tree.leaves(cache)[0].shape[-2]
    return (jnp.arange(num_slots) < length[:, None])[:, None]


def _rows_of_mask(mask, anchors):
    """[B or 1, T, T] at rows [B, A] -> [B, A, T]."""
    if mask.shape[0] == 1:
        return jnp.take(mask[0], anchors, axis=0)
    return jnp.take_along_axis(mask, anchors[:, :, None], axis=1)
