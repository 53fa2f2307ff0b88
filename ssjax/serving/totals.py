"""What an engine has done since its start."""

import collections
import dataclasses

from ssjax.decoding.completion import Completion


@dataclasses.dataclass
class Totals:
    """What the engine has done since its start."""

    prompt_tokens: int = 0  # of requests that got a slot
    new_tokens: int = 0
    passes: int = 0  # that had drafts, of rows: two requests in one pass are two
    draft_nodes: int = 0  # that those passes had room for
    kept_by_depth: list[int] = dataclasses.field(default_factory=list)  # passes that kept so deep
    finished: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, before: Completion, after: Completion, drafted: int) -> None:
        """Counts what a request has become between two looks.

        Args:
          before, after: its completions.
          drafted: nodes that each of its passes had room for; 0: it was decoded plainly.
        """
        self.new_tokens += len(after.tokens) - len(before.tokens)
        if not drafted:
            return
        calls = after.calls - before.calls
        self.passes += calls
        self.draft_nodes += calls * drafted
        for kept in after.kept[before.calls :]:
            for depth in range(kept):
                self.kept_by_depth[depth] += 1
