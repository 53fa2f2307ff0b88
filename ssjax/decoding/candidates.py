"""The tokens that a draft may use, and how likely each is after each that may come before it.

    stream 1   cat  dog        after the root
    stream 2   sat  ran        after cat: .7 .1     after dog: .2 .6
    stream 3   on   .          after sat: .6 .2     after ran: .3 .5

A stream alone says the same after every parent; a model with the parent correction
(`models.parent`) ranks the candidates of a stream anew after each candidate of the stream before.
Trees of every kind are read off this table.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.decoding.adapters import AnyParams, shared_params, with_params
from ssjax.models.head import head_logits, make_draft_head, make_medusa_head
from ssjax.models.parent import candidate_logits, make_correction
from ssjax.models.transformer import Transformer
from ssjax.parallel.partitioning import constrain, top_k

# Of a stream that is corrected: what is best after a parent is rarely best on its own.
NUM_RANKED_ANEW = 16
_MOST_INSIDE = 1 - 1e-6  # share of the candidates, as far as float32 can tell


@struct.dataclass
class Candidates:
    """The best tokens of J streams or heads."""

    tokens: jax.Array  # [B, J, W] int32, the best by the stream alone first
    # [B, J, P, W] float32, at most 0: log-probability of a candidate after candidate p of the
    # stream before, for stream 1 after the root. P is W, or 1 where all parents are alike.
    scores: jax.Array

    def of_streams(self, count: int) -> "Candidates":
        """Those of the first streams alone."""
        return Candidates(self.tokens[:, :count], self.scores[:, :count])

    def tempered(self, temperatures: Sequence[float] | jax.Array) -> "Candidates":
        """With every chance p become p ** (1 / T), in proportion; T by stream.

        Above 1 a stream that is too sure of itself speaks with less weight. All that is outside of
        the candidates counts as one more event.

        Args:
          temperatures: one a stream, above 0; more than there are streams are not looked at.
        """
        temperatures = jnp.asarray(temperatures, jnp.float32)[: self.tokens.shape[1]]
        scores = self.scores / temperatures[:, None, None]
        outside = log_outside(self.scores) / temperatures[:, None]
        norm = jnp.logaddexp(jax.nn.logsumexp(scores, axis=-1), outside)
        return Candidates(self.tokens, jnp.minimum(scores - norm[..., None], 0.0))


def log_outside(scores: jax.Array) -> jax.Array:
    """Log-probability of all tokens that are no candidates: [..., W] -> [...]."""
    inside = jnp.exp(jax.nn.logsumexp(scores, axis=-1))
    return jnp.log1p(-jnp.minimum(inside, _MOST_INSIDE))


def independent(log_probs: jax.Array, width: int) -> Candidates:
    """Candidates that do not know their parents.

    Args:
      log_probs: [B, J, V] float32, normalised. NaN counts as impossible.
      width: W, at most V.
    """
    scores, tokens = top_k(log_probs, width)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    return Candidates(tokens.astype(jnp.int32), scores[:, :, None])


def find_candidates(
    model: Transformer,
    params: AnyParams,
    hidden: jax.Array,
    root: jax.Array,
    width: int,
    of_heads: bool = False,
) -> Candidates:
    """Candidates of a model at one place of each row.

    Args:
      model: with streams or Medusa heads.
      params: its parameters.
      hidden: [B, J, D], ready for the LM head: of some streams, from the first on, or of all heads.
      root: [B] int32, the token that stream 1 follows.
      width: how many a drafter may use. W is that, NUM_RANKED_ANEW where parents are known and it
        is less, and at most V, or as many as the model can draft.
    """
    streams = model.streams
    # With a draft vocabulary, rows of the head and candidates are numbered within it until the end.
    few = () if of_heads else streams.draft_tokens
    head = make_draft_head(shared_params(params), model.config, streams)
    if of_heads:
        head = make_medusa_head(shared_params(params))
    ids = jnp.array(few) if few else None
    logits = head_logits(hidden, head, model.execution)
    logits = constrain(logits, "batch", "length", "vocab")
    vocab_size = logits.shape[-1]
    if not streams.knows_parents:
        alone = independent(jax.nn.log_softmax(logits, axis=-1), min(width, vocab_size))
        return alone if ids is None else alone.replace(tokens=ids[alone.tokens])
    width = min(max(width, NUM_RANKED_ANEW), vocab_size)
    best, tokens = top_k(logits, width)
    total = jax.nn.logsumexp(logits, axis=-1)
    # What the others weigh, whose logits nobody corrects.
    outside = total + log_outside(best - total[..., None])
    rows = tokens.astype(jnp.int32)
    tokens = rows if ids is None else ids[rows]
    first = jnp.broadcast_to(root[:, None, None], tokens[:, :1].shape)
    parents = jnp.concatenate([first, tokens[:, :-1]], axis=1)

    def corrected(params, hidden, parents, rows):
        return candidate_logits(make_correction(params), head, hidden, parents, rows)

    after = with_params(params, corrected, hidden, parents, rows)  # [B, J, P, W]
    norm = jnp.logaddexp(jax.nn.logsumexp(after, axis=-1), outside[:, :, None])
    scores = after - norm[..., None]
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, jnp.minimum(scores, 0.0))
    return Candidates(tokens, scores)
