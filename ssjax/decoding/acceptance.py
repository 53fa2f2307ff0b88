"""Which draft nodes a pass keeps, for any tree: the exact rule, and a lossy one by name.

exact     Draw the next token at every node from the target distribution; walk from the root while
          the drawn token is a child; emit the drawn tokens along the way. The last one, which no
          node proposed or that has no node after it, is the bonus token. What is emitted is what
          the model itself draws, greedy or sampled, whatever the tree holds: no draft
          probabilities, no residual distribution.
typical   Typical acceptance of Medusa (arXiv 2401.10774): keep the longest path of children that
          are likely enough, whether drawn or not; the bonus token is drawn. Faster and lossy: the
          output is biased towards what the drafter proposes. Only on request, and every report
          names it.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.decoding.tree import NO_TOKEN, DraftTree
from ssjax.parallel.partitioning import top_k

RULES = {"exact": "exact", "typical": "typical, lossy"}  # names of the rules in reports

# A child is likely enough with p > min(EPSILON, DELTA exp(-entropy)); the values of Medusa.
EPSILON = 0.09
DELTA = math.sqrt(EPSILON)  # 0.3


@struct.dataclass
class Acceptance:
    """The accepted path of every row."""

    path: jax.Array  # [B, R] int32, nodes from the root down; repeats its last node at the end
    num_accepted: jax.Array  # [B] int32, draft nodes on the path, 0 to R - 1


@struct.dataclass
class Likeliest:
    """The K likeliest tokens in the places of others, the best first."""

    tokens: jax.Array  # [B, ..., K] int32
    log_probs: jax.Array  # [B, ..., K] float32


@struct.dataclass
class Emission:
    """The tokens that a pass adds to every row."""

    tokens: jax.Array  # [B, R] int32, meaningful below count
    count: jax.Array  # [B] int32, 0 for rows that were already done
    done: jax.Array  # [B] bool, the row has ended now
    broken: jax.Array  # [B] bool, it has not, and the logits of its next token are not finite
    log_probs: jax.Array | None = None  # [B, R] float32, only from `with_log_probs`
    likeliest: Likeliest | None = None  # of R tokens a row; only from there, where asked for

    def last_of(self, before: jax.Array) -> jax.Array:
        """[B] int32, the last token of each row after the pass.

        Args:
          before: [B] int32, the last token before it, which stays where nothing is emitted.
        """
        place = jnp.maximum(self.count - 1, 0)[:, None]
        last = jnp.take_along_axis(self.tokens, place, axis=1)[:, 0]
        return jnp.where(self.count > 0, last, before)


def accept(tree: DraftTree, drawn: jax.Array, max_depth: int) -> Acceptance:
    """Walks from the root while the drawn token names a child.

    Args:
      tree: M nodes.
      drawn: [B, M] int32, the next token drawn after every node.
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


def accept_typical(
    tree: DraftTree, mask: jax.Array, target: jax.Array, drawn: jax.Array, max_depth: int
) -> tuple[Acceptance, jax.Array]:
    """Takes the longest path whose every child is likely enough given its parent.

    Of equally long paths the one with the highest joint probability wins, then the first.

    Args:
      tree: M nodes.
      mask: [B, M, M] bool, from `ancestor_mask`.
      target: [B, M, V] float32, warped logits: the distribution that is drawn from.
      drawn: [B, M] int32, the next token drawn after every node.
      max_depth: R - 1.

    Returns:
      The accepted path; and `drawn` with the draft tokens on the path in place of what was
      drawn before them, so that the tokens along the path are what `emit` expects.
    """
    log_p = jax.nn.log_softmax(target, axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.where(p > 0, p * log_p, 0).sum(axis=-1)  # [B, M]
    threshold = jnp.minimum(EPSILON, DELTA * jnp.exp(-entropy))
    parent = jnp.maximum(tree.parent, 0)
    rows = jnp.arange(parent.shape[0])[:, None]
    log_child = log_p[rows, parent, tree.tokens]
    likely = jnp.exp(log_child) > jnp.take_along_axis(threshold, parent, axis=1)
    likely &= jnp.take_along_axis(drawn, parent, axis=1) != NO_TOKEN
    # Level by level: paths with the same tokens then have the same score to the bit.
    kept = jnp.broadcast_to(jnp.arange(parent.shape[1]) == 0, parent.shape)
    joint = jnp.zeros_like(log_child)
    for depth in range(1, max_depth + 1):
        at_depth = tree.depth == depth
        kept_parent, joint_parent = (jnp.take_along_axis(x, parent, axis=1) for x in (kept, joint))
        kept = jnp.where(at_depth, kept_parent & likely, kept)
        joint = jnp.where(at_depth, joint_parent + log_child, joint)
    deepest = kept & (tree.depth == jnp.where(kept, tree.depth, 0).max(axis=1, keepdims=True))
    last = jnp.argmax(jnp.where(deepest, joint, -jnp.inf), axis=1)[:, None].astype(jnp.int32)
    num_accepted = jnp.take_along_axis(tree.depth, last, axis=1)[:, 0]
    on_path = jnp.take_along_axis(mask, last[:, :, None], axis=1)[:, 0]  # [B, M]
    at_depth = on_path[:, None] & (tree.depth[:, None] == jnp.arange(max_depth + 1)[:, None])
    path = jnp.where(at_depth.any(axis=2), jnp.argmax(at_depth, axis=2), last).astype(jnp.int32)
    following = jnp.concatenate([path[:, 1:], last], axis=1)
    is_draft = jnp.arange(max_depth + 1) < num_accepted[:, None]
    drafted, own = (
        jnp.take_along_axis(tokens, nodes, axis=1)
        for tokens, nodes in ((tree.tokens, following), (drawn, path))
    )
    drawn = drawn.at[rows, path].set(jnp.where(is_draft, drafted, own))
    return Acceptance(path, num_accepted), drawn


def emit(
    acceptance: Acceptance,
    drawn: jax.Array,
    length: jax.Array,
    limit: jax.Array,
    done: jax.Array,
    eos_ids: tuple[int, ...] | jax.Array,
) -> Emission:
    """Cuts the drawn tokens along the path at the first end of sequence and at the limit.

    Where no token could be drawn, none is emitted, nor any after it.

    Args:
      acceptance: of this pass.
      drawn: [B, M] int32; NO_TOKEN where the logits are not finite.
      length: [B] int32, tokens of each row before this pass.
      limit: [B] int32, tokens at which a row stops.
      done: [B] bool, rows that had ended before; they emit nothing.
      eos_ids: ids that end a row, for all or [B, E] int32; the id itself is emitted.
    """
    tokens = jnp.take_along_axis(drawn, acceptance.path, axis=1)  # [B, R]
    step = jnp.arange(tokens.shape[1])
    num_drawn = acceptance.num_accepted + 1
    first_missing = jnp.where(tokens == NO_TOKEN, step, tokens.shape[1]).min(axis=1)
    sound = jnp.minimum(num_drawn, first_missing)
    ids = jnp.atleast_2d(jnp.asarray(eos_ids, jnp.int32))[:, None, :]  # [1 or B, 1, E]
    is_eos = (tokens[:, :, None] == ids).any(axis=2) & (step < sound[:, None])
    until_eos = jnp.where(is_eos.any(axis=1), jnp.argmax(is_eos, axis=1) + 1, tokens.shape[1])
    count = jnp.minimum(jnp.minimum(sound, until_eos), limit - length)
    count = jnp.where(done, 0, jnp.maximum(count, 0)).astype(jnp.int32)
    ended = (is_eos.any(axis=1) & (until_eos <= count)) | (length + count >= limit)
    done = done | ended
    return Emission(tokens, count, done, ~done & (sound < num_drawn))


def with_log_probs(
    emission: Emission, acceptance: Acceptance, logits: jax.Array, num_likeliest: int = 0
) -> Emission:
    """Adds the log-probabilities of the emitted tokens under the model's own distribution.

    That is the distribution of the raw logits: temperature 1, before penalties, bans and cuts,
    however the tokens were drawn. So they do not depend on the settings of sampling.

    Args:
      emission: of this pass.
      acceptance: of this pass; each emitted token stands after a node of its path.
      logits: [B, M, V] float32, after every node.
      num_likeliest: K, of tokens whose log-probabilities are told beside those of the emitted.
    """
    along_path = jnp.take_along_axis(logits, acceptance.path[:, :, None], axis=1)  # [B, R, V]
    emitted = jnp.take_along_axis(along_path, emission.tokens[:, :, None], axis=2)[:, :, 0]
    norm, likeliest = jax.nn.logsumexp(along_path, axis=-1), None
    if num_likeliest:
        best, tokens = top_k(along_path, num_likeliest)
        likeliest = Likeliest(tokens.astype(jnp.int32), best - norm[:, :, None])
    return emission.replace(log_probs=emitted - norm, likeliest=likeliest)
