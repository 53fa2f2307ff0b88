"""Next-token and stream losses over target tokens (paper Eq. 5).

The main stream at position t predicts token t + 1, stream j token t + 1 + j. Only target
tokens count: the prompt, padding and what lies behind the end have weight 0. An *anchor* is
a position whose main row predicts a target token; the first is the last prompt token. Stream
rows, and projections onto the vocabulary, exist at anchors only:

    tokens        p0 p1 p2 y1 y2 y3 .      prompt_length 3, length 6
    anchors             ^  ^  ^
    main target         y1 y2 y3
    stream 1            y2 y3 .
    stream 2            y3 .  .

Sums leave this module together with their weights; means are taken once, by the caller.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.config import LossConfig
from ssjax.models.transformer import (
    Transformer,
    causal_mask,
    vocabulary_logits,
    vocabulary_table,
)


@struct.dataclass
class Batch:
    """Sequences of prompt, target and padding, in that order."""

    tokens: jax.Array  # [B, T] int32
    prompt_length: jax.Array  # [B] int32, at least 1
    length: jax.Array  # [B] int32, prompt and target tokens; equal to prompt_length: no targets


@struct.dataclass
class LossSums:
    """Sums over target tokens, entry 0 for the main stream, entry j for stream j."""

    cross_entropy: jax.Array  # [1 + J] float32, nats
    correct: jax.Array  # [1 + J] float32, top-1 hits; a tie with the target is one
    weight: jax.Array  # [1 + J] float32, number of target tokens


def anchor_targets(batch: Batch, num_anchors: int, num_streams: int):
    """Finds the anchors of a batch and what is predicted there.

    Args:
      batch: sequences.
      num_anchors: A, at least the longest target of the batch.
      num_streams: J.

    Returns:
      anchors [B, A] int32, targets [B, A, 1 + J] int32 and weights [B, A, 1 + J] float32.
    """
    last = batch.tokens.shape[1] - 1
    first = batch.prompt_length[:, None] - 1
    anchors = first + jnp.arange(num_anchors)  # [B, A]
    index = anchors[:, :, None] + 1 + jnp.arange(1 + num_streams)  # [B, A, 1 + J]
    weights = (index < batch.length[:, None, None]).astype(jnp.float32)
    index = jnp.minimum(index, last).reshape(index.shape[0], -1)
    targets = jnp.take_along_axis(batch.tokens, index, axis=1).reshape(weights.shape)
    return jnp.minimum(anchors, last), targets, weights


def target_weight(batch: Batch, num_streams: int) -> jax.Array:
    """Number of target tokens of each stream, [1 + J] float32; the same as `LossSums.weight`."""
    num_targets = (batch.length - batch.prompt_length)[:, None] - jnp.arange(1 + num_streams)
    return jnp.maximum(num_targets, 0).sum(axis=0).astype(jnp.float32)


def loss_sums(
    model: Transformer, params, batch: Batch, num_anchors: int, chunk_size: int
) -> LossSums:
    """Runs the model over a batch and sums the losses.

    Args:
      model: with as many streams as are trained.
      params: the model's parameters, frozen and trainable together.
      batch: sequences of T tokens.
      num_anchors: A, at least the longest target of the batch.
      chunk_size: rows projected onto the vocabulary at a time; [B, A, 1 + J, V] is never made.
    """
    num_streams = model.streams.num_streams
    anchors, targets, weights = anchor_targets(batch, num_anchors, num_streams)
    num_tokens = batch.tokens.shape[1]
    output = model.apply(
        {"params": params},
        batch.tokens,
        jnp.broadcast_to(jnp.arange(num_tokens), batch.tokens.shape),
        causal_mask(num_tokens),
        anchors=anchors,
        num_streams=num_streams,
    )
    hidden = jnp.take_along_axis(output.hidden, anchors[:, :, None], axis=1)[:, :, None]
    if num_streams:
        hidden = jnp.concatenate([hidden, output.stream_hidden], axis=2)
    return chunked_cross_entropy(hidden, vocabulary_table(params), targets, weights, chunk_size)


def chunked_cross_entropy(hidden, table_VD, targets, weights, chunk_size: int) -> LossSums:
    """Cross-entropy and top-1 hits of hidden states, a chunk of rows at a time.

    Args:
      hidden: [B, A, Q, D] float32 or bfloat16; sums are kept apart along Q.
      table_VD: the LM head.
      targets: [B, A, Q] int32.
      weights: [B, A, Q] float32.
      chunk_size: rows of B*A*Q per chunk; logits of one chunk exist at a time, in the
        backward pass too (they are computed again there). A chunk of padding alone costs
        nothing.
    """
    num_rows, width = targets.shape[0] * targets.shape[1], targets.shape[2]
    rows_per_chunk = min(num_rows, max(1, chunk_size // width))
    num_chunks = -(-num_rows // rows_per_chunk)
    padding = num_chunks * rows_per_chunk - num_rows
    # Rows that count come first, so that the chunks at the end hold padding alone.
    order = jnp.argsort(-weights.max(axis=2).reshape(num_rows), stable=True)

    def cut(x):
        x = x.reshape(num_rows, *x.shape[2:])[order]
        x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(num_chunks, rows_per_chunk, *x.shape[1:])

    @jax.checkpoint
    def sum_chunk(hidden, targets, weights):
        logits = vocabulary_logits(hidden, table_VD)  # [rows, Q, V] float32
        target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        cross_entropy = jax.nn.logsumexp(logits, axis=-1) - target_logit
        hits = (target_logit >= logits.max(axis=-1)).astype(jnp.float32)
        return LossSums(
            cross_entropy=(cross_entropy * weights).sum(axis=0),
            correct=(hits * weights).sum(axis=0),
            weight=weights.sum(axis=0),
        )

    zero = jnp.zeros(width, jnp.float32)
    zeros = LossSums(zero, zero, zero)

    def add_chunk(sums, chunk):
        counts = chunk[2].max() > 0
        added = jax.lax.cond(counts, sum_chunk, lambda *_: zeros, *chunk)
        return jax.tree.map(jnp.add, sums, added), None

    chunks = (cut(hidden), cut(targets), cut(weights))
    return jax.lax.scan(add_chunk, zeros, chunks)[0]


def loss_weights(config: LossConfig, num_streams: int) -> jax.Array:
    """The alphas of Eq. 5, [1 + J] float32."""
    return jnp.array([config.main_weight] + [config.stream_weight] * num_streams, jnp.float32)


def weighted_loss(sums: LossSums, alphas: jax.Array, weight: jax.Array) -> jax.Array:
    """Sum over streams of alpha times mean cross-entropy, a float32 scalar.

    Args:
      sums: of the whole batch or of one micro-batch.
      alphas: [1 + J], from `loss_weights`.
      weight: [1 + J], target tokens of the *whole* batch, so that micro-batches add up to
        the loss of the batch whatever their own lengths are.
    """
    return jnp.sum(alphas * sums.cross_entropy / jnp.maximum(weight, 1.0))
