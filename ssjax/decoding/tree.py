"""Draft trees as data.

A draft tree has M nodes. Node 0 is the root: the last token that is already part of the
output but not yet in the cache. A node at depth d proposes the token d positions after
the root, given the tokens on its path. A parent's index is always lower than its
children's. Unused nodes have parent -1 and depth 0; nothing ever descends to them.

    tokens   the  cat  dog  sat       the -+- cat --- sat
    parent   -1    0    0    1             +- dog
    depth     0    1    1    2
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssjax.decoding.candidates import Candidates
from ssjax.parallel.partitioning import per_row

NO_PARENT = -1
NO_TOKEN = -1  # in place of an id, where there is none; no node holds it


@struct.dataclass
class DraftTree:
    """Proposed continuations of every row."""

    tokens: jax.Array  # [B, M] int32
    parent: jax.Array  # [B, M] int32, NO_PARENT for the root and for unused nodes
    depth: jax.Array  # [B, M] int32, 0 for the root

    def first(self, count: int) -> "DraftTree":
        """The first nodes of every row, root included."""
        return jax.tree.map(lambda x: x[:, :count], self)


def root_only(root: jax.Array) -> DraftTree:
    """The tree of plain decoding: one node per row. root: [B] int32."""
    tokens = root[:, None]
    return DraftTree(tokens, jnp.full_like(tokens, NO_PARENT), jnp.zeros_like(tokens))


def without_drafts(tree: DraftTree, dropped: jax.Array) -> DraftTree:
    """The trees of some rows cut down to the root; unused nodes of all become copies of the root.

    An unused node is computed like any other, and what is not finite in it reaches the nodes beside
    it, which give it the weight 0: 0 * nan is nan. A copy of the root brings nothing of its own.

    Args:
      tree: M nodes.
      dropped: [B] bool, rows that lose their draft.
    """
    parent = jnp.where(dropped[:, None], NO_PARENT, tree.parent)
    used = parent != NO_PARENT
    return DraftTree(
        tokens=jnp.where(used, tree.tokens, tree.tokens[:, :1]),
        parent=parent,
        depth=jnp.where(used, tree.depth, 0),
    )


def ancestor_mask(parent: jax.Array, max_depth: int) -> jax.Array:
    """Which nodes each node sees: itself and its ancestors.

    Args:
      parent: [B, M] int32.
      max_depth: deepest node; the number of times the parents are followed.

    Returns:
      [B, M, M] bool, mask[b, i, k]: node i sees node k.
    """
    nodes = jnp.arange(parent.shape[1])
    mask = jnp.broadcast_to(nodes[:, None] == nodes, (*parent.shape, parent.shape[1]))
    ancestor = parent
    for _ in range(max_depth):
        mask = mask | (ancestor[:, :, None] == nodes)
        following = jnp.take_along_axis(parent, jnp.maximum(ancestor, 0), axis=1)
        ancestor = jnp.where(ancestor < 0, NO_PARENT, following)
    return mask


def path_tokens(tree: DraftTree, max_depth: int) -> jax.Array:
    """The draft tokens on the path of each node: its own, its parent's, and so on.

    Args:
      tree: M nodes.
      max_depth: deepest node.

    Returns:
      [B, M, max_depth] int32; NO_TOKEN from the root on, and throughout for unused nodes.
    """
    node = jnp.broadcast_to(jnp.arange(tree.parent.shape[1]), tree.parent.shape)
    tokens = [jnp.zeros((*node.shape, 0), jnp.int32)]
    for _ in range(max_depth):
        drafted = jnp.take_along_axis(tree.depth, node, axis=1) > 0
        token = jnp.where(drafted, jnp.take_along_axis(tree.tokens, node, axis=1), NO_TOKEN)
        tokens.append(token[:, :, None])
        node = jnp.where(drafted, jnp.take_along_axis(tree.parent, node, axis=1), node)
    return jnp.concatenate(tokens, axis=2)


@dataclasses.dataclass(frozen=True)
class StaticTree:
    """A tree of fixed shape: node i proposes the rank-th best token of the stream of its depth.

    Attributes:
      parents: one entry a node, parents[0] = -1 for the root.
      ranks: one entry a node, 0 the best token; ranks[0] is unused.

    Raises:
      ValueError: a parent that does not precede its child, siblings of the same rank, or
        tuples of unequal length.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    def __post_init__(self):
        if len(self.parents) != len(self.ranks) or not self.parents:
            raise ValueError("a tree needs one parent and one rank per node, and a root")
        if self.parents[0] != NO_PARENT:
            raise ValueError(f"node 0 is the root, its parent is {NO_PARENT}")
        for node, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < node:
                raise ValueError(f"node {node} has parent {parent}; parents come first")
        children = list(zip(self.parents[1:], self.ranks[1:], strict=True))
        if len(set(children)) != len(children) or min(self.ranks[1:], default=0) < 0:
            raise ValueError("children of one parent need different ranks, 0 or more")

    @property
    def num_nodes(self) -> int:
        """M, root included."""
        return len(self.parents)

    @property
    def depths(self) -> np.ndarray:
        """[M] int32."""
        depths = np.zeros(self.num_nodes, np.int32)
        for node, parent in enumerate(self.parents[1:], start=1):
            depths[node] = depths[parent] + 1
        return depths

    @property
    def max_depth(self) -> int:
        return int(self.depths.max())

    @classmethod
    def from_branching(cls, branching: tuple[int, ...]) -> "StaticTree":
        """The Cartesian tree of the paper.

        Every node at depth d - 1 gets branching[d - 1] children, so there are
        1 + sum over d of the product of branching[:d] nodes; (3, 3, 3) has 40.
        """
        parents, ranks, level = [NO_PARENT], [0], [0]
        for width in branching:
            following = []
            for parent in level:
                for rank in range(width):
                    following.append(len(parents))
                    parents.append(parent)
                    ranks.append(rank)
            level = following
        return cls(tuple(parents), tuple(ranks))


def static_tree(shape: StaticTree, root: jax.Array, candidates: Candidates) -> DraftTree:
    """Fills a static tree with tokens.

    Args:
      shape: at most J deep. Ranks at or past W have no token; their nodes are unused.
      root: [B] int32.
      candidates: those of stream d - 1 (from 0) fill depth d, ranked after the token of the parent.
    """
    batch, num_streams, width = candidates.tokens.shape
    if shape.max_depth > num_streams:
        raise ValueError(f"the tree is {shape.max_depth} deep but there are {num_streams} streams")
    depths, ranks = shape.depths, np.array(shape.ranks, np.int32)
    # By node, the place of its token among the candidates of its stream.
    place = jnp.broadcast_to(np.minimum(ranks, width - 1), (batch, shape.num_nodes))
    if candidates.scores.shape[2] > 1:
        parents = np.array(shape.parents)
        for depth in range(1, shape.max_depth + 1):
            nodes = np.flatnonzero(depths == depth)
            above = place[:, parents[nodes]] if depth > 1 else jnp.zeros((batch, len(nodes)), int)
            after = candidates.scores[:, depth - 1]
            after = jnp.take_along_axis(after, above[:, :, None], axis=1)  # [B, nodes, W]
            order = jnp.argsort(-after, axis=2, stable=True)
            own = jnp.minimum(ranks[nodes], width - 1)[None, :, None]
            own = jnp.broadcast_to(own, (batch, len(nodes), 1))
            place = place.at[:, nodes].set(jnp.take_along_axis(order, own, axis=2)[:, :, 0])
    tokens = candidates.tokens[:, np.maximum(depths - 1, 0)]  # [B, M, W]
    tokens = jnp.take_along_axis(tokens, place[:, :, None], axis=2)[:, :, 0]
    usable = np.zeros(shape.num_nodes, bool)
    for node, parent in enumerate(shape.parents):
        usable[node] = parent == NO_PARENT or (usable[parent] and ranks[node] < width)
    parent = np.where(usable, np.array(shape.parents, np.int32), NO_PARENT)
    depth = np.where(usable, depths, 0)
    return DraftTree(
        tokens=tokens.at[:, 0].set(root).astype(jnp.int32),
        parent=jnp.broadcast_to(jnp.asarray(parent, jnp.int32), (batch, shape.num_nodes)),
        depth=jnp.broadcast_to(jnp.asarray(depth, jnp.int32), (batch, shape.num_nodes)),
    )


def best_first_tree(root: jax.Array, candidates: Candidates, num_draft_nodes: int) -> DraftTree:
    """The draft nodes with the highest joint probability along their path.

    The score of a node is the sum of the log-probabilities of its path, each after the token
    before. It only falls along a path, so the best nodes are closed under ancestors. A node among
    the best P overall is among the best P of its depth, and so is its parent: one level is grown
    from the best P of the level before, exactly, without the Cartesian product.

    Args:
      root: [B] int32.
      candidates: stream d - 1 (from 0) scores depth d.
      num_draft_nodes: P, at least 1, the root not counted.

    Returns:
      A tree of 1 + P nodes ordered by falling score. Where candidates and depth allow fewer than P
      nodes, the rest is unused.
    """

    def grow(root, tokens, scores):
        return _grow(root, Candidates(tokens, scores), num_draft_nodes)

    return per_row(grow, root, candidates.tokens, candidates.scores)


def _grow(root, candidates, budget) -> DraftTree:
    batch, num_streams, width = candidates.tokens.shape

    # Level by level; a candidate's index in the concatenation of all levels is its name.
    scores, tokens, parents, depths = [], [], [], []
    level_scores = jnp.zeros((batch, 1), jnp.float32)
    level_place = jnp.zeros((batch, 1), jnp.int32)  # among the candidates of their stream
    level_start = None  # names of the level before start here; None: the root
    num_named = 0
    for d in range(num_streams):
        after = candidates.scores[:, d]  # [B, P, W]
        if after.shape[1] > 1:
            after = jnp.take_along_axis(after, level_place[:, :, None], axis=1)
        joint = level_scores[:, :, None] + after  # [B, level, W]
        size = min(budget, joint.shape[1] * width)
        level_scores, index = jax.lax.top_k(joint.reshape(batch, -1), size)
        above, level_place = index // width, index % width
        scores.append(level_scores)
        tokens.append(jnp.take_along_axis(candidates.tokens[:, d], level_place, axis=1))
        parents.append(
            jnp.full_like(above, NO_PARENT) if level_start is None else above + level_start
        )
        depths.append(jnp.full_like(above, d + 1))
        level_start, num_named = num_named, num_named + size
    scores, tokens, parents, depths = (
        jnp.concatenate(x, axis=1) for x in (scores, tokens, parents, depths)
    )

    # top_k puts the lower index first among equals, so a parent precedes a child of equal score.
    kept = min(budget, num_named)
    chosen = jax.lax.top_k(scores, kept)[1]  # [B, kept] names
    names = jnp.arange(num_named)
    node_of_name = jnp.argmax(chosen[:, None, :] == names[:, None], axis=2) + 1  # [B, names]
    parent_name = jnp.take_along_axis(parents, chosen, axis=1)
    parent_node = jnp.take_along_axis(node_of_name, jnp.maximum(parent_name, 0), axis=1)
    parent = jnp.where(parent_name == NO_PARENT, 0, parent_node)

    def with_root(root_value, values, unused):
        pad = jnp.full((batch, budget - kept), unused, jnp.int32)
        return jnp.concatenate([root_value[:, None], values.astype(jnp.int32), pad], axis=1)

    return DraftTree(
        tokens=with_root(root, jnp.take_along_axis(tokens, chosen, axis=1), 0),
        parent=with_root(jnp.full_like(root, NO_PARENT), parent, NO_PARENT),
        depth=with_root(jnp.zeros_like(root), jnp.take_along_axis(depths, chosen, axis=1), 0),
    )
