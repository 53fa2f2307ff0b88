"""Plain against speculative decoding: same model, prompts, loop, dtype and counter.

Each batch is decoded both ways in turn, compilation excluded; see speed.py.

    tokens_per_call       tokens emitted by decode passes / decode passes (1.0 for plain)
    call_reduction        decode passes of plain / of speculative, for the same outputs
    acceptance_by_depth   passes that kept a draft node at depth d / decode passes
    tokens_per_second     new tokens, first one included / seconds, prefill included
    speedup               ratio of seconds, prefill included; decode_speedup: passes alone

Prefill passes count in neither tokens_per_call nor call_reduction.
"""

import dataclasses
from collections.abc import Callable, Sequence

from ssjax.decoding.completion import Completion
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import PlainDrafter, Way
from ssjax.decoding.request import Request
from ssjax.evaluation.speed import Entry, Kept, TimedBatch, time_ways


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One way of decoding over all prompts."""

    completions: tuple[Completion, ...]
    prefill_seconds: float
    decode_seconds: float

    @property
    def num_tokens(self) -> int:
        """New tokens, those of the prefill included."""
        return sum(len(c.tokens) for c in self.completions)

    @property
    def calls(self) -> int:
        return sum(c.calls for c in self.completions)

    @property
    def tokens_per_call(self) -> float:
        by_passes = sum(sum(c.runs[1:]) for c in self.completions)
        return by_passes / max(self.calls, 1)

    @property
    def acceptance_by_depth(self) -> list[float]:
        depth = len(self.completions[0].accepted) if self.completions else 0
        kept = [sum(c.accepted[d] for c in self.completions) for d in range(depth)]
        return [count / max(self.calls, 1) for count in kept]

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / max(self.seconds, 1e-9)

    def summary(self) -> dict:
        """Plain values for a report."""
        return {
            "tokens": self.num_tokens,
            "calls": self.calls,
            "tokens_per_call": self.tokens_per_call,
            "acceptance_by_depth": self.acceptance_by_depth,
            "prefill_seconds": self.prefill_seconds,
            "decode_seconds": self.decode_seconds,
            "tokens_per_second": self.tokens_per_second,
            "milliseconds_per_call": 1e3 * self.decode_seconds / max(self.calls, 1),
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Plain and speculative decoding of the same prompts."""

    plain: Measurement
    speculative: Measurement

    @property
    def num_identical(self) -> int:
        """Prompts whose outputs agree token for token."""
        pairs = zip(self.plain.completions, self.speculative.completions, strict=True)
        return sum(p.tokens == s.tokens for p, s in pairs)

    @property
    def call_reduction(self) -> float:
        return self.plain.calls / max(self.speculative.calls, 1)

    @property
    def speedup(self) -> float:
        return self.plain.seconds / max(self.speculative.seconds, 1e-9)

    @property
    def decode_speedup(self) -> float:
        return self.plain.decode_seconds / max(self.speculative.decode_seconds, 1e-9)

    def summary(self) -> dict:
        """Plain values for a report."""
        return {
            "prompts": len(self.plain.completions),
            "identical": self.num_identical,
            "call_reduction": self.call_reduction,
            "speedup": self.speedup,
            "decode_speedup": self.decode_speedup,
            "plain": self.plain.summary(),
            "speculative": self.speculative.summary(),
        }


def compare(
    decoder: Decoder,
    request: Request,
    way: Way,
    *,
    on_batch: Callable[[int], None] = lambda _: None,
    kept: Kept | None = None,
) -> Comparison:
    """Decodes all prompts both ways, batch by batch in turn.

    Args:
      decoder: the model.
      request: what is asked of both.
      way: the speculative one.
      on_batch, kept: as in `time_ways`.

    Raises:
      UserError: as `time_ways`.
    """
    plain = dataclasses.replace(way, drafter=PlainDrafter())
    entries = [Entry(decoder, each) for each in (plain, way)]
    results = time_ways(entries, request, on_batch=on_batch, kept=kept)
    return Comparison(*(measurement_of(batches) for batches in results))


def measurement_of(batches: Sequence[TimedBatch]) -> Measurement:
    """All batches of one way together."""
    return Measurement(
        completions=tuple(c for batch in batches for c in batch.completions),
        prefill_seconds=sum(batch.timing.prefill for batch in batches),
        decode_seconds=sum(batch.timing.decode for batch in batches),
    )
