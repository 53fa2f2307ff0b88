"""The model and the drafter at work: what is computed in a pass, before anything is decided."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssjax.decoding.acceptance import Acceptance
from ssjax.decoding.adapters import AnyParams, RowParams, with_params
from ssjax.decoding.candidates import find_candidates
from ssjax.decoding.drafters import Context, Drafter
from ssjax.decoding.pruning import joint_log_probs, prune
from ssjax.decoding.row_penalties import penalise
from ssjax.decoding.row_settings import draw_by_row
from ssjax.decoding.sampling import adjust, draw, only_allowed, position_noise
from ssjax.decoding.state import DecodeSpec, DecodeState
from ssjax.decoding.tree import DraftTree, ancestor_mask, without_drafts
from ssjax.models.attention import Causal
from ssjax.models.cache import KVCache
from ssjax.models.outputs import Anchors, ModelOutput
from ssjax.models.parameters import Params
from ssjax.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Reading:
    """Prompts, or pieces of them, that a call reads."""

    tokens: jax.Array  # [B, T] int32, padded on the right
    last: jax.Array  # [B, 1] int32, place of the last that is no padding
    cache: KVCache | None  # of what was read before; None: nothing
    start: jax.Array | None  # [B] int32, how many tokens that were; None: none

    @property
    def positions(self) -> jax.Array:
        """[B, T] int32."""
        places = jnp.broadcast_to(jnp.arange(self.tokens.shape[1]), self.tokens.shape)
        return places if self.start is None else places + self.start[:, None]


@dataclasses.dataclass(frozen=True)
class DraftOutput:
    """What a pass over a draft computed."""

    tree: DraftTree  # the nodes that were run to the end
    mask: jax.Array  # [B, M, M] bool, what each of them sees
    output: ModelOutput


@dataclasses.dataclass(frozen=True)
class Forward:
    """All that a pass computes with and none changes."""

    model: Transformer  # scanned or unrolled
    params: AnyParams  # in the same form; where rows have adapters, `RowParams`
    drafter: Drafter
    spec: DecodeSpec
    drafter_params: Params | None = None  # the drafter's own, if it has any

    def apply(self, *args, **kwargs) -> Any:
        """The model, with its parameters."""

        def apply(params, *args, **kwargs):
            return self.model.apply({"params": params}, *args, **kwargs)

        return with_params(self.params, apply, *args, **kwargs)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Main logits [..., V] float32 of hidden states [..., D]."""
        return self.apply(hidden, method="logits")

    def read(self, reading: Reading) -> ModelOutput:
        """The model over prompts; streams run at the last token of each alone, if they can yet."""
        needed, streams = self.drafter.num_streams, self.model.streams
        if streams.main_reads_streams:
            needed = streams.num_streams
        return self.apply(
            reading.tokens,
            reading.positions,
            Causal(),
            reading.cache,
            reading.start,
            anchors=reading.last,
            num_streams=0 if streams.knows_root else needed,
        )

    def streams_after(
        self, reading: Reading, output: ModelOutput, root: jax.Array
    ) -> jax.Array | None:
        """As `streams_at`, after the prompts.

        Args:
          reading: of the prompts to their ends.
          output: what `read` made of it.
          root: [B] int32, the token that was drawn after each.
        """
        if not self.drafter.num_streams:
            return None
        if output.stream_hidden is not None:
            return output.stream_hidden[:, 0, : self.drafter.num_streams]
        last, positions = reading.last, reading.positions
        anchors = Anchors(
            hidden=jnp.take_along_axis(output.trunk_hidden, last[:, :, None], axis=1),
            positions=jnp.take_along_axis(positions, last, axis=1),
            mask=Causal().rows(last, reading.tokens.shape[1]),
            roots=root[:, None],
        )
        return self._speculate(anchors, output.block, positions, reading.cache, reading.start)

    def run_draft(self, state: DecodeState) -> DraftOutput:
        """The model over the draft of a state, pruned between trunk and stream layers if asked."""
        drafter, tree, cached = self.drafter, state.draft, state.length - 1
        mask = ancestor_mask(tree.parent, drafter.max_depth)
        positions = cached[:, None] + tree.depth
        trunk = self.apply(tree.tokens, positions, mask, state.cache, cached, method="run_trunk")
        budget = drafter.kept_nodes or drafter.num_nodes - 1
        if budget < drafter.num_nodes - 1 or drafter.exit_threshold > 0:
            with jax.named_scope("prune"):
                logits = self.logits(self.apply(trunk.hidden, method="early_exit"))
                joint = joint_log_probs(tree, mask, logits, drafter.exit_threshold)
                tree, kept = prune(tree, joint, min(1 + budget, drafter.num_nodes))
                mask = ancestor_mask(tree.parent, drafter.max_depth)
                trunk = trunk.at_positions(kept)
        output = self.apply(
            trunk,
            cached[:, None] + tree.depth,
            mask,
            state.cache,
            cached,
            anchors=jnp.broadcast_to(jnp.arange(tree.tokens.shape[1]), tree.tokens.shape),
            num_streams=self._streams_in_pass(),
            method="run_stream_layers",
        )
        return DraftOutput(tree, mask, output)

    def adjusted(self, state: DecodeState, logits: jax.Array, max_depth: int) -> jax.Array:
        """Main logits with penalties, bans and masks, [B, M, V]. max_depth: of state.draft."""
        spec = self.spec
        if state.penalties is not None:
            logits = penalise(logits, state.penalties, state.draft, max_depth)
        adjusted = adjust(
            logits, spec.sampling, state.history, state.draft, state.length, spec.eos_ids, max_depth
        )
        return adjusted if state.allowed is None else only_allowed(adjusted, state.allowed)

    def draw(
        self, state: DecodeState, adjusted: jax.Array, logits: jax.Array, max_depth: int
    ) -> jax.Array:
        """Draws the next token after every node from adjusted logits, [B, M] int32."""

        def make_noise():
            positions = state.length[:, None] + jnp.arange(max_depth + 1)
            return position_noise(state.row_keys, positions, adjusted.shape[-1])

        if state.settings is not None:
            return draw_by_row(adjusted, logits, state.draft.depth, make_noise, state.settings)
        noise = make_noise() if self.spec.sampling.temperature > 0 else None
        return draw(adjusted, logits, state.draft.depth, noise, self.spec.sampling)

    def eos_ids(self, state: DecodeState) -> tuple[int, ...] | jax.Array:
        """Ids that end a row, for all or [B, E] int32."""
        return self.spec.eos_ids if state.settings is None else state.settings.eos_ids

    def streams_at(
        self, state: DecodeState, draft: DraftOutput, acceptance: Acceptance, root: jax.Array
    ) -> jax.Array | None:
        """Stream hidden states at the last accepted node, [B, J, D]; None: the drafter needs none.

        Args:
          state: that the pass began with; its draft is draft.tree.
          draft: of this pass.
          acceptance: of this pass.
          root: [B] int32, the last token that it emitted.
        """
        if not self.drafter.num_streams:
            return None
        output, node = draft.output, acceptance.path[:, -1:]  # [B, 1]
        if self._streams_in_pass():
            at_node = jnp.take_along_axis(output.stream_hidden, node[:, :, None, None], axis=1)
            return at_node[:, 0, : self.drafter.num_streams]
        cached = state.length - 1
        anchors = Anchors(
            hidden=jnp.take_along_axis(output.trunk_hidden, node[:, :, None], axis=1),
            positions=cached[:, None] + jnp.take_along_axis(state.draft.depth, node, axis=1),
            mask=jnp.take_along_axis(draft.mask, node[:, :, None], axis=1),
            roots=root[:, None],
        )
        positions = cached[:, None] + state.draft.depth
        return self._speculate(anchors, output.block, positions, state.cache, cached)

    def propose(
        self,
        state: DecodeState,
        stream_hidden: jax.Array | None,
        hidden: jax.Array,
        broken: jax.Array,
    ) -> DecodeState:
        """The state with the next draft, from what was computed at the last accepted node.

        Args:
          state: after the pass.
          stream_hidden: [B, J, D] there, from `streams_at`.
          hidden: [B, D] main hidden state there.
          broken: [B] bool, rows that get no draft, besides those whose settings say so.
        """
        root = state.last_tokens
        drafter, candidates = self.drafter, None
        ahead, of_heads = stream_hidden, drafter.num_heads > 0
        if of_heads:
            ahead = self.apply(hidden, method="medusa")
        if ahead is not None:
            width = drafter.num_candidates
            candidates = find_candidates(self.model, self.params, ahead, root, width, of_heads)
            candidates = candidates.of_streams(drafter.num_heads or drafter.num_streams)
        context = Context(
            state.tokens, state.length, root, candidates, self.drafter_params, state.memory
        )
        draft, memory = self.drafter.propose(context)
        if state.settings is not None:
            broken |= ~state.settings.drafting
        if isinstance(self.params, RowParams) and drafter.num_streams:
            broken |= ~self.params.has_streams
        return state.replace(draft=without_drafts(draft, broken), memory=memory)

    def _speculate(self, anchors, block, block_positions, cache, length) -> jax.Array:
        """Deferred streams of the drafter at one anchor of each row, [B, J, D]."""
        needed = self.drafter.num_streams
        return self.apply(
            anchors, block, block_positions, cache, length, needed, method="speculate"
        )[:, 0]

    def _streams_in_pass(self) -> int:
        """How many streams run beside every node of a pass."""
        if self.model.streams.main_reads_streams:
            return self.model.streams.num_streams
        return 0 if self.spec.deferred else self.drafter.num_streams
