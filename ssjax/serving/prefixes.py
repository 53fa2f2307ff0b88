"""Beginnings of prompts that were read before, kept for those that begin alike.

A prompt is cut into blocks of so many tokens. What was computed for a block is kept under its
tokens and the block before it, the first under whose prompt it is, so that whatever is found was
computed from the very same tokens. No part of this knows what is kept.

    prompts  a b c d e f g     blocks of 2   (ab) - (cd) - (ef)
             a b c d x y                     (ab) - (cd) - (xy)

When the bytes are used up, the block that was not used for longest goes; of a chain it is the last.
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class _Block:
    number: int  # that no other block has had
    owner: Hashable
    kept: Any


class Prefixes:
    """What is kept of prompts.

    Args:
      max_bytes: of all blocks together.
      block_bytes: of one.
      block_tokens: in one.

    Attributes:
      block_tokens: as given.
      queries: tokens of prompts that were looked up.
      hits: of those, the tokens that were found.
    """

    def __init__(self, max_bytes: int, block_bytes: int, block_tokens: int):
        self.block_tokens = block_tokens
        self.queries = self.hits = 0
        self._most = max_bytes // block_bytes
        self._last_number = 0
        # The one that was used last comes last.
        self._blocks: collections.OrderedDict[tuple, _Block] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def num_known(self, owner: Hashable, prompt: Sequence[int]) -> int:
        """How many tokens `find` would give; counts and changes nothing."""
        return self.block_tokens * len(self._chain(owner, prompt))

    def find(self, owner: Hashable, prompt: Sequence[int]) -> list[Any]:
        """What is kept of the beginning of a prompt, block by block, the last token never.

        Args:
          owner: whose prompt; another's is another.
          prompt: ids.
        """
        keys = self._chain(owner, prompt)
        self._use(keys)
        self.queries += len(prompt)
        self.hits += len(keys) * self.block_tokens
        return [self._blocks[key].kept for key in keys]

    def keep(self, owner: Hashable, prompt: Sequence[int], computed: Callable[[int], Any]) -> None:
        """Keeps the whole blocks of a prompt that are not kept yet.

        Args:
          owner, prompt: as there.
          computed: what to keep of the block that begins at a place of the prompt.
        """
        keys, before = [], owner
        for start in range(0, len(prompt) - self.block_tokens + 1, self.block_tokens):
            if len(keys) == self._most:
                break
            key = self._key(before, prompt, start)
            if key not in self._blocks:
                self._last_number += 1
                self._blocks[key] = _Block(self._last_number, owner, computed(start))
            keys.append(key)
            before = self._blocks[key].number
        self._use(keys)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)

    def forget(self, owner: Hashable) -> None:
        """Drops all of an owner."""
        for key in [key for key, block in self._blocks.items() if block.owner == owner]:
            del self._blocks[key]

    def _chain(self, owner, prompt) -> list[tuple]:
        keys, before = [], owner
        for start in range(0, len(prompt) - self.block_tokens, self.block_tokens):
            key = self._key(before, prompt, start)
            if key not in self._blocks:
                break
            keys.append(key)
            before = self._blocks[key].number
        return keys

    def _key(self, before, prompt, start) -> tuple:
        is_first = start == 0
        return is_first, before, tuple(prompt[start : start + self.block_tokens])

    def _use(self, keys) -> None:
        """The first block of a chain counts as used after those that follow it."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)
