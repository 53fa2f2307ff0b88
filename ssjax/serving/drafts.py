"""The trees that were drafted for a request that asks to see them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ssjax.decoding.tree import NO_PARENT


@dataclasses.dataclass(frozen=True)
class Draft:
    """What was proposed to one pass of one request: the used nodes of its tree, see tree.py."""

    tokens: tuple[int, ...]  # of every node; of the root the token that was known before
    parents: tuple[int, ...]  # lower than the node's own number; NO_PARENT of the root

    @classmethod
    def of_row(cls, tokens: np.ndarray, parent: np.ndarray) -> "Draft":
        """Of one row of a `DraftTree`: both [M] int32."""
        used = [0, *np.flatnonzero(parent != NO_PARENT).tolist()]
        number = {node: place for place, node in enumerate(used)} | {NO_PARENT: NO_PARENT}
        parents = [number[node] for node in parent[used].tolist()]
        return cls(tuple(tokens[used].tolist()), tuple(parents))

    def kept(self, emitted: Sequence[int]) -> list[bool]:
        """Which nodes are on the path that a pass kept, the root among them.

        Args:
          emitted: the tokens of the pass that were draft nodes.
        """
        level = {0}
        for token in emitted:
            level = {
                node
                for node, parent in enumerate(self.parents)
                if parent in level and self.tokens[node] == token
            }
        found, node = [False] * len(self.tokens), min(level, default=NO_PARENT)
        while node != NO_PARENT:
            found[node], node = True, self.parents[node]
        return found
