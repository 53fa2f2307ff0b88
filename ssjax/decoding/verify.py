"""The one acceptance rule, for greedy and sampled decoding and for any tree.

Draw the next token at every node from the target distribution; walk from the root while the
drawn token is a child; emit the drawn tokens along the way. The last one, which no node
proposed or that has no node behind it, is the bonus token. What is emitted is what the model
itself draws, whatever the tree holds: no draft probabilities, no residual distribution.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.decoding.tree import DraftTree


@struct.dataclass
class Acceptance:
    """The accepted path of every row."""

    path: jax.Array  # [B, R] int32, nodes from the root down; repeats its last node at the end
    num_accepted: jax.Array  # [B] int32, draft nodes on the path, 0 to R - 1


@struct.dataclass
class Emission:
    """The tokens that a pass adds to every row."""

    tokens: jax.Array  # [B, R] int32, meaningful below count
    count: jax.Array  # [B] int32, 0 for rows that were already done
    done: jax.Array  # [B] bool, the row has ended now
    log_probs: jax.Array | None = None  # [B, R] float32, only from `with_log_probs`


def accept(tree: DraftTree, drawn: jax.Array, max_depth: int) -> Acceptance:
    """Walks from the root while the drawn token names a child.

    Args:
      tree: M nodes.
      drawn: [B, M] int32, the next token drawn behind every node.
      max_depth: R - 1, the deepest node of the tree. Among children with the same token
        the first wins.
    """
    node = jnp.zeros_like(tree.parent[:, 0])
    walking = jnp.ones_like(node, bool)
    num_accepted = jnp.zeros_like(node)
    path = [node]
    for _ in range(max_depth):
        token = jnp.take_along_axis(drawn, node[:, None], axis=1)
        matches = (tree.parent == node[:, None]) & (tree.tokens == token)  # [B, M]
        walking &= matches.any(axis=1)
        node = jnp.where(walking, jnp.argmax(matches, axis=1), node).astype(jnp.int32)
        num_accepted += walking
        path.append(node)
    return Acceptance(jnp.stack(path, axis=1), num_accepted)


def emit(
    acceptance: Acceptance,
    drawn: jax.Array,
    length: jax.Array,
    limit: jax.Array,
    done: jax.Array,
    eos_ids: tuple[int, ...],
) -> Emission:
    """Cuts the drawn tokens along the path at the first end of sequence and at the limit.

    Args:
      acceptance: of this pass.
      drawn: [B, M] int32.
      length: [B] int32, tokens of each row before this pass.
      limit: [B] int32, tokens at which a row stops.
      done: [B] bool, rows that had ended before; they emit nothing.
      eos_ids: ids that end a row; the id itself is emitted.
    """
    tokens = jnp.take_along_axis(drawn, acceptance.path, axis=1)  # [B, R]
    step = jnp.arange(tokens.shape[1])
    is_eos = jnp.isin(tokens, jnp.array(eos_ids, jnp.int32)) & (
        step <= acceptance.num_accepted[:, None]
    )
    until_eos = jnp.where(is_eos.any(axis=1), jnp.argmax(is_eos, axis=1) + 1, tokens.shape[1])
    count = jnp.minimum(jnp.minimum(acceptance.num_accepted + 1, until_eos), limit - length)
    count = jnp.where(done, 0, jnp.maximum(count, 0)).astype(jnp.int32)
    ended = (is_eos.any(axis=1) & (until_eos <= count)) | (length + count >= limit)
    return Emission(tokens, count, done | ended)


def with_log_probs(emission: Emission, acceptance: Acceptance, logits: jax.Array) -> Emission:
    """Adds the log-probabilities of the emitted tokens under the model's own distribution.

    That is the distribution of the raw logits: temperature 1, before penalties, bans and cuts,
    however the tokens were drawn. So they do not depend on the settings of sampling.

    Args:
      emission: of this pass.
      acceptance: of this pass; each emitted token stands behind a node of its path.
      logits: [B, M, V] float32, behind every node.
    """
    along_path = jnp.take_along_axis(logits, acceptance.path[:, :, None], axis=1)  # [B, R, V]
    emitted = jnp.take_along_axis(along_path, emission.tokens[:, :, None], axis=2)[:, :, 0]
    return emission.replace(log_probs=emitted - jax.nn.logsumexp(along_path, axis=-1))
