"""How likely a draft node is to be kept, and trees without those that are not worth their row.

The chance of a node is the product of the probabilities along its path, as the table that the tree
was read off has them (`candidates`): its joint probability. A node costs a row of the pass whether
it is kept or not, so one whose chance is below what a row costs is better left out:

    draft       chance after its parent    joint        with min_node_chance 0.3
    the -+- cat --- sat      .7, .5        .7 .35       the -+- cat --- sat
         +- dog --- ran      .2, .9        .2 .18

A joint probability only falls along a path, so what is left is closed under ancestors. Shapes of a
compiled program being fixed, a node that is left out is merely unused; a pass gets cheaper where
the loop has programs for fewer rows (`Drafter.widths`, `loop.decode_step`).
"""

import math

import jax
import jax.numpy as jnp

from ssjax.decoding.candidates import Candidates
from ssjax.decoding.tree import NO_PARENT, DraftTree, ancestor_mask


def log_chances(tree: DraftTree, candidates: Candidates) -> jax.Array:
    """Joint log-probability of each node, [B, M] float32; 0 for the root, -inf for unused nodes.

    Args:
      tree: read off the candidates.
      candidates: at least as many streams as the tree is deep.
    """
    parent = jnp.maximum(tree.parent, 0)
    drafted = tree.parent != NO_PARENT

    @jax.vmap  # no row looks into another's, which the compiler then knows
    def own(tokens, depth, parent, candidate_tokens, scores):
        stream = jnp.maximum(depth - 1, 0)
        place = jnp.argmax(candidate_tokens[stream] == tokens[:, None], axis=1)
        above = jnp.where((depth > 1) & (scores.shape[1] > 1), place[parent], 0)
        return scores[stream, above, place]

    given = own(tree.tokens, tree.depth, parent, candidates.tokens, candidates.scores)
    mask = ancestor_mask(tree.parent, candidates.tokens.shape[1])
    joint = jnp.where(mask & drafted[:, None, :], given[:, None, :], 0.0).sum(axis=2)
    return jnp.where(drafted.at[:, 0].set(True), joint, -jnp.inf)


def without_unlikely(tree: DraftTree, log_chance: jax.Array, least: float) -> DraftTree:
    """The tree with only the nodes of at least that chance; the others are unused.

    Args:
      tree: M nodes.
      log_chance: [B, M] of `log_chances`.
      least: joint probability, above 0.
    """
    kept = log_chance >= math.log(least)
    return DraftTree(
        tokens=tree.tokens,
        parent=jnp.where(kept, tree.parent, NO_PARENT),
        depth=jnp.where(kept, tree.depth, 0),
    )


def rows_needed(tree: DraftTree) -> jax.Array:
    """[B] int32: nodes up to the last one that is used, root included."""
    places = jnp.arange(tree.parent.shape[1])
    return 1 + jnp.where(tree.parent != NO_PARENT, places, 0).max(axis=1)
