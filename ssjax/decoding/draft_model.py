"""A second, smaller model that drafts: classic speculative decoding, in the same loop.

It shares the tokenizer and keeps a cache of its own, which holds what the row had emitted when
it last drafted. Each tree takes as many of its passes as there are draft nodes: the first reads
the tokens that have been emitted since, the others one drafted token each.

    cache                 reads now           drafts            cache afterwards
    ..the cat (valid: 2)  sat on the          mat . The         ..the cat sat on the|mat .

What lies after the bar was drafted. It is not valid: the next time the cache counts as filled
up to the emitted tokens, and those slots are written again.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.decoding.drafters import Context
from ssjax.decoding.lookup import merge_chain
from ssjax.decoding.sampling import first_argmax
from ssjax.decoding.tree import DraftTree, root_only
from ssjax.models.attention import Causal
from ssjax.models.cache import KVCache, cache_from_block, write_path
from ssjax.models.parameters import Params
from ssjax.models.transformer import Transformer


@struct.dataclass
class DraftMemory:
    """What the draft model has read."""

    cache: KVCache
    length: jax.Array  # [B] int32, valid slots of the cache


@dataclasses.dataclass(frozen=True)
class ModelDrafter:
    """A chain of the tokens that the draft model finds likeliest.

    Attributes:
      model: without streams, in the form (scanned or unrolled) of its parameters, which are
        given to the loop.
      num_draft_nodes: tokens drafted, and passes of the draft model, per tree.
    """

    model: Transformer
    num_draft_nodes: int
    num_streams: int = 0
    num_heads: int = 0
    num_candidates: int = 0
    kept_nodes: int = 0
    exit_threshold: float = 0.0

    @property
    def num_nodes(self) -> int:
        return 1 + self.num_draft_nodes

    @property
    def max_depth(self) -> int:
        return self.num_draft_nodes

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.num_nodes,)

    def start(
        self, params: Params, prompts: jax.Array, prompt_length: jax.Array, capacity: int
    ) -> DraftMemory:
        """Reads the prompts."""
        positions = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
        output = self.model.apply({"params": params}, prompts, positions, Causal())
        return DraftMemory(cache_from_block(output.block, prompt_length, capacity), prompt_length)

    def propose(self, context: Context) -> tuple[DraftTree, DraftMemory]:
        """Drafts; at most max_depth + 1 tokens may be new since the last time."""
        params, cache = context.params, context.memory.cache
        step = jnp.arange(self.max_depth + 1)
        place = context.memory.length[:, None] + step
        window = jnp.minimum(place, context.tokens.shape[1] - 1)
        tokens = jnp.take_along_axis(context.tokens, window, axis=1)
        valid, count = context.memory.length, context.length - context.memory.length
        chain = []
        for number in range(self.num_draft_nodes):
            path = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            output = self.model.apply(
                {"params": params}, tokens, valid[:, None] + path, Causal(), cache, valid
            )
            last = jnp.maximum(count - 1, 0)[:, None, None]  # a row that never began has none
            hidden = jnp.take_along_axis(output.hidden, last, axis=1)
            logits = self.model.apply({"params": params}, hidden, method="logits")
            chain.append(first_argmax(logits[:, 0]))
            # The last draft is never read: whether it holds is known before the next tree.
            if number == 0 or number + 1 < self.num_draft_nodes:
                execution = self.model.execution
                cache = write_path(cache, output.block, path, valid, count, execution)
            valid, count = valid + count, jnp.ones_like(count)
            tokens = chain[-1][:, None]
        meant = jnp.full_like(context.length, self.num_draft_nodes)
        tree = merge_chain(root_only(context.root), jnp.stack(chain, axis=1), meant)
        return tree, DraftMemory(cache, context.length)
