"""Next-token and stream losses over target tokens (paper Eq. 5).

The main stream at position t predicts token t + 1, stream j token t + 1 + j. Only target
tokens count: the prompt, padding and what lies after the end have weight 0. An *anchor* is
a position whose main row predicts a target token; the first is the last prompt token. Stream
rows, and projections onto the vocabulary, exist at anchors only. The early-exit adapter, if
there is one, is trained on the main targets:

    tokens        p0 p1 p2 y1 y2 y3 .
    anchors             ^  ^  ^
    main target         y1 y2 y3
    stream 1            y2 y3 .
    stream 2            y3 .  .
    early exit          y1 y2 y3

Where streams are corrected by their parents (`models.parent`), each has a second output with the
same targets, in which it knows the target before its own, the true parent.

Sums leave this module together with their weights; means are taken once, by the caller.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.config import LossConfig, StreamsConfig
from ssjax.models import parent
from ssjax.models.attention import Causal
from ssjax.models.execution import Execution
from ssjax.models.head import (
    Head,
    head_logits,
    make_draft_head,
    make_head,
    make_medusa_head,
)
from ssjax.models.transformer import Transformer
from ssjax.parallel.partitioning import constrain, num_batch_shards
from ssjax.training.teacher import Teacher, objective

NO_ROW = -1  # in place of a target that a head has no row for


@struct.dataclass
class Batch:
    """Rows of sequences, each a prompt and its target, and padding at the end.

    A sequence sees and predicts nothing of the others in its row. It may have several targets, each
    after what is asked.
    """

    tokens: jax.Array  # [B, T] int32
    segments: jax.Array  # [B, T] int32, the sequence of each token, from 1; 0: padding
    is_target: jax.Array  # [B, T] bool, whether a token is to be predicted
    packed: bool = struct.field(pytree_node=False, default=False)  # rows hold several sequences


@struct.dataclass
class LossSums:
    """Sums over target tokens, one entry an output.

    Main, stream 1..J, the same with their parents, early exit, as far as there are any. With
    Medusa heads: main, head 1..K, the same with their parents. A target outside of the draft
    vocabulary teaches a stream nothing: its cross-entropy counts as 0, and it is a miss.
    """

    cross_entropy: jax.Array  # [Q] float32, nats
    correct: jax.Array  # [Q] float32, top-1 hits; a tie with the target is one
    weight: jax.Array  # [Q] float32, number of target tokens
    objective: jax.Array  # [Q] float32, what is minimised, see `teacher`

    @classmethod
    def zeros(cls, num_outputs: int) -> "LossSums":
        zero = jnp.zeros(num_outputs, jnp.float32)
        return cls(zero, zero, zero, zero)


def output_offsets(streams: StreamsConfig) -> tuple[int, ...]:
    """By output, how many tokens after the next one it predicts; Q entries."""
    ahead = tuple(range(1, 1 + streams.num_ahead))
    with_parents = ahead if streams.knows_parents else ()
    return (0, *ahead, *with_parents, *([0] if streams.exit_rank else []))


def output_names(streams: StreamsConfig) -> tuple[str, ...]:
    """What the outputs are called in records, in the order of `output_offsets`."""
    kind = "stream" if streams.num_streams else "head"
    ahead = [f"{kind}_{j}" for j in range(1, 1 + streams.num_ahead)]
    with_parents = [f"{name}_with_parent" for name in ahead] if streams.knows_parents else []
    return ("main", *ahead, *with_parents, *(["exit"] if streams.exit_rank else []))


def anchor_targets(batch: Batch, num_anchors: int, offsets: tuple[int, ...]):
    """Finds the anchors of a batch and what is predicted there.

    Args:
      batch: sequences.
      num_anchors: A, at least the number of target tokens of any row.
      offsets: from `output_offsets`, Q of them.

    Returns:
      anchors [B, A] int32, targets [B, A, Q] int32 and weights [B, A, Q] float32.
    """
    last = batch.tokens.shape[1] - 1
    is_anchor = jnp.pad(batch.is_target[:, 1:], [(0, 0), (0, 1)])
    order = jnp.argsort(~is_anchor, axis=1, stable=True)  # anchors first
    # Places that are left over repeat the last anchor, or without one the last position, with
    # weight 0: where main rows read their streams, no other row may be given some.
    count = is_anchor.sum(axis=1)[:, None]
    place = jnp.minimum(jnp.arange(num_anchors), jnp.maximum(count - 1, 0))
    anchors = jnp.where(count > 0, jnp.take_along_axis(order, place, axis=1), last)
    index = anchors[:, :, None] + 1 + jnp.array(offsets)  # [B, A, Q]
    inside = jnp.minimum(index, last).reshape(index.shape[0], -1)

    def at(x):
        return jnp.take_along_axis(x, inside, axis=1).reshape(index.shape)

    span = _spans(batch)
    own = jnp.take_along_axis(span, jnp.minimum(anchors + 1, last), axis=1)[:, :, None]
    inside_row = jnp.take_along_axis(batch.segments, anchors, axis=1)[:, :, None]
    real = jnp.arange(num_anchors) < count  # [B, A]
    weights = real[:, :, None] & (index <= last) & at(batch.is_target) & (at(span) == own)
    weights &= at(batch.segments) == inside_row  # not a target at the very start of a sequence
    return anchors, at(batch.tokens), weights.astype(jnp.float32)


def target_weight(batch: Batch, offsets: tuple[int, ...]) -> jax.Array:
    """Number of target tokens of each output, [Q] float32; the same as `LossSums.weight`.

    A target of n tokens has n - offset of them for an output.
    """
    counts, span = [], _spans(batch)
    for offset in offsets:
        later = batch.is_target[:, offset:]
        first = batch.is_target[:, : later.shape[1]]
        same = span[:, offset:] == span[:, : later.shape[1]]
        counts.append((later & first & same).sum())
    return jnp.stack(counts).astype(jnp.float32)


def _spans(batch: Batch):
    """Which target a target token belongs to, [B, T] int32, numbered along the row.

    An answer is predicted from what stands before it, never across it: of a conversation, the next
    answer depends on what is asked in between.
    """
    before = jnp.pad(batch.is_target[:, :-1], [(0, 0), (1, 0)])
    same = jnp.pad(batch.segments[:, :-1], [(0, 0), (1, 0)]) == batch.segments
    return jnp.cumsum(batch.is_target & ~(before & same), axis=1)


def token_positions(batch: Batch) -> jax.Array:
    """The place of every token in its own sequence, [B, T] int32."""
    index = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)
    if not batch.packed:
        return index
    begins = jnp.pad(batch.segments[:, 1:] != batch.segments[:, :-1], [(0, 0), (1, 0)])
    start = jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    return index - start


def loss_sums(
    model: Transformer,
    params,
    batch: Batch,
    num_anchors: int,
    config: LossConfig,
    dropout_key: jax.Array | None = None,
) -> LossSums:
    """Runs the model over a batch and sums the losses.

    Args:
      model: with as many streams as are trained.
      params: the model's parameters, frozen and trainable together.
      batch: sequences of T tokens.
      num_anchors: A, at least the number of target tokens of any row.
      config: of the loss; [B, A, Q, V] is never made.
      dropout_key: of LoRA dropout; None: nothing is dropped.
    """
    streams = model.streams
    offsets = output_offsets(streams)
    anchors, targets, weights = anchor_targets(batch, num_anchors, offsets)
    output = model.apply(
        {"params": params},
        batch.tokens,
        token_positions(batch),
        Causal(batch.segments if batch.packed else None),
        anchors=anchors,
        num_streams=streams.num_streams,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )

    def at_anchors(x):
        return jnp.take_along_axis(x, anchors[:, :, None], axis=1)

    def with_parents(ahead):
        """The same with the true parents: stream j follows the token t + j."""
        parents = targets[:, :, : streams.num_ahead]
        return parent.with_parents(parent.make_correction(params), ahead, parents)

    main = at_anchors(output.hidden)
    parts = [_Part(main[:, :, None], make_head(params, model.config))]
    if streams.num_streams:
        head = make_draft_head(params, model.config, streams)
        parts.append(_Part(output.stream_hidden, head, streams.draft_tokens))
    elif streams.medusa_heads:
        ahead = model.apply({"params": params}, main, method="medusa")
        parts.append(_Part(ahead, make_medusa_head(params)))
    if streams.knows_parents:
        parts.append(parts[1].replace(hidden=with_parents(parts[1].hidden)))
    if streams.exit_rank:
        trunk_hidden = at_anchors(output.trunk_hidden)
        early = model.apply({"params": params}, trunk_hidden, method="early_exit")
        parts.append(parts[0].replace(hidden=early[:, :, None]))
    if streams.num_streams and not streams.draft_tokens:  # one head for all: one product
        every = jnp.concatenate([part.hidden for part in parts], axis=2)
        parts = [parts[0].replace(hidden=every)]

    sums, begin = [], 0
    for part in parts:
        outputs = slice(begin, begin + part.hidden.shape[2])
        scored = Scored(part.hidden, part.head, targets[:, :, outputs], weights[:, :, outputs])
        teacher, taught = None, offsets[outputs]
        if config.distillation and any(taught):
            # Of what streams cannot draft, the main stream does not speak to them either.
            head = part.head if part.tokens else parts[0].head
            hidden, head = jax.lax.stop_gradient((main, head))
            teacher = Teacher(hidden, head, anchors, weights[:, :, 0], taught, config)
        scored = scored.within(part.tokens)
        sums.append(chunked_cross_entropy(scored, config.chunk_size, model.execution, teacher))
        begin = outputs.stop
    return jax.tree.map(lambda *x: jnp.concatenate(x), *sums)


@struct.dataclass
class _Part:
    """Outputs that follow each other and go through one head."""

    hidden: jax.Array  # [B, A, Q, D]
    head: Head
    tokens: tuple[int, ...] = struct.field(pytree_node=False, default=())  # of its rows; (): all


@struct.dataclass
class Scored:
    """Hidden states of Q outputs at A anchors, and what they are to say."""

    hidden: jax.Array  # [B, A, Q, D] float32 or bfloat16
    head: Head  # the LM head, or one for each output
    targets: jax.Array  # [B, A, Q] int32, rows of the head; NO_ROW where it has none
    weights: jax.Array  # [B, A, Q] float32
    some: bool = struct.field(pytree_node=False, default=False)  # the head has some tokens only

    def within(self, tokens: tuple[int, ...]) -> "Scored":
        """Targets as rows of a head that has these tokens alone, rising; (): all, as they are."""
        if not tokens:
            return self
        ids = jnp.array(tokens)
        rows = jnp.minimum(jnp.searchsorted(ids, self.targets), len(tokens) - 1)
        return self.replace(targets=jnp.where(ids[rows] == self.targets, rows, NO_ROW), some=True)


def chunked_cross_entropy(
    scored: Scored, chunk_size: int, execution: Execution, teacher: Teacher | None = None
) -> LossSums:
    """Cross-entropy and top-1 hits of hidden states, a chunk of rows at a time.

    Args:
      scored: sums are kept apart along Q.
      chunk_size: rows of B*A*Q per chunk, on each part of a batch that a mesh divides; logits
        of one chunk exist at a time, in the backward pass too (they are computed again
        there). A chunk of padding alone costs nothing.
      execution: of the model.
      teacher: of the same anchors; None: cross-entropy is minimised.
    """
    head, targets, weights = scored.head, scored.targets, scored.weights
    # Z parts of the batch, one a device: rows change places within their part only.
    num_parts, width = num_batch_shards(targets.shape[0]), targets.shape[2]
    num_rows = targets.shape[0] * targets.shape[1] // num_parts
    rows_per_chunk = min(num_rows, max(1, chunk_size // width))
    num_chunks = -(-num_rows // rows_per_chunk)
    padding = num_chunks * rows_per_chunk - num_rows
    # Rows that count come first, so that the chunks at the end hold padding alone. One that no
    # output has a target at may still teach the rows before it.
    counts = weights.max(axis=2) if teacher is None else teacher.real
    counts = counts.reshape(num_parts, num_rows)
    order = jnp.argsort(-counts, axis=1, stable=True)

    def cut(x, more=0):
        """[chunks, Z, rows, ...], with so many rows more that begin the next chunk."""
        x = x.reshape(num_parts, num_rows, *x.shape[2:])
        x = jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
        x = jnp.pad(x, [(0, 0), (0, padding + more)] + [(0, 0)] * (x.ndim - 2))
        if not more:
            x = x.reshape(num_parts, num_chunks, rows_per_chunk, *x.shape[2:])
        else:
            first = rows_per_chunk * jnp.arange(num_chunks)[:, None]
            x = x[:, first + jnp.arange(rows_per_chunk + more)]
        return jnp.swapaxes(x, 0, 1)

    @jax.checkpoint
    def sum_chunk(hidden, targets, weights, taught=None):
        logits = head_logits(hidden, head, execution)  # [Z, rows, Q, V] float32
        logits = constrain(logits, "batch", "length", "streams", "vocab")
        rows = jnp.maximum(targets, 0) if scored.some else targets
        target_logit = jnp.take_along_axis(logits, rows[..., None], axis=-1)[..., 0]
        total = jax.nn.logsumexp(logits, axis=-1)
        cross_entropy = total - target_logit
        hits = (target_logit >= logits.max(axis=-1)).astype(jnp.float32)
        if scored.some:
            known = targets != NO_ROW
            cross_entropy, hits = jnp.where(known, cross_entropy, 0.0), hits * known
        minimised = cross_entropy
        if taught is not None:
            main, stands = taught  # [Z, rows + J, D], [Z, rows, Q]
            main = constrain(head_logits(main, teacher.head, execution), "batch", "length", "vocab")
            log_p, log_q = jax.nn.log_softmax(main), logits - total[..., None]
            minimised = objective(cross_entropy, log_q, log_p, stands, teacher)
        return LossSums(
            cross_entropy=(cross_entropy * weights).sum(axis=(0, 1)),
            correct=(hits * weights).sum(axis=(0, 1)),
            weight=weights.sum(axis=(0, 1)),
            objective=(minimised * weights).sum(axis=(0, 1)),
        )

    zeros = LossSums.zeros(width)

    def add_chunk(sums, chunk):
        counts = chunk[2].max() > 0
        added = jax.lax.cond(counts, sum_chunk, lambda *_: zeros, *chunk)
        return jax.tree.map(jnp.add, sums, added), None

    chunks = (cut(scored.hidden), cut(targets), cut(weights))
    if teacher is not None:
        # Rows that count follow each other as in the sequence: row + j is the anchor + j.
        later = max(teacher.offsets)
        chunks = (*chunks, (cut(teacher.hidden, later), cut(teacher.stands())))
    return jax.lax.scan(add_chunk, zeros, chunks)[0]


def loss_weights(config: LossConfig, streams: StreamsConfig) -> jax.Array:
    """The alphas of Eq. 5 and the weight of the early exit, [Q] float32."""
    ahead = [config.stream_weight * config.stream_decay**j for j in range(streams.num_ahead)]
    alphas = [config.main_weight, *ahead, *(ahead if streams.knows_parents else [])]
    return jnp.array(alphas + [config.exit_weight] * (streams.exit_rank > 0), jnp.float32)


def weighted_loss(sums: LossSums, alphas: jax.Array, weight: jax.Array) -> jax.Array:
    """Sum over outputs of alpha times the mean of what is minimised, a float32 scalar.

    Args:
      sums: of the whole batch or of one micro-batch.
      alphas: [Q], from `loss_weights`.
      weight: [Q], target tokens of the *whole* batch, so that micro-batches add up to
        the loss of the batch whatever their own lengths are.
    """
    return jnp.sum(alphas * sums.objective / jnp.maximum(weight, 1.0))
