"""The decoder: trunk, stream layers, LM head; main rows and stream rows in one pass.

    tokens -> embedding -> trunk (L - Ns layers, main rows only)
           -> insert streams: f(hidden at anchor t) plus stream embedding j   (paper Eq. 3)
           -> stream layers (Ns layers, main and stream rows)
           -> final norm -> LM head, shared

Main at t predicts token t + 1, stream j (1..J) at t predicts token t + 1 + j and has
rotary position t + j. By default main rows never read a stream, so no stream parameter can
change a main logit, streams may be cut from the end (num_streams < J), and they may run in a
later call (`speculate`) with equal results. With streams.main_reads_streams (paper Eq. 1 of
the PMLR version) the main row of an anchor also reads all of its own streams; they then run in
every call, all J of them. In layers with a window, a stream sees what its anchor sees.

f is the identity, or with streams.init_rank f(h) = h + B A h, one map for all streams; that the
map is added to the identity, with B zero at first, is our choice, as is the token after the anchor
that streams.root_rank adds (`stream_start`). With streams.variation=rotation
there is no stream embedding: all streams of an anchor start alike, and their values are turned,
see `attention.rotate_stream_values`. Of the angle the paper gives the upper bound; it is used here.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssjax.config import AdaptationConfig, ModelConfig, StreamsConfig
from ssjax.models import lora
from ssjax.models.attention import Causal, matmul_precision
from ssjax.models.axes import gathered
from ssjax.models.cache import KVCache, valid_slots
from ssjax.models.execution import Execution
from ssjax.models.fused_attention import is_fused
from ssjax.models.head import Head, head_logits
from ssjax.models.int8 import rows_of
from ssjax.models.layers import Norm, Stack, multiplied
from ssjax.models.layout import (
    Keys,
    MainRows,
    StreamRows,
    kinds_in_use,
    layer_kinds,
    make_layouts,
    rows_of_mask,
)
from ssjax.models.outputs import Anchors, ModelOutput, TrunkOutput
from ssjax.models.parameters import Params
from ssjax.models.projection import project
from ssjax.models.stream_start import LowRank, StreamStart, start_streams
from ssjax.parallel.partitioning import constrain


class Transformer(nn.Module):
    """A decoder with speculative streams.

    Attributes:
      config: sizes, mathematics and compute dtype; vocab_size must be set.
      streams: number of streams and of the layers that run them.
      scan: scanned (stacked weights) or unrolled (one set of weights a layer) form;
        `parameters.stack_layers` and `unstack_layers` convert between them.
      adaptation: which projections have LoRA.
      execution: how it is computed.
    """

    config: ModelConfig
    streams: StreamsConfig
    scan: bool
    adaptation: AdaptationConfig = AdaptationConfig()
    execution: Execution = Execution()

    def setup(self):
        config, streams = self.config, self.streams
        table_dim = config.table_dim or config.embed_dim

        def matrix(name, *shape):
            return self.param(name, nn.initializers.normal(0.02), shape, jnp.float32)

        def zeros(name, *shape):
            return self.param(name, nn.initializers.zeros, shape)

        self.embedder = matrix("embedder", config.vocab_size, table_dim)
        if not config.tie_embeddings:
            self.lm_head = matrix("lm_head", config.vocab_size, table_dim)
        if config.head_bias:
            self.lm_head_bias = zeros("lm_head_bias", config.vocab_size)
        if config.positions == "learned":
            num_places = config.max_positions + config.position_offset
            self.position_table = matrix("position_table", num_places, config.embed_dim)
        if config.table_dim:
            self.table_in = matrix("table_in", config.embed_dim, table_dim)
            self.table_out = matrix("table_out", table_dim, config.embed_dim)
        if streams.num_streams and streams.variation == "embedding":
            shape = (streams.num_streams, config.embed_dim)
            self.stream_embedding = matrix("stream_embedding", *shape)
        if streams.init_rank:
            self.stream_init_down = matrix("stream_init_down", streams.init_rank, config.embed_dim)
            self.stream_init_up = zeros("stream_init_up", config.embed_dim, streams.init_rank)
        if streams.knows_root:
            self.stream_root_down = matrix("stream_root_down", streams.root_rank, table_dim)
            self.stream_root_up = zeros("stream_root_up", config.embed_dim, streams.root_rank)
        if streams.exit_rank:
            self.exit_down = matrix("exit_down", streams.exit_rank, config.embed_dim)
            self.exit_up = zeros("exit_up", config.embed_dim, streams.exit_rank)
        if streams.knows_parents:
            rank, gates = streams.parent_rank, (streams.num_ahead, streams.parent_rank)
            self.parent_down = matrix("parent_down", rank, table_dim)
            self.parent_query = matrix("parent_query", rank, table_dim)
            self.parent_gate = self.param("parent_gate", nn.initializers.ones, gates)
            self.parent_up = zeros("parent_up", table_dim, rank)
        if streams.medusa_heads:
            heads = streams.medusa_heads
            self.medusa_weight = zeros("medusa_weight", heads, table_dim, table_dim)
            self.medusa_bias = zeros("medusa_bias", heads, table_dim)
            self.medusa_head = matrix("medusa_head", heads, config.vocab_size, table_dim)

        num_trunk = config.num_layers - streams.num_stream_layers
        used = kinds_in_use(config)
        kinds = tuple(used.index(kind) for kind in layer_kinds(config))
        below = lora.trunk_lora(self.adaptation)
        above = lora.stream_layers_lora(self.adaptation, streams.num_streams)

        def stack(kinds, adapters):
            return Stack(config, kinds, adapters, self.scan, self.execution)

        self.trunk = stack(kinds[:num_trunk], below) if num_trunk else None
        self.stream_layers = stack(kinds[num_trunk:], above)
        self.final_norm = Norm(config) if config.final_norm else None

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array | Causal,
        cache: KVCache | None = None,
        length: jax.Array | None = None,
        anchors: jax.Array | None = None,
        num_streams: int = 0,
    ) -> ModelOutput:
        """Runs main rows, and stream rows beside the anchors.

        With a random key "dropout" among `rngs`, LoRA drops inputs.

        Args:
          tokens: [B, T] int32.
          positions: [B, T] int32, places in the sequence.
          mask: which of the T tokens each token sees: `Causal` for sequences, for a draft
            tree the ancestor mask [B or 1, T, T] bool. Windows are applied on top.
          cache: tokens before this call, slot s holding position s; or None.
          length: [B] int32, valid slots of the cache.
          anchors: [B, A] int32, which of the T tokens carry streams; needed if num_streams.
          num_streams: how many streams run, at most the model's J; 0 for none.

        Raises:
          ValueError: main rows read streams and not all of those run.
        """
        trunk = self.run_trunk(tokens, positions, mask, cache, length)
        return self.run_stream_layers(trunk, positions, mask, cache, length, anchors, num_streams)

    def run_trunk(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array | Causal,
        cache: KVCache | None = None,
        length: jax.Array | None = None,
    ) -> TrunkOutput:
        """The first half of a call; arguments as there."""
        with jax.named_scope("embed"):
            x = self._embed(tokens, positions)
        if self.trunk is None:
            return TrunkOutput(x, (), tokens)
        main = self._main_rows(positions, mask, cache)
        keys = Keys(positions, valid_slots(cache, length))
        layouts = make_layouts(self.config, main, None, keys, self.has_rng("dropout"))
        with jax.named_scope("trunk"):
            prefix = None if cache is None else cache.trunk
            return TrunkOutput(*self.trunk(x, prefix, None, layouts), tokens)

    def run_stream_layers(
        self,
        trunk: TrunkOutput,
        positions: jax.Array,
        mask: jax.Array | Causal,
        cache: KVCache | None = None,
        length: jax.Array | None = None,
        anchors: jax.Array | None = None,
        num_streams: int = 0,
    ) -> ModelOutput:
        """The second half of a call, over all T main rows of `run_trunk` or fewer of them.

        Args:
          trunk: what `run_trunk` returned, or its `at_positions`; T rows.
          the others: of those T rows, as in a whole call. Streams that know their root are run
            over sequences alone: the root of an anchor is the token after it.

        Raises:
          ValueError: main rows read streams and not all of those run; or streams know their root,
            and this is a draft, whose next token is not drawn yet.
        """
        self._check_streams(num_streams)
        x, num_tokens = trunk.hidden, trunk.hidden.shape[1]
        main, streams = self._main_rows(positions, mask, cache), None
        keys = Keys(positions, valid_slots(cache, length))
        if num_streams:
            start = lora.for_drafts(x, self.adaptation)
            at_anchors = Anchors(
                hidden=jnp.take_along_axis(start, anchors[:, :, None], axis=1),
                positions=jnp.take_along_axis(positions, anchors, axis=1),
                mask=rows_of_mask(mask, anchors, num_tokens),
                roots=_tokens_after(trunk.tokens, anchors) if isinstance(mask, Causal) else None,
            )
            x = jnp.concatenate([x, self._start_streams(at_anchors, num_streams)], axis=1)
            read = anchors if self.streams.main_reads_streams else None
            streams = self._stream_rows(at_anchors, num_streams, read)
        layouts = make_layouts(self.config, main, streams, keys, self.has_rng("dropout"))
        with jax.named_scope("stream_layers"):
            prefix = None if cache is None else cache.stream_layers
            x, block = self.stream_layers(x, prefix, None, layouts)
        x = self._finish(x)
        stream_hidden = None
        if num_streams:
            stream_hidden = x[:, num_tokens:].reshape(*anchors.shape, num_streams, x.shape[-1])
        return ModelOutput(
            hidden=x[:, :num_tokens],
            stream_hidden=stream_hidden,
            trunk_hidden=trunk.hidden,
            block=KVCache(trunk.block, block),
        )

    def speculate(
        self,
        anchors: Anchors,
        block: KVCache,
        block_positions: jax.Array,
        cache: KVCache | None,
        length: jax.Array | None,
        num_streams: int,
    ) -> jax.Array:
        """Runs only stream rows, beside main rows of an earlier call (deferred streams).

        Args:
          anchors: of that call.
          block: `ModelOutput.block` of that call.
          block_positions: [B, T] int32, positions of its tokens.
          cache, length: as given to that call.
          num_streams: how many streams run, 1 to the model's J.

        Returns:
          [B, A, J, D], equal to `ModelOutput.stream_hidden` of a call with these anchors.

        Raises:
          ValueError: main rows read streams, which therefore cannot come later; or these start
            from roots, and the anchors have none.
        """
        if self.streams.main_reads_streams:
            raise ValueError("streams that the main stream reads cannot be deferred")
        rows = self._start_streams(anchors, num_streams)
        streams = self._stream_rows(anchors, num_streams)
        keys = Keys(block_positions, valid_slots(cache, length))
        layouts = make_layouts(self.config, None, streams, keys, dropout=False)
        with jax.named_scope("stream_layers"):
            prefix = None if cache is None else cache.stream_layers
            x, _ = self.stream_layers(rows, prefix, block.stream_layers, layouts)
        x = self._finish(x)
        return x.reshape(*anchors.positions.shape, num_streams, x.shape[-1])

    def early_exit(self, trunk_hidden: jax.Array) -> jax.Array:
        """Hidden states for the LM head straight after the trunk, through the exit adapter.

        Paper section 3.1.3: a low-rank map that guesses the next token before the stream layers.
        No gradient flows below it.

        Args:
          trunk_hidden: [..., D], `ModelOutput.trunk_hidden`.
        """
        hidden = jax.lax.stop_gradient(trunk_hidden)
        low = self._project(hidden, self.exit_down)
        return self._finish(hidden + self._project(low, self.exit_up))

    def medusa(self, hidden: jax.Array) -> jax.Array:
        """Hidden states of the Medusa heads: h + silu(W_k h + b_k) for head k.

        Args:
          hidden: [..., D], `ModelOutput.hidden`.

        Returns:
          [..., Q, D] for the Q heads, each with a vocabulary projection of its own:
          `make_medusa_head`.
        """
        hidden = lora.for_drafts(hidden, self.adaptation)
        weight = gathered(self.medusa_weight.astype(hidden.dtype), "streams", "features", "embed")
        precision = matmul_precision(hidden.dtype)
        inner = jnp.einsum("...d,qfd->...qf", hidden, weight, precision=precision)
        inner = inner + self.medusa_bias.astype(hidden.dtype)
        return hidden[..., None, :] + nn.silu(inner)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Projects hidden states [..., D] onto the vocabulary, [..., V] float32."""
        config = self.config
        table = self.embedder if config.tie_embeddings else self.lm_head
        bias = self.lm_head_bias if config.head_bias else None
        head = Head(table, bias, config.logit_divisor, config.logit_softcap)
        logits = head_logits(hidden, head, self.execution)
        between = ("length",) * (logits.ndim - 2)
        return constrain(logits, "batch", *between, "vocab")

    def _check_streams(self, num_streams):
        own = self.streams.num_streams
        if self.streams.main_reads_streams and num_streams != own:
            told = f"the main stream reads its {own} streams: they run in every call"
            raise ValueError(f"{told}, not {num_streams}")

    def _main_rows(self, positions, mask, cache) -> MainRows:
        if not isinstance(mask, Causal):
            return MainRows(positions, mask)
        packed = mask.segments is not None
        if cache is None and is_fused(self.config, self.execution, packed):
            return MainRows(positions, None, mask.segments, fused=True)
        return MainRows(positions, mask.dense(positions.shape[1]))

    def _stream_rows(self, anchors: Anchors, num_streams: int, read=None) -> StreamRows:
        """read: the anchors among the main rows, [B, A] int32, where those read their streams."""
        angle = 0.0
        if self.streams.variation == "rotation":
            # From the J that the model has: fewer streams at decoding turn as far.
            own = self.streams.rotation_length + self.streams.num_streams
            angle = math.pi / (2 * own)
        return StreamRows(anchors.positions, anchors.mask, num_streams, read, angle)

    def _embed(self, tokens, positions):
        config = self.config
        dtype = jnp.dtype(config.dtype)
        table = gathered(self.embedder, "vocab", "embed")
        x = rows_of(table, tokens, dtype)
        if config.table_dim:
            x = self._project(x, self.table_in)
        if config.scale_embeddings:
            x = x * jnp.asarray(config.embed_dim**0.5, dtype)
        x = multiplied(x, config.embedding_multiplier)
        if config.positions == "learned":
            # Draft nodes may lie past the end of the table; they are never emitted.
            place = jnp.minimum(positions, config.max_positions - 1) + config.position_offset
            table = gathered(self.position_table, "positions", "embed")
            x = x + jnp.take(table, place, axis=0).astype(dtype)
        return constrain(x, "batch", "length", "features")

    def _project(self, x, weight):
        return project(x, weight, x.dtype, self.execution)

    def _finish(self, x):
        if self.final_norm is not None:
            x = self.final_norm(x)
        return self._project(x, self.table_out) if self.config.table_dim else x

    def _start_streams(self, anchors: Anchors, num_streams: int) -> jax.Array:
        streams = self.streams
        start = StreamStart(
            embedding=self.stream_embedding if streams.variation == "embedding" else None,
            map=LowRank(self.stream_init_down, self.stream_init_up) if streams.init_rank else None,
            root=LowRank(self.stream_root_down, self.stream_root_up) if streams.root_rank else None,
            embedder=self.embedder,
        )
        return start_streams(start, anchors.hidden, anchors.roots, num_streams, self.execution)


def _tokens_after(tokens: jax.Array, index: jax.Array) -> jax.Array:
    """[B, A] int32, the token after each of these places of [B, T]; after the last itself."""
    return jnp.take_along_axis(tokens, jnp.minimum(index + 1, tokens.shape[1] - 1), axis=1)


def init_params(model: Transformer, seed: int) -> Params:
    """Random parameters, float32; pure, to be jitted or traced by the caller."""
    one = jnp.zeros((1, 1), jnp.int32)

    def touch_all(model):
        streams = model.streams
        output = model(one, one, Causal(), anchors=one, num_streams=streams.num_streams)
        if streams.exit_rank:
            model.early_exit(output.trunk_hidden)
        if streams.medusa_heads:
            model.medusa(output.hidden)

    return nn.init(touch_all, model)(jax.random.key(seed))["params"]


def abstract_params(model: Transformer) -> Params:
    """Shapes and dtypes of the parameters, without making them."""
    return jax.eval_shape(lambda: init_params(model, 0))
