"""Tree pruning between the trunk and the stream layers (paper section 3.1.3).

The early exit guesses the next token after every node from the hidden state that leaves the
trunk. Of a parent it says how likely each child is; the product along a path says how likely
the path is to be accepted. Only the best paths go on into the stream layers, where every node
costs a row, or 1 + J rows with streams beside it:

    draft       exit says P(child | parent)     joint       3 nodes kept
    the -+- cat --- sat      0.7, 0.5           0.7 0.35    the -+- cat --- sat
         +- dog --- ran      0.2, 0.9           0.2 0.18

A joint probability only falls along a path, so what is kept holds the ancestors of its nodes.
What is pruned is merely not verified: the output does not change.

The paper drops a child, and all below it, whose own probability is under a threshold. That form
exists too. Shapes of a compiled program being fixed, it saves no rows: a dropped node stays one of
the kept ones, unused. The number of kept nodes is what saves.
"""

import math

import jax
import jax.numpy as jnp

from ssjax.decoding.tree import NO_PARENT, DraftTree


def joint_log_probs(
    tree: DraftTree, mask: jax.Array, logits: jax.Array, threshold: float = 0.0
) -> jax.Array:
    """How likely the path to each node is, by the early exit, [B, M] float32.

    Args:
      tree: M nodes.
      mask: [B, M, M] bool from `tree.ancestor_mask`.
      logits: [B, M, V] float32 of the early exit at every node.
      threshold: a node whose probability given its parent is lower is dropped.

    Returns:
      0 for the root, -inf for unused and dropped nodes and all below a dropped one, and for those
      of which the exit says NaN.
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    parent = jnp.maximum(tree.parent, 0)
    batch = jnp.arange(parent.shape[0])[:, None]
    own = jnp.where(tree.parent == NO_PARENT, 0.0, log_probs[batch, parent, tree.tokens])
    if threshold > 0:
        own = jnp.where(own < math.log(threshold), -jnp.inf, own)
    joint = jnp.where(mask, own[:, None, :], 0.0).sum(axis=2)
    unused = (tree.parent == NO_PARENT).at[:, 0].set(False)
    return jnp.where(unused | jnp.isnan(joint), -jnp.inf, joint)


def prune(tree: DraftTree, joint: jax.Array, num_kept: int) -> tuple[DraftTree, jax.Array]:
    """The num_kept likeliest nodes of every row, the root among them.

    Args:
      tree: M nodes.
      joint: [B, M] from `joint_log_probs`; at most that of its parent for every node.
      num_kept: P, at most M.

    Returns:
      A tree of P nodes in the order they had, those of joint -inf unused, and their places in the
      old one, [B, P] int32.
    """
    # Among equals top_k takes the lower index, so a parent comes before its child.
    kept = jnp.sort(jax.lax.top_k(joint, num_kept)[1], axis=1)

    def take(x):
        return jnp.take_along_axis(x, kept, axis=1)

    used = take(joint) > -jnp.inf
    old_parent = take(tree.parent)
    parent = jnp.argmax(kept[:, None, :] == old_parent[:, :, None], axis=2)
    parent = jnp.where(used & (old_parent != NO_PARENT), parent, NO_PARENT).astype(jnp.int32)
    return DraftTree(take(tree.tokens), parent, jnp.where(used, take(tree.depth), 0)), kept
