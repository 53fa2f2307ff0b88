"""Penalties that differ by row: arrays of the state, so that none of them compiles anything.

Where all rows have the same, as in a batch of `Decoder.generate`, they are those of the spec
(`sampling.adjust`), and what is off is no part of the program. Here all three are, of rows that ask
for none too, whose logits they leave as they are to the bit. After a draft node the tokens on its
path count as output, as there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssjax.decoding.tree import DraftTree, path_tokens


@struct.dataclass
class RowPenalties:
    """The penalties of each row, and the tokens that they look at."""

    repetition: jax.Array  # [B] float32, as in `Sampling`; 1: off
    presence: jax.Array  # [B] float32, as there; 0: off
    # [B] float32, subtracted from the logit of a token once for each time that it is in the output;
    # 0: off
    frequency: jax.Array
    in_prompt: jax.Array | None = None  # [B, V] bool; None before a prompt is read
    counts: jax.Array | None = None  # [B, V] int32, how often a token is in the output; as well


def penalties_of(repetition: float, presence: float, frequency: float) -> RowPenalties:
    """The penalties of one row, as NumPy arrays with B = 1."""
    return RowPenalties(
        *(np.array([value], np.float32) for value in (repetition, presence, frequency))
    )


def with_prompts(
    penalties: RowPenalties, prompts: jax.Array, prompt_length: jax.Array, vocab_size: int
) -> RowPenalties:
    """The penalties before the first token.

    Args:
      penalties: of B rows.
      prompts: [B, T] int32, padded on the right.
      prompt_length: [B] int32.
      vocab_size: V.
    """
    none = jnp.zeros((prompts.shape[0], vocab_size), jnp.int32)
    inside = jnp.arange(prompts.shape[1]) < prompt_length[:, None]
    in_prompt = _counted(none, prompts, inside) > 0
    return penalties.replace(in_prompt=in_prompt, counts=none)


def with_output(penalties: RowPenalties, tokens: jax.Array, emitted: jax.Array) -> RowPenalties:
    """The penalties after a pass.

    Args:
      penalties: before it.
      tokens: [B, R] int32.
      emitted: [B, R] bool, which of them became part of the output.
    """
    return penalties.replace(counts=_counted(penalties.counts, tokens, emitted))


def penalise(
    logits: jax.Array, penalties: RowPenalties, tree: DraftTree, max_depth: int
) -> jax.Array:
    """The logits after every node under the penalties of its row, [B, M, V] float32.

    Args:
      logits: the model's own.
      penalties: of rows whose tokens, the root of the tree included, have been counted.
      tree: M nodes.
      max_depth: R - 1.
    """
    vocab = jnp.arange(logits.shape[-1])
    counts = penalties.counts[:, None, :]
    on_path = path_tokens(tree, max_depth)
    for ancestor in range(max_depth):  # R - 1 comparisons that fuse, not a [B, M, M, V] mask
        counts = counts + (on_path[:, :, ancestor, None] == vocab)
    repetition, presence, frequency = (
        x[:, None, None] for x in (penalties.repetition, penalties.presence, penalties.frequency)
    )
    in_output = counts > 0
    penalised = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(in_output | penalties.in_prompt[:, None, :], penalised, logits)
    return logits - presence * in_output - frequency * counts


def _counted(counts: jax.Array, tokens: jax.Array, counted: jax.Array) -> jax.Array:
    """Adds tokens [B, T], where `counted`, to counts [B, V]."""
    slot = jnp.where(counted, tokens, counts.shape[1])  # past the end: dropped

    @jax.vmap  # no row writes into another's, which the compiler then knows
    def add(row, slot):
        return row.at[slot].add(1, mode="drop")

    return add(counts, slot)
