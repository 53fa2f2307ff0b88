"""Streams that learn from the main stream: what it says itself where they speak.

Stream j at position t speaks of token t + 1 + j. So does the main stream at position t + j, which
has seen all before it: the distribution that decides, in decoding, whether the draft is kept.

    anchors      t      t+1    t+2    t+3
    main         y1     y2     y3     y4
    stream 1     y2 <------'                 divergence from the main stream at t + 1
    stream 2     y3 <-------------'          at t + 2

The teacher is of the same forward pass, and no gradient flows into it. Its logits are made a chunk
of rows at a time, as all logits are (`losses.chunked_cross_entropy`).
"""

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.config import LossConfig
from ssjax.models.head import Head


@struct.dataclass
class Teacher:
    """The main stream at A anchors, and which of Q outputs learn from it."""

    hidden: jax.Array  # [B, A, D]
    head: Head  # the LM head
    positions: jax.Array  # [B, A] int32, of the anchors
    real: jax.Array  # [B, A] float32: 1 where the main stream has a target, else 0: padding
    offsets: tuple[int, ...] = struct.field(pytree_node=False)  # j by output; 0: has no teacher
    config: LossConfig = struct.field(pytree_node=False)

    def stands(self) -> jax.Array:
        """[B, A, Q] float32: 1 where anchor a + j is at the position t + j, else 0.

        Not so at the end of a sequence, nor where a prompt lies between two targets.
        """
        columns = []
        for offset in self.offsets:
            later = jnp.pad(self.positions, [(0, 0), (0, offset)], constant_values=-1)[:, offset:]
            columns.append((later == self.positions + offset) & (offset > 0))
        return jnp.stack(columns, axis=-1).astype(jnp.float32)


def objective(
    cross_entropy: jax.Array,
    log_q: jax.Array,
    log_p: jax.Array,
    stands: jax.Array,
    teacher: Teacher,
) -> jax.Array:
    """What is minimised of R rows: cross-entropy, mixed with the divergence from the teacher.

    Args:
      cross_entropy: [..., R, Q] float32.
      log_q: [..., R, Q, V] log-probabilities of the outputs.
      log_p: [..., R + J, V] of the main stream at the rows and J more after them.
      stands: [..., R, Q], as `Teacher.stands`.
      teacher: of the outputs.

    Returns:
      [..., R, Q] float32.
    """
    num_rows, config, parts = log_q.shape[-3], teacher.config, []
    for output, offset in enumerate(teacher.offsets):
        own = cross_entropy[..., output]
        if offset:
            taught = jax.lax.slice_in_dim(log_p, offset, offset + num_rows, axis=-2)
            apart = divergence(taught, log_q[..., output, :], config.divergence)
            own = own + config.distillation * stands[..., output] * (apart - own)
        parts.append(own)
    return jnp.stack(parts, axis=-1)


def divergence(log_p: jax.Array, log_q: jax.Array, kind: str) -> jax.Array:
    """How far q is from the teacher's p, [...] float32.

    kl: sum of p log(p / q). total_variation: 1 - alpha, where alpha, the sum of min(p, q), is the
    chance that a draft of q is kept. mixed: lambda kl + (1 - lambda) total variation with lambda =
    exp(-3 alpha), first the one and then, as alpha grows, the other (LK losses, 2026).

    Args:
      log_p, log_q: [..., V] float32 log-probabilities.
      kind: of `LossConfig.divergence`.
    """
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    kl = (p * (log_p - log_q)).sum(axis=-1)
    if kind == "kl":
        return kl
    alpha = jnp.minimum(p, q).sum(axis=-1)
    if kind == "total_variation":
        return 1.0 - alpha
    share = jnp.exp(-3.0 * jax.lax.stop_gradient(alpha))
    return share * kl + (1.0 - share) * (1.0 - alpha)
