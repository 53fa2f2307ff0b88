"""Passes over some of the slots: their rows are taken out of the state, run, and put back.

Drafts of all sizes share one state, which has room for the largest. A smaller pass runs the first
nodes of what was drafted, which are a tree of their own since parents come first.
"""

import jax
import jax.numpy as jnp

from ssjax.decoding import loop
from ssjax.decoding.drafters import Drafter
from ssjax.decoding.state import DecodeSpec, DecodeState
from ssjax.decoding.tree import NO_PARENT, DraftTree
from ssjax.models.cache import KVCache
from ssjax.models.parameters import Params
from ssjax.models.transformer import Transformer


def by_axis(function, *states):
    """function(axis, *leaves) for the leaves of states; axis: which of a leaf's is the batch."""

    def of_cache(*caches):
        return jax.tree.map(lambda *x: function(1 if x[0].ndim == 5 else 0, *x), *caches)

    def of_any(*leaves):
        return of_cache(*leaves) if isinstance(leaves[0], KVCache) else function(0, *leaves)

    return jax.tree.map(of_any, *states, is_leaf=lambda x: isinstance(x, KVCache))


def _passes(
    model: Transformer,
    params: Params,
    drafter: Drafter,
    spec: DecodeSpec,
    state: DecodeState,
    slots: jax.Array | None,
    num_passes: jax.Array,
    drafter_params: Params | None,
    until_end: jax.Array,
    allowed: jax.Array | None,
    special: bool,
) -> DecodeState:
    """`loop.decode_passes` over some rows of a state.

    Args:
      model, params, spec, num_passes, drafter_params, until_end: as there.
      drafter: any that keeps the same between passes as the one that the state was made with.
      state: of S rows, donated.
      slots: [r] int32, different ones; None: all.
      allowed: of those slots, for one pass, see `DecodeState`; M is that of the drafter. Nodes
        after which nothing is allowed are left out, and so must be those after them.
      special: a row has penalties, or its likeliest tokens are asked for; where none is such,
        nobody needs to count and rank tokens.
    """
    unused = {"penalties": state.penalties, "likeliest": state.likeliest}
    if not special:
        state = state.replace(**dict.fromkeys(unused))
    some = state
    if slots is not None:
        some = by_axis(lambda axis, x: x[(slice(None),) * axis + (slots,)], state)
    room = state.draft.tokens.shape[1]
    some = some.replace(draft=resized(some.draft, drafter.num_nodes))
    if allowed is not None:
        some = some.replace(draft=_without_refused(some.draft, allowed), allowed=allowed)
    some = loop.decode_passes(
        model, params, drafter, spec, some, num_passes, drafter_params, until_end
    )
    some = some.replace(draft=resized(some.draft, room), allowed=None)
    if slots is not None:
        some = by_axis(
            lambda axis, old, new: old.at[(slice(None),) * axis + (slots,)].set(new), state, some
        )
    return some if special else some.replace(**unused)


def _without_refused(tree: DraftTree, allowed: jax.Array) -> DraftTree:
    """Trees in which nodes after which nothing is allowed are copies of the root, unused."""
    used = (allowed != 0).any(axis=2).at[:, 0].set(True)
    return DraftTree(
        tokens=jnp.where(used, tree.tokens, tree.tokens[:, :1]),
        parent=jnp.where(used, tree.parent, NO_PARENT),
        depth=jnp.where(used, tree.depth, 0),
    )


def resized(tree: DraftTree, num_nodes: int) -> DraftTree:
    """The first nodes of every row, or unused ones, which are copies of the root, after them."""
    have = tree.tokens.shape[1]
    if num_nodes <= have:
        return tree.first(num_nodes)
    more = [(0, 0), (0, num_nodes - have)]
    beyond = jnp.arange(num_nodes) >= have
    return DraftTree(
        tokens=jnp.where(beyond, tree.tokens[:, :1], jnp.pad(tree.tokens, more)),
        parent=jnp.pad(tree.parent, more, constant_values=NO_PARENT),
        depth=jnp.pad(tree.depth, more),
    )


passes = jax.jit(_passes, static_argnums=(0, 2, 3, 10), donate_argnums=4)
