"""Who writes the next draft tree.

A drafter says how large its trees get and how many streams it needs from the pass, and turns
what the pass computed into a tree. It is static: a frozen, hashable object that the compiled
loop closes over. Nothing it proposes can change the output, only its speed.
"""

import dataclasses
from typing import Protocol

import jax

from ssjax.config import DecodeConfig
from ssjax.decoding.tree import (
    DraftTree,
    StaticTree,
    best_first_tree,
    root_only,
    static_tree,
)
from ssjax.errors import UserError


class Drafter(Protocol):
    """What the loop asks of a drafter."""

    @property
    def num_nodes(self) -> int:
        """M, nodes of every tree it returns, root included."""

    @property
    def max_depth(self) -> int:
        """R - 1, an upper bound of the depth of its nodes."""

    @property
    def num_streams(self) -> int:
        """J, streams that it needs at the last accepted node; 0 for none."""

    def propose(
        self,
        root: jax.Array,
        stream_log_probs: jax.Array | None,
        tokens: jax.Array,
        length: jax.Array,
    ) -> DraftTree:
        """Returns the next tree.

        Args:
          root: [B] int32, the last emitted token of every row.
          stream_log_probs: [B, J, V] float32, stream j (from 0) scores the token j + 1
            positions behind the root; None if num_streams is 0.
          tokens: [B, capacity] int32, all tokens of every row.
          length: [B] int32, how many of them are valid; tokens[b, length[b] - 1] is the root.
        """


@dataclasses.dataclass(frozen=True)
class PlainDrafter:
    """No draft: one token per pass. Ordinary decoding is this drafter in the same loop."""

    num_nodes: int = 1
    max_depth: int = 0
    num_streams: int = 0

    def propose(self, root, stream_log_probs, tokens, length) -> DraftTree:
        return root_only(root)


@dataclasses.dataclass(frozen=True)
class BestFirstDrafter:
    """The num_draft_nodes continuations with the highest joint stream probability."""

    num_draft_nodes: int
    num_streams: int

    @property
    def num_nodes(self) -> int:
        return 1 + self.num_draft_nodes

    @property
    def max_depth(self) -> int:
        return min(self.num_streams, self.num_draft_nodes)

    def propose(self, root, stream_log_probs, tokens, length) -> DraftTree:
        return best_first_tree(root, stream_log_probs, self.num_draft_nodes)


@dataclasses.dataclass(frozen=True)
class StaticDrafter:
    """A tree of fixed shape, filled with the top tokens of each stream."""

    tree: StaticTree
    num_streams: int

    @property
    def num_nodes(self) -> int:
        return self.tree.num_nodes

    @property
    def max_depth(self) -> int:
        return self.tree.max_depth

    def propose(self, root, stream_log_probs, tokens, length) -> DraftTree:
        return static_tree(self.tree, root, stream_log_probs)


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to decode: who drafts, and when the streams run."""

    drafter: Drafter
    deferred: bool  # as `DecodeConfig.deferred`


def make_drafter(decode: DecodeConfig, trained_streams: int) -> Drafter:
    """The drafter that a config asks for.

    Args:
      decode: decode.num_streams 0 means all.
      trained_streams: J of the model; without streams decoding is plain.

    Raises:
      UserError: a static tree deeper than there are streams.
    """
    num_streams = decode.num_streams or trained_streams
    if num_streams == 0:
        return PlainDrafter()
    if decode.tree == "best_first":
        return BestFirstDrafter(decode.num_nodes, num_streams)
    if len(decode.branching) > num_streams:
        raise UserError(
            f"config: decode.branching {decode.branching} is {len(decode.branching)} deep but "
            f"there are {num_streams} streams; shorten it or train more streams"
        )
    return StaticDrafter(StaticTree.from_branching(decode.branching), num_streams)
