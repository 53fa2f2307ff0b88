"""What a prompt became: its tokens, why they end there, and what every pass did for them."""

import dataclasses
from collections.abc import Callable, Sequence

from ssjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Completion:
    """The tokens of one prompt, with a record of every pass that emitted them."""

    tokens: tuple[int, ...]  # new ids; a final end-of-sequence id is included
    # "eos" or "length"; "error" where the model's output was not finite after these tokens;
    # "stop" where a stop string cut it, see stop_strings.py; "unfinished" while it is streamed;
    # "empty" where `ssjax.generate` was given a blank line
    finish: str
    runs: tuple[int, ...]  # tokens emitted by prefill, then by each pass; sums to len(tokens)
    kept: tuple[int, ...]  # draft nodes kept by each pass, which are the first of its tokens
    max_depth: int  # R - 1, the depth that the drafter's nodes may have
    # Of the tokens under the model's own distribution: temperature 1, without penalties, bans
    # and cuts. None where not asked for.
    log_probs: tuple[float, ...] | None = None
    # In the place of each token the likeliest ones, the best first, and their log-probabilities
    # under that distribution. None where not asked for.
    likeliest: tuple[tuple[tuple[int, float], ...], ...] | None = None

    def __repr__(self) -> str:
        return f"Completion({len(self.tokens)} tokens, {self.finish}, {self.calls} passes)"

    @property
    def calls(self) -> int:
        """Decode passes while this row was active; prefill not counted."""
        return len(self.kept)

    @property
    def accepted(self) -> tuple[int, ...]:
        """Passes that kept a draft node at depth 1, 2, ..., max_depth."""
        depths = range(1, self.max_depth + 1)
        return tuple(sum(kept >= depth for kept in self.kept) for depth in depths)

    def first(self, count: int, finish: str) -> "Completion":
        """The completion as if it had ended after its first `count` tokens, of at least 1.

        Args:
          count: at most len(tokens).
          finish: why it ends there.
        """
        runs, before = [], 0
        for run in self.runs:
            if before < count:
                runs.append(min(run, count - before))
            before += run
        return dataclasses.replace(
            self,
            tokens=self.tokens[:count],
            finish=finish,
            runs=tuple(runs),
            kept=tuple(min(pair) for pair in zip(self.kept, runs[1:], strict=False)),
            log_probs=None if self.log_probs is None else self.log_probs[:count],
            likeliest=None if self.likeliest is None else self.likeliest[:count],
        )


def mark_runs(completion: Completion, decode_text: Callable[[Sequence[int]], str]) -> str:
    """The output with what each pass emitted in brackets: "[A][ b c][ d]".

    Args:
      completion: of any drafter.
      decode_text: ids to text; of ids, not of single pieces, so that characters stay whole.
    """
    pieces, text, end = [], "", 0
    for run in completion.runs:
        end += run
        longer = decode_text(completion.tokens[:end])
        if longer != text:
            pieces.append(f"[{longer[len(text) :]}]")
        text = longer
    return "".join(pieces)


def check_finite(completion: Completion, number: int) -> None:
    """For those who can do nothing with half an output. Raises: UserError naming the prompt."""
    if completion.finish == "error":
        raise UserError(not_finite(completion, number))


def not_finite(completion: Completion, number: int) -> str:
    """The line about a completion whose finish is "error". number: of its prompt, from 1."""
    return (
        f"prompt {number}: the model's output is not finite from token {len(completion.tokens) + 1}"
        " on; look for nan, inf or very large values in its weights"
    )
