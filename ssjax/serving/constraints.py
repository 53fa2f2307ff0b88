"""The grammars of the requests that have slots, and the masks that a pass draws under."""

import numpy as np

from ssjax.decoding.decoder import HostState
from ssjax.decoding.tree import DraftTree
from ssjax.serving.grammar import Follower, Grammar, Grammars

_ALL = -1  # a word of a mask whose every token is allowed


class Constraints:
    """Masks by slot; of slots without a grammar every token is allowed.

    Args:
      grammars: of the model; None: there are none.
      num_slots: S.
      num_nodes: M of the largest draft.
    """

    def __init__(self, grammars: Grammars | None, num_slots: int, num_nodes: int):
        self._grammars = grammars
        self.num_words = grammars.num_words if grammars else 0
        self._masks = np.full((num_slots, num_nodes, self.num_words), _ALL, np.int32)
        self._followers: dict[int, tuple[Follower, int]] = {}  # and the length of the prompt

    @property
    def active(self) -> bool:
        """A request that follows a grammar has a slot."""
        return bool(self._followers)

    def begin(self, slot: int, grammar: Grammar | None, prompt_length: int) -> np.ndarray | None:
        """The tokens that a request may begin with, [1, 1, W] int32; None without grammars."""
        if self._grammars is None:
            return None
        if grammar is None:
            return np.full((1, 1, self.num_words), _ALL, np.int32)
        follower = self._grammars.follow(grammar)
        self._followers[slot] = follower, prompt_length
        return follower.allowed()[None, None]

    def end(self, slot: int) -> None:
        """The slot has another request, or none."""
        if self._followers.pop(slot, None):
            self._masks[slot] = _ALL

    def follow(self, host: HostState, draft: DraftTree) -> list[int]:
        """Goes on along what the rows have emitted.

        Args:
          host: the latest state.
          draft: of the same state, on the host.

        Returns:
          Slots whose grammar has failed.
        """
        failed = []
        for slot, (follower, prompt_length) in self._followers.items():
            if host.done[slot]:
                continue
            first, end = prompt_length + follower.num_taken, int(host.length[slot])
            follower.take(host.tokens[slot, first:end].tolist())
            tokens, parent = draft.tokens[slot].tolist(), draft.parent[slot].tolist()
            follower.masks(tokens, parent, self._masks[slot])
            if follower.failed:
                failed.append(slot)
        return failed

    @property
    def masks(self) -> np.ndarray:
        """[S, M, W] int32, the tokens that may follow each node of the drafts followed last."""
        return self._masks
