"""Prompt lookup: drafts copied from where the row's last tokens stood before.

Summaries, edits and structured queries repeat pieces of their prompt. The longest match of the
last tokens with an earlier place in the row is looked for, and what followed there is drafted:

    tokens   the cat sat on the mat . the cat
                 `-- match ends here      `-- the row ends here
    draft    sat on the mat

It costs no pass and no weights. (Prompt lookup decoding, also "n-gram" speculation.)
"""

import jax
import jax.numpy as jnp

from ssjax.decoding.tree import NO_PARENT, DraftTree


def lookup_chain(
    tokens: jax.Array, length: jax.Array, num_drafted: int, longest_match: int
) -> tuple[jax.Array, jax.Array]:
    """What followed the longest earlier match of each row's last tokens.

    Among matches of equal length, up to `longest_match` tokens, the latest wins that has
    num_drafted tokens after it, else the latest.

    Args:
      tokens: [B, capacity] int32.
      length: [B] int32, valid tokens of each row.
      num_drafted: tokens to return.
      longest_match: at least 1; longer agreement is not looked at.

    Returns:
      [B, num_drafted] int32 and how many of them were found, [B] int32, 0 without a match.
    """
    capacity = tokens.shape[1]
    end = jnp.arange(capacity)  # a match ends before this place; drafts begin at it

    def of_row(tokens, length):
        agrees, matched = jnp.ones(capacity, bool), jnp.zeros(capacity, jnp.int32)
        for back in range(1, longest_match + 1):
            earlier = jnp.roll(tokens, back)  # earlier[end] = tokens[end - back]
            last = tokens[jnp.maximum(length - back, 0)]
            agrees &= (end >= back) & (length >= back) & (earlier == last)
            matched += agrees
        usable = (end < length) & (matched > 0)
        complete = end + num_drafted <= length
        rank = (matched * 2 + complete) * capacity + end
        best = jnp.argmax(jnp.where(usable, rank, -1))
        place = best + jnp.arange(num_drafted)
        count = jnp.where(usable[best], jnp.minimum(num_drafted, length - best), 0)
        return tokens[jnp.minimum(place, capacity - 1)], count

    return jax.vmap(of_row)(tokens, length)


def merge_chain(tree: DraftTree, chain: jax.Array, count: jax.Array) -> DraftTree:
    """Adds a chain of drafted tokens after the root to a tree.

    As far as the chain runs along nodes of the tree, those are used and the chain's own stay
    unused: no token is drafted twice in one place.

    Args:
      tree: M nodes.
      chain: [B, C] int32.
      count: [B] int32, how many of the chain are meant.

    Returns:
      A tree of M + C nodes.
    """
    num_nodes, num_added = tree.tokens.shape[1], chain.shape[1]
    parents, depths = [], []
    at = jnp.zeros_like(count)  # the node that the chain has come to
    inside = jnp.ones_like(count, bool)  # that node belongs to the tree
    for step in range(num_added):
        token, meant = chain[:, step, None], step < count
        same = (tree.parent == at[:, None]) & (tree.tokens == token)
        shared = inside & same.any(axis=1)
        used = meant & ~shared
        parents.append(jnp.where(used, at, NO_PARENT))
        depths.append(jnp.where(used, step + 1, 0))
        inside = shared
        at = jnp.where(shared, jnp.argmax(same, axis=1), num_nodes + step)
    return DraftTree(
        tokens=jnp.concatenate([tree.tokens, chain], axis=1).astype(jnp.int32),
        parent=jnp.concatenate([tree.parent, jnp.stack(parents, axis=1)], axis=1),
        depth=jnp.concatenate([tree.depth, jnp.stack(depths, axis=1)], axis=1),
    )
