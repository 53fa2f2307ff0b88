"""What the decode loop carries from pass to pass, and what is fixed for all of them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.decoding.acceptance import Emission, Likeliest
from ssjax.decoding.row_penalties import RowPenalties, with_output
from ssjax.decoding.row_settings import RowSettings
from ssjax.decoding.sampling import History, Sampling, extend_history
from ssjax.decoding.tree import DraftTree
from ssjax.models.cache import KVCache


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """What is fixed for a compiled loop; changing it recompiles."""

    capacity: int  # tokens per row, prompt included
    eos_ids: tuple[int, ...]  # each of them ends a row
    pad_id: int  # fills what is not written
    sampling: Sampling
    deferred: bool  # streams run after verification at the accepted node, not beside every node
    log_probs: bool = False  # keep log-probabilities of emitted tokens
    num_likeliest: int = 0  # K, with log_probs: keep those of the likeliest tokens, too
    accept: str = "exact"  # or "typical"; see acceptance.py


@struct.dataclass
class Rows:
    """The prompts of a batch, one a row."""

    prompts: jax.Array  # [B, T] int32, padded on the right, T at most the capacity
    prompt_length: jax.Array  # [B] int32, at least 1
    max_new_tokens: jax.Array  # [B] int32, cut where the capacity ends; a row of 0 emits nothing
    keys: jax.Array  # [B] keys, for sampling
    settings: RowSettings | None = None  # where rows are drawn or end differently
    allowed: jax.Array | None = None  # [B, 1, ceil(V / 32)] int32, see `DecodeState`
    penalties: RowPenalties | None = None  # where rows are penalised differently
    adapter: jax.Array | None = None  # [B] int32, where there are adapters; see `adapters`


@struct.dataclass
class Part:
    """What is read of prompts: a piece of each, after what was read of it before."""

    cache: KVCache  # [B, ...] of so many slots as the state will have, valid below start
    start: jax.Array  # [B] int32, tokens that were read before, fewer than the prompt has
    width: int = struct.field(pytree_node=False)  # tokens that are read now, at most


@struct.dataclass
class DecodeState:
    """The carry: all that one pass reads and writes.

    Invariants: tokens[b, :length[b]] are final; the last of them is the root of the draft and the
    only one that is not in the cache (of a row that may emit nothing, the whole prompt is); a row
    that is done keeps tokens, length, cache and counters.
    """

    tokens: jax.Array  # [B, capacity] int32, prompt then output, pad elsewhere
    born: jax.Array  # [B, capacity] int32, the pass that emitted the token; 0 prompt and prefill
    drafted: jax.Array  # [B, capacity] bool, the token is a draft node that its pass kept
    length: jax.Array  # [B] int32
    limit: jax.Array  # [B] int32, length at which the row stops
    done: jax.Array  # [B] bool
    failed: jax.Array  # [B] bool, done because the model's output is not finite
    draft: DraftTree  # M nodes
    memory: Any  # what the drafter keeps between passes
    cache: KVCache  # valid below length - 1
    row_keys: jax.Array  # [B] keys, for sampling
    calls: jax.Array  # [B] int32, decode passes while the row was not done
    history: History  # of tokens[b, :length[b]], for penalties and bans
    log_probs: jax.Array | None  # [B, capacity] float32 of output tokens, 0 elsewhere
    settings: RowSettings | None = None  # of each row; None: those of the spec hold for all
    # [B, M, ceil(V / 32)] int32, a bit for each token that may follow each node of the draft, the
    # lowest first; None: any token may. It holds for one pass.
    allowed: jax.Array | None = None
    penalties: RowPenalties | None = None  # of each row, besides those of the spec
    likeliest: Likeliest | None = None  # [B, capacity, K], in the places of output tokens
    adapter: jax.Array | None = None  # [B] int32, place of each row's adapter; None: no adapters

    @property
    def last_tokens(self) -> jax.Array:
        """[B] int32, the last token of each row: the root of its draft."""
        return jnp.take_along_axis(self.tokens, self.length[:, None] - 1, axis=1)[:, 0]

    def append(self, emission: Emission, kept: jax.Array, failed: jax.Array) -> "DecodeState":
        """The state with the tokens of a pass after each row; the draft is left for the caller.

        Args:
          emission: of the pass, whose number is `calls`.
          kept: [B] int32, how many of its tokens are draft nodes: the first ones.
          failed: [B] bool, rows that end here because the model's output is not finite.
        """
        step = jnp.arange(emission.tokens.shape[1])
        emitted = step < emission.count[:, None]
        slot = jnp.where(emitted, self.length[:, None] + step, self.tokens.shape[1])

        @jax.vmap  # no row writes into another's, which the compiler then knows
        def write(old, slot, new):
            return old.at[slot].set(new, mode="drop")

        numbers = jnp.broadcast_to(self.calls[:, None], slot.shape)
        log_probs = self.log_probs
        if log_probs is not None:
            log_probs = write(log_probs, slot, emission.log_probs)
        likeliest = self.likeliest
        if likeliest is not None:
            likeliest = jax.tree.map(
                lambda old, new: write(old, slot, new), likeliest, emission.likeliest
            )
        penalties = self.penalties
        if penalties is not None:
            penalties = with_output(penalties, emission.tokens, emitted)
        return self.replace(
            tokens=write(self.tokens, slot, emission.tokens),
            born=write(self.born, slot, numbers),
            drafted=write(self.drafted, slot, step < kept[:, None]),
            length=self.length + emission.count,
            done=emission.done | failed,
            failed=self.failed | failed,
            history=extend_history(self.history, emission.tokens, emitted),
            log_probs=log_probs,
            penalties=penalties,
            likeliest=likeliest,
        )
